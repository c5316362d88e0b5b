"""Hostile input: damaged and foreign dumps, indexes, specs and rows end in one error, and touch nothing else.

What may be raised is named; anything else, a crash or a hang fails the test.
"""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ra_bench import registry
from ra_bench.errors import RaBenchError, RunError, UsageError
from ra_bench.head_file import METADATA_KEY
from ra_bench.results import ResultFolder
from ra_bench.vectors import DataSet, fingerprint, is_dump_file

ROOT = Path(__file__).parent.parent
# One folder serves all examples: each restores what it damages.
fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damage(content: bytes, edits: list[tuple[float, int]], cut: float) -> bytes:
    """`content` with bytes changed at relative places, then cut to a share of its length."""
    changed = bytearray(content[: round(cut * len(content))])
    for place, byte in edits:
        if changed:
            changed[int(place * len(changed)) % len(changed)] = byte
    return bytes(changed)


@contextmanager
def restored(*files: Path) -> Iterator[None]:
    """Lets a test damage `files`, and puts them back."""
    whole = {file: file.read_bytes() for file in files}
    try:
        yield
    finally:
        for file, content in whole.items():
            file.write_bytes(content)


def refusal(call: Callable[[], object], *expected: type[Exception]) -> str:
    """What `call` says in one of the errors that it may raise; empty where it works."""
    try:
        call()
    except expected as error:
        return str(error) or "an error that says nothing"
    return ""


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)
CUTS = st.one_of(st.just(1.0), st.floats(0, 1))


@pytest.fixture(scope="module")
def victim(make_dump) -> Path:
    """A small dump for tests to damage."""
    return make_dump(prefill_tokens=700, decode_steps=2)


def relist(folder: Path) -> None:
    """Makes the manifest agree with the files: the reader itself must then see what is wrong."""
    path = folder / "dump.json"
    manifest = json.loads(path.read_text())
    for file in manifest["files"]:
        file.update(fingerprint(folder / file["name"]))
    path.write_text(json.dumps(manifest))


def read_all(folder: Path) -> None:
    data = DataSet.open(folder)
    for head in data.heads:
        vectors = data.load(head)
        assert np.isfinite(vectors.keys).all()
        assert len(vectors.keys) == len(vectors.values) == len(vectors.key_positions)


@fuzz
@given(kind=st.sampled_from(["keys", "values", "prefill_queries", "decode_queries"]), edits=EDITS, cut=CUTS)
def test_a_damaged_parquet_file_is_read_right_or_refused(victim, kind, edits, cut) -> None:
    file, manifest = victim / f"doc000_layer3_head0_{kind}.parquet", victim / "dump.json"
    with restored(file, manifest):
        file.write_bytes(damage(file.read_bytes(), edits, cut))
        relist(victim)

        assert "\n" not in refusal(lambda: read_all(victim), UsageError)


@fuzz
@given(edits=EDITS, cut=CUTS)
def test_a_damaged_manifest_is_read_right_or_refused(victim, edits, cut) -> None:
    manifest = victim / "dump.json"
    with restored(manifest):
        manifest.write_bytes(damage(manifest.read_bytes(), edits, cut))

        assert "\n" not in refusal(lambda: read_all(victim), UsageError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@fuzz
@given(manifest=JSON)
def test_any_json_as_a_manifest_is_refused(victim, manifest) -> None:
    with restored(victim / "dump.json"):
        (victim / "dump.json").write_text(json.dumps(manifest))

        assert refusal(lambda: DataSet.open(victim), UsageError)


@fuzz
@given(data=st.data())
def test_any_metadata_of_a_file_is_read_right_or_refused(victim, data) -> None:
    file = victim / "doc000_layer3_head0_keys.parquet"
    with restored(file, victim / "dump.json"):
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[METADATA_KEY])
        about[data.draw(st.sampled_from(sorted(about)))] = data.draw(JSON)
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about).encode()}), file)
        relist(victim)

        assert "\n" not in refusal(lambda: read_all(victim), UsageError)


