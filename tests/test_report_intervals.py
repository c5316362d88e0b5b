"""The intervals of a page: against the resamples written out, and what a page says of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
from result_folders import compare_folder

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from ra_bench.matched import at_recall
from ra_bench.report import intervals
from ra_bench.report.charts.paired import paired_rows
from ra_bench.report.material import Material
from ra_bench.report.rows import read_runs
from ra_bench.report.writing import make_page
from ra_bench.statistics import by_head, by_query, passes


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = compare_folder(tmp_path_factory.mktemp("results") / "run", layers=3, kv_heads=2, ks=(10,))
    return Material(read_runs([folder]))


def test_a_setting_s_interval_is_that_of_all_its_queries_repeats_and_heads(material) -> None:
    (sure,) = (sure for where, sure in material.intervals.items() if where[-1] == "ra")
    rows = [row for row in material.compare if row["index"] == "ra" and row["effort_rank"] == 1]
    stored = [pq.read_table(row["row_file"]).slice(row["row_place"], 1).to_pylist()[0] for row in rows]

    ends = sure.means[1]

    recalls = [np.array(row["recall_by_query"]) for row in stored]
    assert ends["recall"].by_query == pytest.approx(by_query(recalls, block=2))
    times = [passes(row["search_us_samples"], 3) for row in stored]
    assert ends["search_p50_us"].by_query == pytest.approx(by_query(times, quantile=0.5))
    assert ends["recall"].by_head == pytest.approx(by_head(np.array([row["recall"] for row in rows])))
    assert ends["queries_per_s"].by_query is None
    head = rows[0]["head"]
    assert sure.heads[head, 1]["recall"].by_query == pytest.approx(by_query(recalls[:1], block=2))


def test_draws_at_equal_recall_are_those_of_the_table_draw_by_draw() -> None:
    rng = np.random.default_rng(0)
    settings, draws, target = 6, 50, 0.9
    recall = np.sort(rng.uniform(0.7, 1.0, (settings, draws)), axis=0) + rng.normal(
        0, 0.02, (settings, draws)
    )
    cost = np.linspace(10, 60, settings)[:, None] * rng.uniform(0.6, 1.4, (settings, draws))
    error = rng.uniform(0.1, 0.2, (settings, draws))
    recall[:, 0] = 0.5  # a draw that never gets there
    recall[:, 1] = 0.95  # one whose cheapest setting does

    fast = intervals.draws_at_recall(recall, cost, {"output_error": error}, target)

    for draw in range(draws):
        columns = (recall, cost, error)
        names = ("recall", "search_p50_us", "output_error")
        sweep = [dict(zip(names, (c[s, draw] for c in columns), strict=True)) for s in range(settings)]
        plain = at_recall("", [sweep], target)
        assert fast["search_p50_us"][draw] == pytest.approx(plain.values.get("search_p50_us", math.inf))
        expected = plain.values.get("output_error", math.nan)
        assert fast["output_error"][draw] == pytest.approx(expected, nan_ok=True)


def test_points_and_the_table_at_equal_recall_carry_their_intervals(material) -> None:
    page = make_page([run.path for run in material.runs])
    figures = {figure.name: figure for figure in page.figures}
    points = [
        row for row in figures["quality-cost"].rows if row["index"] == "ra" and row["heads"] == "6 of 6"
    ]

    for point in points:
        assert point["recall_low"] <= point["recall_high"]
        assert point["search_p50_us_sure"].count("by query") == 1
        assert point["search_p50_us_sure"].count("by head") == 1
    row = next(
        row for row in figures["equal-recall"].rows if row["index"] == "ra" and row["recall"] == "0.90"
    )
    assert "by query" in row["search_p50_us_sure"]
    assert "by head" in row["output_error_sure"]
    assert not any("samples" in name or "by_query" in name for name in points[0])


def test_a_page_of_very_many_rows_is_content_with_intervals_by_head(material, monkeypatch) -> None:
    monkeypatch.setattr(intervals, "MOST_SAMPLED_ROWS", 10)

    found = intervals.intervals(material.compare)

    ends = [one["recall"] for sure in found.values() for one in sure.means]
    assert all(one.by_query is None and one.by_head is not None for one in ends)


def test_an_index_is_tested_against_the_reference_on_the_heads_of_both(material) -> None:
    rows = list(paired_rows(material.compare, material.indexes))
    here = [row for row in rows if row["recall"] == "0.90" and row["quantity"] == "search_p50_us"]

    assert {row["reference"] for row in rows} == {"ra"}
    assert {row["index"] for row in here} == {"ivf", "hnsw@lift"}  # hnsw does not get there
    assert {row["heads"] for row in here} == {6}
    for row in here:
        assert row["change"] == pytest.approx(row["after"] / row["before"] - 1)
        assert row["change_low"] <= row["change"] <= row["change_high"]
        assert row["p"] >= 2 * 2 / 2**6
        assert "Holm" in row["verdict"]  # two tests over six heads reach .0625 at best


def test_fewer_than_six_heads_are_told_that_the_test_cannot_reach_05(tmp_path) -> None:
    folder = compare_folder(tmp_path / "run", layers=2, kv_heads=2, ks=(10,))
    page = make_page([folder])
    (figure,) = (figure for figure in page.figures if figure.name == "against-reference")

    assert "at most 4" in figure.how
    assert {row["verdict"] for row in figure.rows} == {"4 heads: the test cannot reach .05"}
