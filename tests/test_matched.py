"""Interpolation to equal recall, and the table made of it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ra_bench.matched import at_recall, sweep_points
from ra_bench.table import tables


def row(recall: float, search_p50_us: float, rank: int = 0, index: str = "made", **more) -> dict:
    made = {
        "status": "ok",
        "index": index,
        "k": 10,
        "document": "doc000",
        "layer": 0,
        "kv_head": 0,
        "effort_rank": rank,
        "n": 1000,
        "recall": recall,
        "search_p50_us": search_p50_us,
        "attend_p50_us": search_p50_us,
        "queries_per_s": 1e6 / search_p50_us,
        "keys_read": None,
        "search_bytes": None,
        "mass_total": recall,
        "output_error": 1 - recall,
        "recall_p05": recall,
        "build_s": 2.0,
        "knn_s": None,
        "host_bytes": 5000,
        "device_bytes": 0,
    }
    return made | more


def test_cost_is_interpolated_in_its_logarithm_between_the_settings_around() -> None:
    points = sweep_points([row(0.8, 10.0, 0), row(1.0, 1000.0, 1)])

    matched = at_recall("made", points, 0.9)

    assert matched.reached == "yes"
    assert matched.values["search_p50_us"] == pytest.approx(100.0)
    assert matched.values["output_error"] == pytest.approx(0.1)
    assert matched.values["keys_share"] is None


def test_a_cheapest_setting_above_the_target_is_only_a_bound() -> None:
    matched = at_recall("made", sweep_points([row(0.97, 10.0)]), 0.9)

    assert (matched.reached, matched.values["search_p50_us"]) == ("easily", 10.0)


def test_an_index_that_never_gets_there_says_how_far_it_got() -> None:
    matched = at_recall("made", sweep_points([row(0.3, 10.0, 0), row(0.43, 99.0, 1)]), 0.9)

    assert (matched.reached, matched.best_recall) == ("no", 0.43)


def test_a_dominated_setting_is_not_on_the_way() -> None:
    points = sweep_points([row(0.8, 10.0, 0), row(0.7, 500.0, 1), row(1.0, 40.0, 2)])

    assert at_recall("made", points, 0.9).values["search_p50_us"] == pytest.approx(20.0)


def test_heads_are_averaged_setting_by_setting_and_the_worst_is_kept() -> None:
    rows = [row(0.8, 10.0, 0), row(1.0, 20.0, 1), row(1.0, 12.0, 0, kv_head=1)]

    first, second = sweep_points(rows)

    assert first.recall == pytest.approx(0.9)
    assert first.values["worst_head_recall"] == 0.8
    assert second.values["search_p50_us"] == pytest.approx(16.0), "a head that was done keeps its last"


def test_the_table_prints_bounds_limits_and_floors() -> None:
    rows = [
        row(0.92, 10.0, index="quick", keys_read=100.0, search_bytes=2000.0),
        row(0.3, 50.0, index="stuck"),
        row(0.01, 1.0, index="random"),
    ]
    console = Console(width=160, file=io.StringIO())

    for table in tables(rows):
        console.print(table)

    text = console.file.getvalue()
    assert "≤10.0" in text
    assert "≤10.00" in text, "share of keys read, in per cent"
    assert "max 0.920" in text, "quick never reaches .95"
    assert "max 0.300" in text
    assert "floor" in text