@given(
    name=st.text(max_size=40) | st.from_regex(r"(\.\./)+doc000_layer0_head0_keys\.parquet", fullmatch=True)
)
@settings(max_examples=200, derandomize=True, database=None)
def test_a_dump_s_file_name_is_never_a_path(name) -> None:
    if is_dump_file(name):
        assert Path(name).name == name
        assert re.fullmatch(r"\w+\.parquet", name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A saved `ra` index."""
    folder = tmp_path_factory.mktemp("index") / "ra"
    rng = np.random.default_rng(0)
    index = registry.create("ra:degree=8")
    index.build(rng.normal(size=(300, 16)).astype(np.float16), rng.normal(size=(300, 16)).astype(np.float16))
    index.save(folder)
    return folder


def answer(folder: Path) -> None:
    found = registry.load(folder, mmap=False).search(np.ones((2, 16), np.float32), 10)
    assert ((found.ids >= -1) & (found.ids < 300)).all()


@fuzz
@given(place=st.floats(0, 1, exclude_max=True), edits=EDITS, cut=CUTS)
def test_a_damaged_ra_index_answers_with_ids_that_exist_or_is_refused(saved, place, edits, cut) -> None:
    files = sorted(path for path in saved.iterdir() if path.is_file())
    file = files[int(place * len(files))]
    with restored(file):
        file.write_bytes(damage(file.read_bytes(), edits, cut))

        refusal(lambda: answer(saved), ValueError, RaBenchError)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_in_an_index_s_array_is_never_loaded(saved, tmp_path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(saved, folder)
    np.save(folder / "graph0_seeds.npy", np.array([Bomb(tmp_path / "exploded")], object), allow_pickle=True)
    about = json.loads((folder / "index.json").read_text())
    about["files"]["graph0_seeds.npy"] = (folder / "graph0_seeds.npy").stat().st_size
    (folder / "index.json").write_text(json.dumps(about))

    with pytest.raises(ValueError, match="not a whole Ra index"):
        registry.load(folder)

    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / "graph0_seeds.npy").read_bytes()[128:])  # it would have
    assert (tmp_path / "exploded").exists()


def test_no_code_of_ours_unpickles_or_evaluates_what_it_reads() -> None:
    forbidden = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for folder in ("ra_bench", "indexes", "datasets"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                assert not forbidden & imported(node), file
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec"), file
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    assert ast.unparse(node.value) == "False", file


def imported(node: ast.AST) -> set[str]:
    """The packages that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


PIECES = st.sampled_from(
    ["ra", "ivf", "tail", ":", "::", "@", "lift", "(", ")", "=", ",", "nprobe", "4", "../x"]
)


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(text=st.text(max_size=30) | st.lists(PIECES, max_size=10).map("".join))
def test_any_text_as_a_spec_is_read_or_refused_in_one_error(text) -> None:
    def read() -> None:
        for part in registry.split(text):
            spec = registry.parse(part)
            assert registry.parse(str(spec)) == spec

    refusal(read, UsageError)


def test_a_very_deep_spec_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="at most 8 wrappers, got 5000"):
        registry.parse("tail(" * 5000 + "ra" + ")" * 5000)


@pytest.fixture(scope="module")
def landed(tmp_path_factory) -> ResultFolder:
    """A result folder with the rows of unit `a`."""
    folder = ResultFolder(tmp_path_factory.mktemp("rows") / "out", {"verb": "compare"})
    folder.write("a", [{"unit": "a", "status": "ok", "recall": 0.5, "recall_by_query": [0.5] * 50}])
    return folder


@fuzz
@given(edits=EDITS, cut=CUTS)
def test_a_damaged_row_file_is_refused_by_name_and_measured_again(landed, edits, cut) -> None:
    path = landed.path / "rows" / "a.parquet"
    with restored(path):
        path.write_bytes(damage(path.read_bytes(), edits, cut))

        refused = refusal(lambda: landed.read(["a"]), RunError)

        assert not refused or "a.parquet" in refused
        assert not refused or not landed.has("a")


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"unit": ["a"]}),
        pa.table({"status": [1.5], "unit": ["a"]}),
        pa.table({"unit": pa.array([], pa.string()), "status": pa.array([], pa.string())}),
    ],
)
def test_a_foreign_row_file_is_no_result(landed, table) -> None:
    path = landed.path / "rows" / "b.parquet"
    pq.write_table(table, path)

    assert not landed.has("b")
    with pytest.raises(RunError, match=r"b\.parquet' holds rows of another schema"):
        landed.read(["b"])


def test_the_rows_of_one_unit_are_not_taken_for_another_s(landed) -> None:
    shutil.copy(landed.path / "rows" / "a.parquet", landed.path / "rows" / "c.parquet")

    assert landed.has("a")
    assert not landed.has("c")


def test_a_repository_s_own_code_runs_only_when_asked_for() -> None:
    from ra_bench.decode.plan import Settings
    from ra_bench.dump_plan import DumpSettings
    from ra_bench.models import Source

    assert Settings.trust_remote_code is DumpSettings.trust_remote_code is Source.trust_remote_code is False
    for file in (ROOT / "ra_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) != "True", file


def test_model_files_are_read_by_their_libraries_alone() -> None:
    for file in (ROOT / "ra_bench").rglob("*.py"):
        packages = {name for node in ast.walk(ast.parse(file.read_text())) for name in imported(node)}
        assert not packages & {"struct", "mmap", "zipfile"}, f"{file} takes a binary file apart by itself"
        assert "torch.load" not in file.read_text(), file
