"""`ra-bench drift`: an index built whole beside the same index grown by inserts, its rows and its charts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ra_bench.datasets.sample import sample_path

from ra_bench import drift_rows
from ra_bench.drift import HeadDrift, K
from ra_bench.errors import UsageError
from ra_bench.registry import index_class
from ra_bench.results import ResultFolder
from ra_bench.split import divide, to_learn
from ra_bench.vectors import DataSet


@pytest.fixture(scope="module")
def sample():
    return DataSet.open(sample_path())


def plan(sample, specs, tokens=(1000,), **options):
    return drift_rows.Plan(sample, tuple(specs), tuple(tokens), options.get("recall", 0.95), 1)


def rows_of(plan, path):
    folder = ResultFolder(path, plan.identity, drift_rows.COLUMNS)
    return [row for unit in drift_rows.run(plan, folder) for row in unit]


def ra_bench(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ra_bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_exact_index_does_not_drift(sample, tmp_path):
    rows = rows_of(plan(sample, ["flat"], (1000, 300)), tmp_path / "run")

    assert [row["inserted"] for row in rows] == [300, 1000]
    for row in rows:
        assert row["recall_whole"] == row["recall_grown"] == 1
        assert row["keys_read_whole"] == row["keys_read_grown"] == row["n"]
        assert row["insert_us_per_token"] > 0
        assert len(drift_rows.line(row).splitlines()) == 1
    assert rows[1]["n"] - rows[0]["n"] == 700


def test_recall_is_that_of_an_exact_scan_of_the_keys_so_far(sample, tmp_path):
    (row,) = rows_of(plan(sample, ["ivf"], (2000,), recall=0.5), tmp_path / "run")
    head = sample.load(sample.heads[0])
    split = divide(head)
    keys = head.keys[split.indexed].astype(np.float32)
    queries = split.test.vectors.astype(np.float32)[::50]
    assert row["n"] == len(keys)

    from ra_bench.registry import create

    whole = create("ivf", 1)
    whole.build(head.keys[split.indexed])
    found = whole.search(split.test.vectors, K, **json.loads(row["effort"])).ids[::50]

    scores = queries @ keys.T
    plain = [len(set(np.argsort(-s)[:K]) & set(f.tolist())) / K for s, f in zip(scores, found, strict=True)]
    np.testing.assert_allclose(row["recall_whole_by_query"][::50], plain, atol=0.011)
    assert row["recall_whole"] == pytest.approx(np.mean(row["recall_whole_by_query"]), abs=1e-6)


def test_an_index_learns_from_the_same_queries_as_in_compare(sample, tmp_path, monkeypatch):
    seen = []

    class Learner(index_class("flat")):
        learn_queries = 700

        def build(self, keys, values=None, queries=None, about=None):
            super().build(keys, values, queries, about)
            seen.append((queries, about.query_positions))

    monkeypatch.setattr("ra_bench.drift.create", lambda *_: Learner())
    head = sample.load(sample.heads[0])
    HeadDrift(head, (1000,)).measure("flat", 0.95, 1)

    split, group = divide(head), head.about.group
    first_inserted = head.key_positions[split.indexed][-1000]
    before = split.learn.positions[::group] < first_inserted
    expected = to_learn(split.learn.blocks(before, group), group, 700)
    assert len(seen) == 2
    for queries, positions in seen:
        np.testing.assert_array_equal(positions, expected.positions)
        np.testing.assert_array_equal(queries, expected.vectors)


def test_a_run_goes_on_where_it_stopped(sample, tmp_path):
    first = rows_of(plan(sample, ["flat"]), tmp_path / "run")

    both = rows_of(plan(sample, ["flat", "window"]), tmp_path / "run")

    assert both[0] == first[0]  # its times too: it was not measured again
    assert {row["index"] for row in both} == {"flat", "window"}
    with pytest.raises(UsageError, match="holds another run"):
        rows_of(plan(sample, ["flat"], (500,)), tmp_path / "run")


def test_an_index_that_fails_is_a_row_with_its_reason(sample, tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(HeadDrift, "measure", fails)

    (row,) = rows_of(plan(sample, ["flat"]), tmp_path / "run")

    assert (row["status"], row["reason"]) == ("failed", "MemoryError: no room")
    assert "no room" in drift_rows.line(row)


@pytest.mark.parametrize(
    ("spec", "tokens", "problem"),
    [("nsg", (10,), "cannot insert"), ("flat", (40000,), "--tokens"), ("flat", (), "--tokens")],
)
def test_what_cannot_be_measured_is_refused(sample, tmp_path, spec, tokens, problem):
    with pytest.raises(UsageError, match=problem):
        rows_of(plan(sample, [spec], tokens), tmp_path / "run")


def test_the_command_prints_its_rows_and_the_report_draws_them(tmp_path):
    out = tmp_path / "run"
    done = ra_bench(
        *("drift", "--indexes", "flat,window", "--tokens", "100,1k", "--json", "--no-report", "--out", out)
    )

    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["index"], row["inserted"]) for row in rows] == [
        *(("flat", 100), ("flat", 1024), ("window", 100), ("window", 1024))
    ]
    assert all(row["machine"] and row["environment"] and row["schema"] for row in rows)
    assert not {"recall_whole_by_query"} & rows[0].keys()
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    from ra_bench.report.writing import make_page

    page = make_page([Path(out)])
    figures = {figure.name: figure for figure in page.figures}
    assert list(figures) == ["insert-drift", "drift-tokens"]
    assert page.runs[0]["commands"][0].startswith("ra-bench drift --indexes flat,window")
    assert "2 indexes that took later tokens" in page.summary


def test_what_is_refused_leaves_no_folder(tmp_path):
    done = ra_bench("drift", "--indexes", "flat", "--tokens", "40000", "--out", tmp_path / "run")

    assert done.returncode == 2
    assert done.stderr.startswith("ra-bench: --tokens must be from 1 to below the 31104 keys")
    assert not (tmp_path / "run").exists()


def test_a_data_set_of_another_family_is_opened_and_says_what_it_lacks(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, n in (("keys", 2000), ("queries", 50)):
        np.save(folder / f"{name}.npy", np.random.default_rng(n).normal(size=(n, 8)).astype(np.float32))

    done = ra_bench("drift", "--indexes", "flat", "--data", folder, "--tokens", "10")

    assert done.returncode == 2
    assert "--data: drift needs values and positions, which" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["ra", "qivf"])
def test_an_eighth_of_the_keys_inserted_costs_at_most_a_point_of_recall(sample, tmp_path, spec):
    (row,) = rows_of(plan(sample, [spec], (3900,)), tmp_path / "run")
    assert row["recall_grown"] >= row["recall_whole"] - 0.01
