"""The whole main path on a small made dump: plan, child processes, rows, resume, failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ra_bench.compare import Settings, make_plan, run_plan, source_hash
from ra_bench.errors import UsageError
from ra_bench.registry import index_class
from ra_bench.results import COLUMNS, ResultFolder
from ra_bench.truth import exact_topk
from ra_bench.vectors import DataSet

PLANTED = Path(__file__).parent / "planted_indexes.py"


class Silent:
    """A watcher that keeps the names of what ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def start(self, name: str) -> None:
        self.ran.append(name)

    def end(self, name: str, status: str, reason: str) -> None:
        pass


def run(dump: Path, out: Path, *indexes: str, force: bool = False, **options):
    settings = Settings(indexes=indexes, data=str(dump), ks=(10,), repeats=2, **options)
    plan = make_plan(settings)
    watcher = Silent()
    rows = run_plan(plan, ResultFolder(out, plan.identity), watcher, force)
    return rows, watcher.ran


def of(rows: list, index: str) -> list:
    """Of the k that was asked for."""
    return [row for row in rows if row["index"] == index and not row["for_budgets"]]


@pytest.fixture(scope="module")
def compared(dump, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    rows, ran = run(dump, out, f"{PLANTED}::Prefix")
    return rows, ran, out


def test_the_oracle_and_the_floors_are_always_measured(compared) -> None:
    rows, _, _ = compared

    assert [row["recall"] for row in of(rows, "flat")] == [1.0]
    assert of(rows, "flat")[0]["keys_read"] == of(rows, "flat")[0]["n"]
    for floor in ("window", "random"):
        assert of(rows, floor)[0]["recall"] < 0.2


def test_a_row_has_every_column_of_the_schema(compared) -> None:
    rows, _, _ = compared

    for row in rows:
        assert list(row) == list(COLUMNS)
        assert row["status"] == "ok"
        assert row["attend_p50_us"] > 0
        assert row["read_gb_per_s"] > 0
        if row["for_budgets"]:
            assert row["recall"] is row["recall_by_query"] is None, "truth is known up to k"
        else:
            assert row["recall"] == pytest.approx(np.mean(row["recall_by_query"]), abs=1e-6)
        environment = json.loads(row["environment"])
        assert environment["versions"]["numpy"]
        assert environment["variables"].get("OMP_WAIT_POLICY") == os.environ.get("OMP_WAIT_POLICY")


def test_quality_grows_with_effort_and_matches_a_recount(compared, dump) -> None:
    rows = of(compared[0], f"{PLANTED}::Prefix")
    head = DataSet.open(dump).load(("doc000", 3, 0))
    keys = head.keys[128 : 3000 - 512]
    true, _ = exact_topk(head.decode_queries, keys, 10)

    assert [json.loads(row["effort"])["share"] for row in rows] == [0.25, 0.5, 0.9, 1.0]
    for row in rows:
        first = round(json.loads(row["effort"])["share"] * len(keys))
        assert row["recall"] == pytest.approx((true < first).mean(), abs=1e-3)
        assert row["keys_read"] == first
    assert [row["recall"] for row in rows] == sorted(row["recall"] for row in rows)
    assert rows[-1]["mass_total"] > rows[0]["mass_total"]
    assert rows[-1]["output_error"] < rows[0]["output_error"]


def test_output_error_is_that_of_dense_attention_over_what_was_found(compared, dump) -> None:
    row = of(compared[0], "flat")[0]
    head = DataSet.open(dump).load(("doc000", 3, 0))
    errors = []
    for query, position in zip(head.decode_queries, head.decode_query_positions, strict=True):
        scores = head.keys[: position + 1].astype(np.float64) @ query
        indexed = np.arange(128, 3000 - 512)
        kept = np.ones(position + 1, bool)
        kept[indexed] = False
        kept[indexed[np.argsort(-scores[indexed])[:10]]] = True
        weights = np.exp(scores - scores.max())
        values = head.values[: position + 1].astype(np.float64)
        exact = weights @ values / weights.sum()
        sparse = (weights * kept) @ values / (weights * kept).sum()
        errors.append(np.linalg.norm(sparse - exact) / np.linalg.norm(exact))

    np.testing.assert_allclose(row["output_error_by_query"], errors, rtol=1e-3, atol=1e-5)


def test_the_same_command_measures_only_what_is_missing(compared, dump) -> None:
    rows, _, out = compared

    again, ran = run(dump, out, f"{PLANTED}::Prefix")
    assert ran == []
    assert again == rows
    victim = of(rows, "random")[0]["unit"]
    (out / "rows" / f"{victim}.parquet").unlink()
    _, ran = run(dump, out, f"{PLANTED}::Prefix")
    assert ran == ["truth of doc000/layer3/head0", "random on doc000/layer3/head0"]


def test_an_index_never_sees_test_queries_scores_or_truth(dump, tmp_path) -> None:
    report = tmp_path / "seen.json"

    rows, _ = run(dump, tmp_path / "out", f"{PLANTED}::Spy:report={report}")

    seen = json.loads(report.read_text())
    head = DataSet.open(dump).load(("doc000", 3, 0))
    assert seen["n"] == 3000 - 512 - 128
    assert seen["key_positions"] == list(range(128, 3000 - 512))
    assert len(seen["queries"]) == 64
    assert max(seen["query_positions"]) < head.decode_query_positions.min()
    test = {tuple(query) for query in head.decode_queries.tolist()}
    assert not test & {tuple(query) for query in seen["queries"]}
    # The neighbours are those of the learn queries alone.
    keys = head.keys[128 : 3000 - 512]
    expected, _ = exact_topk(np.array(seen["queries"], np.float32), keys, 5)
    np.testing.assert_array_equal(seen["neighbors"], expected)
    known = {"query_positions", "query_heads", "query_neighbors", "key_positions"}
    assert known <= set(seen["about"])
    assert not [name for name in seen["about"] if "true" in name or "test" in name or "score" in name]
    assert of(rows, f"{PLANTED}::Spy:report={report}")[0]["learn_queries"] == 64


def test_threads_reach_the_index_and_its_libraries(dump, tmp_path) -> None:
    report = tmp_path / "seen.json"

    run(dump, tmp_path / "out", f"{PLANTED}::Spy:report={report}", threads=2)

    seen = json.loads(report.read_text())
    assert (seen["threads"], seen["thread_variables"]) == (2, "2")


def test_latency_is_that_of_one_thread_whatever_threads_are_given(dump, tmp_path) -> None:
    report = tmp_path / "calls.txt"

    run(dump, tmp_path / "out", f"{PLANTED}::Threads:report={report}", threads=2)

    calls = {tuple(map(int, line.split())) for line in report.read_text().splitlines()}
    assert {threads for rows, threads in calls if rows == 2} == {1}, "one token of a group of two"
    assert {threads for rows, threads in calls if rows > 2} == {2}, "the throughput call"


def test_what_failed_is_tried_again_and_what_went_well_is_not(dump, tmp_path) -> None:
    spec = f"{PLANTED}::Raises"
    rows, _ = run(dump, tmp_path / "out", spec)
    assert of(rows, spec)[-1]["status"] == "failed"

    _, ran = run(dump, tmp_path / "out", spec)

    assert ran == ["truth of doc000/layer3/head0", f"{spec} on doc000/layer3/head0"]


@pytest.mark.parametrize(
    ("planted", "status", "reason"),
    [
        ("TooMany", "failed", "search must give ids (48, 10) int32, got (48, 2360)"),
        ("Brackets", "failed", "ValueError: wrong [/x] shape [float32]"),
        ("Raises", "failed", "RuntimeError: planted failure"),
        ("Crashes", "failed", "killed by SIGSEGV"),
        ("Hangs", "timeout", "not done after 10 s"),
        ("Leaks", "oom", "used more than 1.5 GB"),
    ],
)
def test_a_failure_is_a_row_with_its_reason(dump, tmp_path, planted, status, reason) -> None:
    spec = f"{PLANTED}::{planted}"

    limit_s = 10.0 if planted == "Hangs" else 60.0  # a busy machine starts a process slowly
    rows, _ = run(dump, tmp_path / "out", spec, timeout_s=limit_s, memory_bytes=1_500_000_000)

    *measured, failure = of(rows, spec)
    assert failure["status"] == status
    assert failure["reason"].startswith(reason)
    assert len(measured) == (planted == "Raises"), "what was measured before the failure is kept"
    assert of(rows, "flat")[0]["status"] == "ok", "other units are not hurt"


def test_a_worker_dies_with_its_parent(dump, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ["compare", "--indexes", f"{PLANTED}::Hangs", "--data", str(dump), "--out", str(out)]
    parent = subprocess.Popen([sys.executable, "-m", "ra_bench", *arguments], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any((out / "log").glob("[0-9a-f]*.log")):
        time.sleep(0.05)
    time.sleep(1)  # the child is past its first lines, in which it asks to die with its parent
    pids = children.read_text().split()

    parent.kill()
    parent.wait()

    assert pids, "the hanging unit was running"
    while time.monotonic() < deadline and any(map(is_running, pids)):
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_sliding_window_layer_is_skipped_with_its_reason(make_dump, tmp_path) -> None:
    rows, _ = run(make_dump(window=256), tmp_path / "out", "flat")

    assert {row["status"] for row in rows} == {"skipped"}
    assert "within a window of 256 tokens" in rows[0]["reason"]


def test_two_heads_are_measured_one_after_the_other(make_dump, tmp_path) -> None:
    rows, ran = run(make_dump(kv_heads=2), tmp_path / "out", "flat")

    assert {row["kv_head"] for row in of(rows, "flat")} == {0, 1}
    assert ran[0] == "truth of doc000/layer3/head0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": (0,)}, "--k must be at least 1, got 0"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"seed": -1}, r"--seed must be at least 0 and below 1,000,000,000, got -1"),
        ({"timeout_s": float("nan")}, "--timeout must be more than 0 seconds, got nan"),
        ({"indexes": ("flatt",)}, "unknown index 'flatt'. Did you mean 'flat'"),
        ({"layers": (7,)}, "has no layer 7; it has 3"),
        ({"kv_heads": (4,)}, "has no kv_head 4; it has 0"),
        ({"data": "/no/such/folder"}, "no such folder"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_before_anything_runs(dump, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(Settings(**{"indexes": ("flat",), "data": str(dump)} | options))


def test_k_above_the_number_of_indexed_keys_is_refused(dump, tmp_path) -> None:
    plan = make_plan(Settings(indexes=("flat",), data=str(dump), ks=(5000,)))

    with pytest.raises(UsageError, match="--k must be at most the 2360 indexed keys"):
        run_plan(plan, ResultFolder(tmp_path / "out", plan.identity), Silent())


def test_a_folder_of_another_run_is_refused(compared, dump) -> None:
    plan = make_plan(Settings(indexes=("flat",), data=str(dump), ks=(20,)))

    with pytest.raises(UsageError, match=r"holds another run: its ks is \[10\], not \[20\]"):
        ResultFolder(compared[2], plan.identity)


def test_a_folder_with_other_files_is_refused(dump, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(UsageError, match="new folder or one of the same run"):
        ResultFolder(tmp_path, {})


def test_a_change_to_any_source_in_the_folder_of_a_method_is_measured_anew(tmp_path) -> None:
    folder = tmp_path / "method"
    folder.mkdir()
    (folder / "__init__.py").write_text(PLANTED.read_text())
    sources = [folder / name for name in ("router.py", "search.cpp", "search.hpp")]
    for file in (*sources, folder / "NOTES.md"):
        file.write_text("1")
    cls = index_class(f"{folder}/__init__.py::Prefix")
    hash_now = source_hash.__wrapped__  # its answers are kept for a process

    before = hash_now(cls)
    (folder / "NOTES.md").write_text("2")
    assert hash_now(cls) == before
    for file in sources:
        file.write_text("2")
        assert hash_now(cls) != before, file.name
        before = hash_now(cls)


def test_a_method_in_a_file_of_its_own_does_not_depend_on_its_neighbours(tmp_path) -> None:
    file = tmp_path / "method.py"
    file.write_text(PLANTED.read_text())
    cls = index_class(f"{file}::Prefix")
    before = source_hash.__wrapped__(cls)
    (tmp_path / "other.py").write_text("1")
    assert source_hash.__wrapped__(cls) == before
