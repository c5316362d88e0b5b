"""Interpolation to equal recall and to equal budgets, and the tables made of it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ra_bench.budget_table import are_wanted, bytes_table, time_table
from ra_bench.matched import at_budget, at_recall, sweep_points
from ra_bench.table import recall_tables

TOKEN_BYTES = 64  # of a key and its value: d 16, float16


def row(recall: float | None, search_p50_us: float, rank: int = 0, index: str = "made", **more) -> dict:
    made = {
        "status": "ok",
        "index": index,
        "k": 10,
        "document": "doc000",
        "layer": 0,
        "kv_head": 0,
        "for_budgets": False,
        "effort_rank": rank,
        "n": 1000,
        "d": 16,
        "key_type": "float16",
        "recall": recall,
        "search_p50_us": search_p50_us,
        "attend_p50_us": search_p50_us,
        "queries_per_s": 1e6 / search_p50_us,
        "keys_read": None,
        "attended": 10.0,
        "search_bytes": None,
        "attend_bytes": None,
        "mass_total": recall,
        "output_error": None if recall is None else 1 - recall,
        "output_error_p95": 0.9,
        "recall_p05": recall,
        "build_s": 2.0,
        "knn_s": None,
        "host_bytes": 5000,
        "device_bytes": 0,
        "read_gb_per_s": 8.0,
        "floor_us": None,
        "times_floor": None,
        "observe_p50_us": None,
    }
    return made | more


def at(rows: list[dict], target: float):
    return at_recall("made", sweep_points(rows), target)


def setting(attend_bytes: float | None, output_error: float, time_us: float = 10.0, **more) -> dict:
    made = row(0.5, time_us, attend_bytes=attend_bytes, output_error=output_error)
    return made | more


def within(rows: list[dict], target: float):
    return at_budget("made", sweep_points(rows), "attend_bytes", target)


def printed(*tables) -> str:
    console = Console(width=200, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_cost_is_interpolated_in_its_logarithm_between_the_settings_around() -> None:
    matched = at([row(0.8, 10.0, 0), row(1.0, 1000.0, 1)], 0.9)

    assert matched.reached == "yes"
    assert matched.values["search_p50_us"] == pytest.approx(100.0)
    assert matched.values["output_error"] == pytest.approx(0.1)
    assert matched.values["keys_share"] is None


def test_a_cheapest_setting_above_the_target_is_only_a_bound() -> None:
    matched = at([row(0.97, 10.0)], 0.9)

    assert (matched.reached, matched.values["search_p50_us"]) == ("easily", 10.0)


def test_an_index_that_never_gets_there_says_how_far_it_got() -> None:
    matched = at([row(0.3, 10.0, 0), row(0.43, 99.0, 1)], 0.9)

    assert (matched.reached, matched.nearest) == ("no", 0.43)


def test_a_dominated_setting_is_not_on_the_way() -> None:
    matched = at([row(0.8, 10.0, 0), row(0.7, 500.0, 1), row(1.0, 40.0, 2)], 0.9)

    assert matched.values["search_p50_us"] == pytest.approx(20.0)


def test_each_head_is_matched_by_itself_and_then_averaged() -> None:
    """The second head needs its third setting for what the first has with its first."""
    first = [row(0.8, 10.0, 0), row(1.0, 40.0, 1)]
    second = [
        row(recall, us, rank, kv_head=1) for rank, (recall, us) in enumerate([(0.5, 1), (0.6, 9), (0.9, 80)])
    ]

    matched = at(first + second, 0.9)

    assert matched.reached == "yes"
    assert matched.values["search_p50_us"] == pytest.approx((20 + 80) / 2)
    assert matched.values["worst_search_p50_us"] == pytest.approx(80)
    assert matched.values["output_error"] == pytest.approx(0.1)


def test_one_head_that_does_not_reach_the_recall_is_enough_to_miss_it() -> None:
    matched = at([row(1.0, 40.0), row(0.7, 40.0, kv_head=1)], 0.9)

    assert (matched.reached, matched.nearest) == ("no", 0.7)


def test_one_head_that_reaches_it_easily_makes_a_bound_of_the_mean() -> None:
    matched = at([row(0.8, 10.0, 0), row(1.0, 40.0, 1), row(0.95, 6.0, kv_head=1)], 0.9)

    assert matched.reached == "easily"
    assert matched.values["search_p50_us"] == pytest.approx((20 + 6) / 2)


def test_output_error_at_a_budget_is_interpolated_in_the_logarithm_of_the_cost() -> None:
    matched = within([setting(1000, 0.3, 10), setting(4000, 0.1, 40)], 2000)

    assert matched.reached == "yes"
    assert matched.values["output_error"] == pytest.approx(0.2)
    assert matched.values["attend_p50_us"] == pytest.approx(20)


def test_a_setting_that_costs_more_and_errs_more_is_passed_over_at_a_budget() -> None:
    matched = within([setting(1000, 0.3), setting(2000, 0.5), setting(4000, 0.1)], 2000)

    assert matched.values["output_error"] == pytest.approx(0.2)


def test_a_budget_above_the_dearest_setting_leaves_a_bound() -> None:
    matched = within([setting(1000, 0.3), setting(4000, 0.1)], 16000)

    assert (matched.reached, matched.values["output_error"], matched.values["attend_bytes"]) == (
        "easily",
        0.1,
        4000,
    )


def test_a_budget_below_the_cheapest_setting_of_any_head_is_missed_and_the_least_is_told() -> None:
    matched = within([setting(1000, 0.3), setting(4000, 0.3, kv_head=1)], 2000)

    assert (matched.reached, matched.nearest) == ("no", 4000)


def test_what_is_not_counted_cannot_be_matched() -> None:
    assert within([setting(None, 0.3)], 2000).reached == "hidden"


def test_the_table_prints_bounds_limits_and_floors() -> None:
    rows = [
        row(0.92, 10.0, index="quick", keys_read=100.0, search_bytes=2000.0),
        row(0.3, 50.0, index="stuck"),
        row(0.01, 1.0, index="random"),
    ]

    text = printed(*recall_tables(rows))

    assert "≤10.0" in text
    assert "≤10.00" in text, "share of keys read, in per cent"
    assert "max 0.920" in text, "quick never reaches .95"
    assert "max 0.300" in text
    assert "random (floor)" in text
    assert "worst head" not in text, "there is one"


def test_a_k_that_was_not_asked_for_gets_no_table() -> None:
    rows = [row(1.0, 10.0, index="flat", k=k, for_budgets=k == 15) for k in (10, 15)]

    assert len(recall_tables(rows)) == 1
    assert recall_tables([row(None, 10.0)]) == []


def test_a_time_far_above_its_floor_is_flagged() -> None:
    rows = [row(0.99, 10.0, index="near", times_floor=4.0), row(0.99, 20.0, index="far", times_floor=20.0)]

    text = printed(*recall_tables(rows))

    assert " 25 " in text, "a quarter of the ceiling"
    assert " 5! " in text
    assert "at 8.0 GB/s" in text


def company() -> list[dict]:
    """The exact scan at three k, a floor, a compressor, a search, and a method that hides its reads."""
    scans = [
        setting(32_000 + k * TOKEN_BYTES, error, 100.0, k=k, index="flat", attended=float(k))
        for k, error in ((10, 0.4), (100, 0.2), (250, 0.1))
    ]
    return [
        *scans,
        setting(10 * TOKEN_BYTES, 0.8, 1.0, index="window"),
        setting(8000, 0.3, 50.0, index="small", attended=1000.0, recall=None),
        setting(2000, 0.6, 20.0, index="search"),
        setting(8000, 0.45, 80.0, index="search", times_floor=9.0),
        setting(None, 0.25, 5.0, index="secret"),
    ]


def block(table, budget: str) -> dict[str, dict[str, str]]:
    """The rows of one budget: index → title → cell, in their order."""
    titles = [str(column.header) for column in table.columns]
    rows = [
        dict(zip(titles, cells, strict=True))
        for cells in zip(*(column.cells for column in table.columns), strict=True)
    ]
    (first,) = [place for place, cells in enumerate(rows) if cells["budget"] == budget]
    last = next((i for i in range(first + 1, len(rows)) if rows[i]["budget"]), len(rows))
    return {cells["index"]: cells for cells in rows[first:last]}


def test_the_table_at_equal_bytes_is_sorted_by_output_error_with_oracle_and_floors() -> None:
    eighth = block(bytes_table(company()), "1/8")

    errors = [(index, cells["out. error"]) for index, cells in eighth.items()]
    assert errors == [
        ("oracle", "0.176"),  # 125 of 1000 keys, between 100 and 250
        ("small", "0.300"),
        ("search", "0.450"),
        ("window (floor)", "≤0.800"),
    ]
    least = block(bytes_table(company()), "least")
    assert [(index, cells["out. error"]) for index, cells in least.items()] == [
        ("search", "min 3.1 %"),  # too much for 1/64
        ("small", "min 12.5 %"),
        ("flat", "min 51.0 %"),  # the scan reads half of all, and 10 keys and values
        ("secret", "hidden"),
    ]
    assert eighth["search"]["of ceiling %"] == "11!"
    assert eighth["small"]["KB read"] == "8"


def test_the_oracle_column_tells_the_least_error_of_as_many_tokens() -> None:
    eighth = block(bytes_table(company()), "1/8")

    told = {index: cells["oracle"] for index, cells in eighth.items()}
    assert told["small"] == "0.000", "it attends to all keys"
    assert told["search"] == "0.400", "it attends to 10"
    assert told["oracle"] == eighth["oracle"]["out. error"]


def test_the_table_at_equal_time_takes_shares_of_the_exact_scan_s() -> None:
    table = time_table(company())

    assert list(block(table, "50 µs, 1/2")) == ["secret", "small", "search", "window (floor)"]
    assert list(block(table, "6 µs, 1/16")) == ["secret", "window (floor)"]
    assert block(table, "least")["flat"]["out. error"] == "min 100.0 µs"
    assert block(table, "100 µs, 1")["flat"]["out. error"] == "0.100", "of all k the best"


def test_what_observing_costs_is_shown_where_a_method_observes() -> None:
    assert "observe µs" not in printed(bytes_table(company()))

    table = bytes_table([*company(), setting(8000, 0.2, index="h2o", observe_p50_us=7.5)])

    assert block(table, "1/8")["h2o"]["observe µs"] == "7.5"


def test_the_budget_tables_are_wanted_where_recall_does_not_tell_all() -> None:
    plain = [row(1.0, 1.0, index="flat", k=100, attended=250.0), row(0.9, 1.0, index="ivf")]

    assert not are_wanted(plain)
    assert are_wanted([*plain, row(None, 1.0, index="eigen")])
    assert are_wanted([*plain, row(0.9, 1.0, index="quest", attended=20.0)])


def test_the_worst_head_stands_beside_the_mean_where_there_are_several() -> None:
    rows = [setting(8000, 0.2), setting(8000, 0.6, kv_head=1)]

    cells = block(bytes_table(rows), "1/8")["made"]

    assert (cells["out. error"], cells["worst head"]) == ("0.400", "0.600")


def test_a_method_that_lacks_a_head_says_so() -> None:
    rows = [setting(8000, 0.2), setting(8000, 0.6, kv_head=1), setting(8000, 0.1, index="lame")]

    assert "lame (1 of 2 heads)" in printed(bytes_table(rows))
