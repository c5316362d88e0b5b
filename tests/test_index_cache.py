"""Built indexes on disk: used again for the same content, and never trusted when torn or foreign."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ra_bench import index_cache
from ra_bench.compare import Settings, make_plan, run_plan
from ra_bench.index_cache import load_or_build
from ra_bench.registry import create
from ra_bench.results import ResultFolder

KEYS = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float16)
QUERIES = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def every_build_is_worth_saving(monkeypatch) -> None:  # in this process
    monkeypatch.setattr(index_cache, "WORTH_SAVING_S", 0.0)


class Builder:
    """Builds an index and counts how often."""

    def __init__(self, spec: str = "ra:degree=8") -> None:
        self.spec, self.builds = spec, 0

    def ids(self, entry: Path | None) -> np.ndarray:
        self.index = create(self.spec)

        def build() -> None:
            self.builds += 1
            self.index.build(KEYS)

        self.build_s = load_or_build(self.index, entry, build)
        return self.index.search(QUERIES, 10).ids


@pytest.fixture
def kept(tmp_path) -> tuple[Builder, Path, np.ndarray]:
    """A builder, its entry, and what the built index found."""
    builder = Builder()
    entry = tmp_path / "cache" / "abc"
    return builder, entry, builder.ids(entry)


@pytest.mark.parametrize("spec", ["ra:degree=8", "hnsw@lift", "ivf"])
def test_a_kept_index_is_not_built_again_and_finds_the_same(spec, tmp_path) -> None:
    builder = Builder(spec)
    built = builder.ids(tmp_path / "abc")
    first_s, bytes_built = builder.build_s, builder.index.nbytes

    again = builder.ids(tmp_path / "abc")

    assert builder.builds == 1
    assert builder.build_s == first_s, "the build's time is that of the build"
    assert builder.index.nbytes == bytes_built
    np.testing.assert_array_equal(again, built)


def test_without_a_cache_every_index_is_built() -> None:
    builder = Builder()

    builder.ids(None)
    builder.ids(None)

    assert builder.builds == 2


def torn(entry: Path) -> None:
    file = entry / "index" / "graph0_links.npy"
    file.write_bytes(file.read_bytes()[:-8])


def flipped(entry: Path) -> None:
    file = entry / "index" / "keys.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def without_facts(entry: Path) -> None:
    (entry / "entry.json").unlink()


def with_foreign_facts(entry: Path) -> None:
    (entry / "entry.json").write_text(json.dumps(["no", "entry"]))


def with_a_file_more(entry: Path) -> None:
    (entry / "index" / "more.npy").write_bytes(b"")


def with_a_file_less(entry: Path) -> None:
    (entry / "index" / "keys.npy").unlink()


def of_other_content(entry: Path) -> None:
    about = json.loads((entry / "entry.json").read_text())
    (entry / "entry.json").write_text(json.dumps(about | {"address": "other"}))


@pytest.mark.parametrize(
    "harm",
    [
        torn,
        flipped,
        without_facts,
        with_foreign_facts,
        with_a_file_more,
        with_a_file_less,
        of_other_content,
    ],
)
def test_a_torn_or_foreign_entry_is_built_again_and_replaced(kept, harm) -> None:
    builder, entry, built = kept
    harm(entry)

    np.testing.assert_array_equal(builder.ids(entry), built)
    assert builder.builds == 2

    builder.ids(entry)
    assert builder.builds == 2, "the entry was replaced by a whole one"


def test_the_index_of_another_method_is_not_taken_for_this_one_s(kept) -> None:
    _, entry, _ = kept
    other = Builder("ivf")

    other.ids(entry)

    assert other.builds == 1


def test_a_method_that_cannot_save_is_built_each_time_and_leaves_nothing(tmp_path) -> None:
    builder = Builder("window")

    builder.ids(tmp_path / "cache" / "abc")

    if not (tmp_path / "cache" / "abc").exists():  # it cannot save
        assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    builder = Builder()

    builder.ids(tmp_path / "cache" / "abc")

    assert builder.builds == 1


def test_an_entry_is_named_by_all_that_its_build_depends_on(dump, tmp_path) -> None:
    from ra_bench.compare import _works
    from ra_bench.engine.local import LocalEngine

    def entry(spec: str, **options) -> str:
        plan = make_plan(Settings((spec,), str(dump), (10,), cache=tmp_path / "cache", **options))
        folder = ResultFolder(tmp_path / f"out{len(list(tmp_path.iterdir()))}", plan.identity)
        (work,) = _works(plan, plan.units, folder, LocalEngine())
        return work.units[0].arguments["cache"]

    first = entry("ivf:nlist=8")

    assert entry("ivf:nlist=8:nprobe=2") == first, "effort is no part of a build"
    assert entry("ivf:nlist=8", repeats=2) == first
    others = [entry("ivf:nlist=9"), entry("ivf:nlist=8", seed=1), entry("ivf:nlist=8", threads=2)]
    assert len({first, *others}) == 4


def test_a_second_study_takes_its_indexes_from_the_cache(make_dump, tmp_path, monkeypatch) -> None:
    planted = tmp_path / "slow.py"
    shutil.copy(Path(__file__).parent / "planted_indexes.py", planted)
    with planted.open("a") as file:
        file.write(SLOW)
    dump = make_dump(prefill_tokens=1000, decode_steps=4)
    spec = f"{planted}::Slow:mark={tmp_path / 'builds'}"

    for k in (5, 10):
        plan = make_plan(Settings((spec,), str(dump), (k,), repeats=1, cache=tmp_path / "cache"))
        rows = run_plan(plan, ResultFolder(tmp_path / f"out{k}", plan.identity), Silent())
        assert {row["status"] for row in rows} == {"ok"}

    assert (tmp_path / "builds").read_text() == "built\n"
    assert next(row["build_s"] for row in rows if row["index"] == spec) > 1.0


class Silent:
    def start(self, name: str) -> None:
        pass

    def end(self, name: str, status: str, reason: str) -> None:
        pass


SLOW = '''

@dataclass
class Slow(Prefix):
    """Takes its time to build, and can be saved."""

    mark: str = ""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)
        time.sleep(1.1)
        with Path(self.mark).open("a") as file:
            file.write("built\\n")

    def save_state(self, folder: Path) -> None:
        pass

    def load_state(self, folder: Path, mmap: bool) -> None:
        pass
'''
