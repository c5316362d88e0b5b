"""Growth exponents are slopes of logarithms."""

from __future__ import annotations

import pytest

from ra_bench.scaling import exponent, table


def test_the_exponent_is_that_of_a_power_law():
    assert exponent([10, 100, 1000], [3 * n**0.7 for n in (10, 100, 1000)]) == pytest.approx(0.7)
    assert exponent([10, 100], [5, None]) is None
    assert exponent([10, 10], [5, 6]) is None


def test_an_index_that_does_not_get_there_has_no_cost_at_that_recall():
    row = {
        "status": "ok",
        "k": 10,
        "document": "d",
        "layer": 0,
        "kv_head": 0,
        "effort_rank": 0,
        "knn_s": None,
    }
    row |= {"build_s": 1.0, "host_bytes": 10**6, "device_bytes": 0, "keys_read": 50.0}
    row |= {
        "index": "made",
        "d": 16,
        "key_type": "float32",
        "attend_p50_us": 9.0,
        "queries_per_s": 1.0,
        "search_bytes": 1.0,
    }
    low, high = (
        {n: [row | {"n": n, "recall": recall, "search_p50_us": 0.1 * n}] for n in (100, 200)}
        for recall in (0.5, 0.99)
    )
    cells = [list(column.cells) for column in table(high, 0.95, 10).columns]
    assert cells[4] == ["10.0", "20.0", "1.00"]
    assert [list(column.cells) for column in table(low, 0.95, 10).columns][4] == ["–", "–", "–"]
