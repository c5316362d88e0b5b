"""One unit of a comparison, measured in this process: methods without search, methods with state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ra_bench.measure import Job, measure
from ra_bench.prepare import Bundle, Request, prepare
from ra_bench.truth import exact_topk

PLANTED = Path(__file__).parent / "planted_indexes.py"
NONE_OF_SEARCH = (
    *("recall", "recall_p05", "no_hit_share", "mass_of_indexed", "mass_total", "recall_by_query"),
    *("search_p50_us", "search_bytes", "search_us_samples"),
)


@pytest.fixture(scope="module")
def bundle(dump, tmp_path_factory) -> Bundle:
    """24 tokens of two queries each, over 2360 keys; 64 learn queries with and 32 without neighbours."""
    folder = tmp_path_factory.mktemp("bundles") / "made"
    request = Request(str(dump), ("doc000", 3, 0), "honest", 1024, 10, False, {64: 5, 32: 0}, 0)
    assert prepare(request, folder) == ""
    return Bundle(folder)


def measured(bundle: Bundle, spec: str, *ks: int) -> list[dict]:
    """The last row of each setting."""
    latest: dict = {}

    def land(row: dict) -> None:
        latest[row["k"], row["effort_rank"]] = row

    same = measure(Job(spec, str(bundle.folder), ks, threads=1, repeats=2, seed=0, read_gb_per_s=2.0), land)
    return [row | same for row in latest.values()]


def test_a_method_without_search_has_no_recall_and_its_output_error_speaks(bundle) -> None:
    rows = measured(bundle, f"{PLANTED}::Mean", 10)

    assert [json.loads(row["effort"]) for row in rows] == [{"part": 0.1}, {"part": 1.0}]
    for row, count in zip(rows, (236, 2360), strict=True):
        assert {row.get(name) for name in NONE_OF_SEARCH} == {None}
        assert row["keys_read"] == row["attended"] == count
        assert row["attend_bytes"] == count * bundle.keys[0].nbytes
        assert row["attend_p50_us"] > 0
        assert row["queries_per_s"] > 0
        assert row["repeatable"] is True
        assert len(row["output_error_by_query"]) == 48
    assert rows[0]["output_error"] != rows[1]["output_error"]


@pytest.mark.parametrize("name", ["Counting", "UnsavedCounting"])
def test_a_stateful_method_observes_each_token_and_nothing_leaks(bundle, name) -> None:
    rows = measured(bundle, f"{PLANTED}::{name}", 1, 2)

    true, _ = exact_topk(bundle.test_queries, bundle.keys, 2)
    tokens = np.repeat(np.arange(24), 2)
    assert [row["k"] for row in rows] == [1, 2]
    for row in rows:
        found = tokens[:, None] + np.arange(row["k"])
        hits = (found[:, :, None] == true[:, None, : row["k"]]).any(axis=2).mean(axis=1)
        np.testing.assert_allclose(row["recall_by_query"], hits)
        assert row["repeatable"] is True
        assert row["observe_p50_us"] > 0


def test_a_method_without_state_observes_nothing(bundle) -> None:
    (row,) = measured(bundle, f"{PLANTED}::TooSure", 10)

    assert "observe_p50_us" not in row
    assert row["recall"] == 1.0


def test_the_oracle_and_the_floors_are_measured_at_every_budget_of_bytes_too(bundle) -> None:
    for name, searched in (("flat", 2360 * 32), ("window", 0)):
        rows = measured(bundle, name, 10)

        assert [row["k"] for row in rows] == [10, 37, 74, 148, 295, 590]
        assert [row["for_budgets"] for row in rows] == [False, *[True] * 5]
        assert [row.get("recall") is None for row in rows] == [False, *[True] * 5], "truth is known up to 10"
        assert [row["attend_bytes"] for row in rows] == [searched + row["k"] * 64 for row in rows]
        assert rows[-1]["output_error"] < rows[0]["output_error"]


def test_a_row_tells_its_floor_and_how_far_above_it_the_time_is(bundle) -> None:
    for row in measured(bundle, f"{PLANTED}::Prefix", 10):
        assert row["floor_us"] == pytest.approx(row["attend_bytes"] / 2e9 * 1e6)
        assert row["times_floor"] == pytest.approx(row["attend_p50_us"] / row["floor_us"])
    (hidden, *_) = measured(bundle, f"{PLANTED}::Counting", 10)
    assert "floor_us" not in hidden, "what it reads is not known"


def test_a_sweep_goes_on_while_more_effort_attends_to_more_keys(bundle) -> None:
    budgets = [json.loads(row["effort"])["budget"] for row in measured(bundle, f"{PLANTED}::Chooser", 10)]
    shares = [
        json.loads(row["effort"])["share"] for row in measured(bundle, f"{PLANTED}::TooSure:all=false", 10)
    ]

    assert budgets == [10, 20, 40, 80, 160, 320, 640], "recall is 1 from the first on"
    assert shares == [0.5, 1.0], "found all, and attends to no more"


@pytest.mark.parametrize(("neighbors", "width"), [(0, None), (3, 3), (5, 5)])
def test_an_index_gets_the_neighbours_that_it_asked_for_and_no_others(bundle, neighbors, width) -> None:
    learn, about = bundle.learn_inputs(64, neighbors)

    assert learn.shape == (64, 16)
    if width is None:
        assert about.query_neighbors is None
    else:
        np.testing.assert_array_equal(about.query_neighbors, exact_topk(learn, bundle.keys, width)[0])


def test_neighbours_that_nobody_wants_are_not_computed_and_cost_nothing(bundle) -> None:
    learn, about = bundle.learn_inputs(32, 0)

    assert learn.shape == (32, 16)
    assert about.query_neighbors is None
    assert list(bundle.facts["knn_s"]) == ["64"]
    assert not hasattr(bundle, "learn32_neighbors")


def test_only_an_index_that_wants_neighbours_is_charged_for_them(bundle, tmp_path) -> None:
    spy = f"{PLANTED}::Spy:report={tmp_path / 'seen.json'}"

    assert measured(bundle, f"{PLANTED}::Learner", 10)[0]["knn_s"] is None
    assert measured(bundle, spy, 10)[0]["knn_s"] == bundle.facts["knn_s"]["64"]


def test_a_method_that_is_slow_at_its_cheapest_is_swept_and_one_that_grows_slow_is_not(bundle) -> None:
    """With a sleep of 4 ms a call, or of 4 ms and more from the second setting on."""
    shares = {
        spec: [json.loads(row["effort"])["share"] for row in measured(bundle, f"{PLANTED}::Slow{spec}", 10)]
        for spec in ("", ":grows=true")
    }

    assert shares == {"": [0.25, 0.5, 0.9, 1.0], ":grows=true": [0.25, 0.5]}
