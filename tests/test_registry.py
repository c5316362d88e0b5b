"""Specs become indexes, and each mistake in one is a line that names it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from ra_bench import registry
from ra_bench.errors import UsageError
from ra_bench.index import Index
from ra_bench.registry import Spec, create, parse
from ra_bench.transform import Lift, Transformed

OWN_FILE = """
from dataclasses import dataclass
from typing import ClassVar, Literal
from ra_bench.index import Found, Index, Work, pad_ids
import numpy as np


@dataclass
class Mine(Index):
    requires: ClassVar[tuple[str, ...]] = ()
    leaf: int = 16
    rate: float = 0.5
    fast: bool = False
    code: Literal["a", "b"] = "a"
    limit: int | None = None

    def __post_init__(self):
        if self.leaf < 1:
            raise ValueError(f"leaf must be at least 1, got {self.leaf}")

    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)

    def search(self, queries, k, *, probes: int = 4):
        self.probed = probes
        return Found(pad_ids(np.zeros((len(queries), 1), np.int32), k), Work())

    def effort_sweep(self, n, k):
        return [{"probes": 1}]


@dataclass
class NeedsLibrary(Mine):
    requires: ClassVar[tuple[str, ...]] = ("no_such_library_anywhere",)


class NotAnIndex:
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN_FILE)
    return str(path)


@pytest.fixture
def fresh_names():
    registry.names.cache_clear()
    registry.index_class.cache_clear()
    yield
    registry.names.cache_clear()
    registry.index_class.cache_clear()


def error_of(spec: str) -> str:
    with pytest.raises(UsageError) as caught:
        create(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_names_are_the_files_of_the_folder():
    assert {"flat", "hnsw", "ivf", "ivfpq", "nsg", "pynndescent", "ra", "random", "window"} <= set(
        registry.names()
    )
    assert not any(name.startswith("_") for name in registry.names())


def test_settings_and_effort_are_told_apart():
    spec = parse("ivf:nlist=32:nprobe=8:codes=float32")
    assert spec == Spec("ivf", {"nlist": 32, "codes": "float32"}, {"nprobe": 8})


def test_transform_follows_an_at_sign():
    index = create("hnsw:degree=8:ef=50@lift")
    assert isinstance(index, Transformed)
    assert isinstance(index.transform, Lift)
    assert index.inner.degree == 8


def test_spec_prints_as_it_was_read():
    for text in ("flat", "hnsw:degree=8:ef=50@lift", "ivf:codes=float32"):
        assert str(parse(text)) == text
        assert create(text).spec == text
    assert str(parse("hnsw").with_transform("lift")) == "hnsw@lift"


def test_threads_and_seed_are_handed_on():
    index = create("hnsw@lift", threads=2, seed=7)
    index.build(np.eye(4, dtype=np.float32))
    assert (index.threads, index.seed) == (index.inner.threads, index.inner.seed) == (2, 7)


def test_values_become_the_types_of_their_fields(own):
    index = create(f"{own}::Mine:leaf=3:rate=0.25:fast=true:code=b:limit=9")
    assert (index.leaf, index.rate, index.fast, index.code, index.limit) == (3, 0.25, True, "b", 9)
    assert create(f"{own}::Mine:limit=none").limit is None


def test_effort_in_a_spec_becomes_the_default(own):
    index = create(f"{own}::Mine:probes=9")
    index.build(np.ones((3, 2), np.float32))
    index.search(np.ones((1, 2), np.float32), 1)
    assert index.probed == 9


def test_fixed_effort_reaches_attend():
    keys = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    few, many = create("ivf:nprobe=1"), create("ivf:nprobe=80")
    for index in (few, many):
        index.build(keys, keys)
    read = [int(index.attend(keys[:4], 10).work.keys_read.sum()) for index in (few, many)]
    assert read[0] < read[1] == 4 * 400


def test_unknown_name_suggests_the_closest():
    assert error_of("hnws").startswith("unknown index 'hnws'. Did you mean 'hnsw'? Known: ")


def test_unknown_setting_suggests_the_closest():
    text = error_of("ivf:nprobes=3")
    known = "Known: codes, iterations, nlist, nprobe, trained_on."
    assert text == f"unknown 'ivf' setting 'nprobes'. Did you mean 'nprobe'? {known}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ivf:nlist=many", "index 'ivf:nlist=many': nlist must be int, got 'many'"),
        ("ivf:nlist", "index 'ivf:nlist': a setting must be key=value, got 'nlist'"),
        ("ivf:codes=int8", "index 'ivf:codes=int8': codes must be one of keys, float16, float32, got 'int8'"),
        ("ivf:nlist=-1", "index 'ivf:nlist=-1': nlist must be at least 0, got -1"),
        ("hnsw:degree=1", "index 'hnsw:degree=1': degree must be at least 2, got 1"),
        ("hnsw@lifted", "unknown transform 'lifted'. Did you mean 'lift'? Known: lift, none, normalize."),
    ],
)
def test_wrong_value_names_the_argument_the_rule_and_the_value(spec: str, message: str):
    assert error_of(spec) == message


