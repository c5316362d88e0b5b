"""Timed passes: what is asked, in which blocks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ra_bench.index import Found, Work
from ra_bench.registry import create
from ra_bench.snapshot import Snapshot
from ra_bench.timing import SettingRun

PLANTED = Path(__file__).parent / "planted_indexes.py"


def test_the_throughput_call_is_of_whole_tokens(monkeypatch):
    group, calls = 7, []
    index = create("window")
    index.build(np.ones((50, 4), np.float32), np.ones((50, 4), np.float32))

    def search(queries: np.ndarray, k: int) -> Found:
        calls.append(len(queries))
        return Found(np.zeros((len(queries), k), np.int32), Work())

    monkeypatch.setattr(index, "search", search)
    queries = np.ones((40 * group, 4), np.float32)
    run = SettingRun(index, unchanged(index), 3, {}, threads=1)

    run.add_pass(queries, np.split(queries, 40))

    assert max(calls) > group
    assert all(rows % group == 0 for rows in calls)


def unchanged(index) -> Snapshot:
    def rebuild() -> None:
        raise AssertionError("an index without state is never restored")

    return Snapshot([index], rebuild)


def test_a_method_without_search_is_timed_by_its_attention():
    index = create(f"{PLANTED}::Mean")
    index.build(np.ones((50, 4), np.float32), np.ones((50, 4), np.float32))
    queries = np.ones((40, 4), np.float32)
    run = SettingRun(index, unchanged(index), 3, {}, threads=1)

    run.add_pass(queries, np.split(queries, 20))
    run.add_pass(queries, np.split(queries, 20))

    assert (run.found, run.search_us) == ([], [])
    assert [len(one_pass) for one_pass in run.attend_us] == [20, 20]
    assert len(run.queries_per_s) == 2
    assert run.is_repeatable is True
    assert run.spent_s > 0


@pytest.mark.parametrize("name", ["Counting", "UnsavedCounting"])
def test_state_grows_token_by_token_and_is_undone_after_each_series(name):
    index = create(f"{PLANTED}::{name}")
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    queries = np.ones((40, 4), np.float32)
    index.build(rows, rows)
    with closing(Snapshot([index], lambda: index.build(rows, rows))) as built:
        built.save()
        runs = [SettingRun(index, built, k, {}, threads=1) for k in (1, 2)]
        for run in (*runs, *runs):
            run.add_pass(queries, np.split(queries, 20))

    for run in runs:
        for one_pass in run.found:
            assert [found.ids[0, 0] for found in one_pass] == list(range(20)), "answered, then observed"
        assert run.is_repeatable is True
        assert len(run.observe_us) == 4, "one series of search and one of attend in each of two passes"
    assert index.seen == 0
