"""Timed passes: what is asked, in which blocks."""

from __future__ import annotations

import numpy as np

from ra_bench.index import Found, Work
from ra_bench.registry import create
from ra_bench.timing import SettingRun


def test_the_throughput_call_is_of_whole_tokens(monkeypatch):
    group, calls = 7, []
    index = create("window")
    index.build(np.ones((50, 4), np.float32), np.ones((50, 4), np.float32))

    def search(queries: np.ndarray, k: int) -> Found:
        calls.append(len(queries))
        return Found(np.zeros((len(queries), k), np.int32), Work())

    monkeypatch.setattr(index, "search", search)
    queries = np.ones((40 * group, 4), np.float32)
    run = SettingRun(index, 3, {}, threads=1)

    run.add_pass(queries, np.split(queries, 40))

    assert max(calls) > group
    assert all(rows % group == 0 for rows in calls)