def test_wrong_bool_names_both_values(own):
    assert "fast must be true or false, got 'maybe'" in error_of(f"{own}::Mine:fast=maybe")


def test_commas_separate_specs_and_repeats_go():
    assert registry.split("ra, hnsw@lift,ra,") == ["ra", "hnsw@lift"]
    with pytest.raises(UsageError, match="must name at least one index"):
        registry.split(" ,")


def test_missing_file_is_named():
    assert error_of("nowhere.py::Mine") == "index 'nowhere.py::Mine': no such file 'nowhere.py'"


def test_unknown_class_in_a_file_lists_the_indexes_of_the_file(own):
    text = error_of(f"{own}::Mime")
    assert text == f"unknown class in '{own}' 'Mime'. Did you mean 'Mine'? Known: Mine, NeedsLibrary."
    assert "NotAnIndex" in error_of(f"{own}::NotAnIndex").partition("Known")[0]


def test_file_that_fails_to_import_tells_why(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_library_anywhere\n")
    assert "no_such_library_anywhere" in error_of(f"{path}::Mine")


def test_file_that_is_no_python_is_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(OWN_FILE)
    assert "must be a .py file" in error_of(f"{path}::Mine")


def test_index_without_its_library_says_so(own):
    text = error_of(f"{own}::NeedsLibrary")
    assert text.endswith("is unavailable: not installed: no_such_library_anywhere")


def test_missing_library_is_listed_with_its_reason(monkeypatch):
    monkeypatch.setattr(registry.index_class("hnsw"), "requires", ("no_such_library_anywhere",))
    info = registry.info("hnsw")
    assert not info.available
    assert info.reason == "not installed: no_such_library_anywhere"
    assert info.idea


def test_uncompiled_native_index_is_listed_with_its_reason(monkeypatch):
    monkeypatch.setattr(registry.index_class("hnsw"), "requires", ("ra_bench.indexes._nothing",))
    assert registry.info("hnsw").reason == "not compiled: ra_bench.indexes._nothing"


def plug_in(monkeypatch, name: str, value: str) -> None:
    monkeypatch.delenv(registry.NO_PLUGINS_VARIABLE, raising=False)
    point = EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_entry_point_adds_a_name(monkeypatch, own, fresh_names):
    monkeypatch.syspath_prepend(str(Path(own).parent))
    plug_in(monkeypatch, "mine", "own:Mine")
    assert "mine" in registry.names()
    assert create("mine:leaf=2").leaf == 2


def test_two_of_one_name_are_an_error(monkeypatch, fresh_names):
    plug_in(monkeypatch, "hnsw", "own:Mine")
    with pytest.raises(
        UsageError, match=r"two indexes are named 'hnsw': ra_bench\.indexes\.hnsw and own:Mine"
    ):
        registry.names()


def test_entry_point_that_cannot_be_imported_is_listed(monkeypatch, fresh_names):
    plug_in(monkeypatch, "theirs", "no_such_library_anywhere:Theirs")
    info = registry.info("theirs")
    assert not info.available
    assert "no_such_library_anywhere" in info.reason


def test_entry_point_that_is_no_index_is_refused(monkeypatch, own, fresh_names):
    monkeypatch.syspath_prepend(str(Path(own).parent))
    plug_in(monkeypatch, "theirs", "own:NotAnIndex")
    with pytest.raises(UsageError, match=r"must be a concrete ra_bench\.index\.Index class"):
        create("theirs")


def test_variable_hides_entry_points(monkeypatch, fresh_names):
    plug_in(monkeypatch, "theirs", "own:Mine")
    monkeypatch.setenv(registry.NO_PLUGINS_VARIABLE, "1")
    assert "theirs" not in registry.names()


def test_listing_imports_no_library():
    program = (
        "import sys; from ra_bench import registry\n"
        "infos = [registry.info(name) for name in registry.names()]\n"
        "print([m for m in ('faiss', 'hnswlib', 'numba', 'torch', 'pynndescent') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_load_refuses_a_folder_that_holds_no_index(tmp_path):
    with pytest.raises(ValueError, match="is not a saved index"):
        registry.load(tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a saved index"):
        registry.load(tmp_path)


def test_class_method_load_refuses_another_class(tmp_path):
    index = create("flat")
    index.build(np.eye(3, dtype=np.float32))
    index.save(tmp_path)
    assert isinstance(registry.load(tmp_path), Index)
    with pytest.raises(ValueError, match="holds a Flat index, not Window"):
        registry.index_class("window").load(tmp_path)


def test_a_method_without_search_takes_no_transform() -> None:
    with pytest.raises(UsageError, match="'eigen' has no search, and takes no transform, got '@lift'"):
        parse("eigen@lift")


def test_all_leaves_out_what_cannot_run_here_with_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(registry.index_class("hnsw"), "requires", ("absent_module",))

    assert "hnsw" not in registry.split("all")
    assert "flat" in registry.split("all")
    assert "hnsw: not installed: absent_module" in registry.left_out("all, ra")
    assert registry.left_out("ra,ivf") == []
