"""One setting's timed passes over the test queries, each call timed on its own.

The passes of a sweep are interleaved: every setting gets its first before any gets its second, so that a busy
moment of the machine does not fall on one setting alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ra_bench.index import Found, Index, Partial

Result = TypeVar("Result")

# A setting gets a further pass only while its passes before took less than this: slow settings get fewer.
PASSES_BUDGET_S = 0.25
WARM_UP_CALLS = 3
# The throughput call of a pass takes about this long: slow settings are given the first queries only.
BATCH_BUDGET_S = 0.1
MIN_BATCH_ROWS = 128


class SettingRun:
    """The passes of one search setting: what was found, and how long each call took per query, in µs."""

    def __init__(self, index: Index, k: int, effort: dict[str, Any], threads: int) -> None:
        self.index, self.k, self.effort, self.threads = index, k, effort, threads
        self.found: list[list[Found]] = []  # of each pass, of each block
        self.parts: list[Partial] = []  # of the first pass, of each block
        self.search_us: list[list[float]] = []
        self.attend_us: list[list[float]] = []
        self.queries_per_s: list[float] = []
        self.spent_s = 0.0

    @property
    def wants_more(self) -> bool:
        """Whether it is quick enough for a further pass."""
        return self.spent_s < PASSES_BUDGET_S

    def add_pass(self, queries: np.ndarray, blocks: Sequence[np.ndarray]) -> None:
        """Searches and attends with each block (G, d), on one thread; then one call with many `queries`."""
        self.index.use_threads(1)
        found, search_us = _timed(self._search, blocks)
        parts, attend_us = _timed(self._attend, blocks)
        self.index.use_threads(self.threads)
        self.found.append(found)
        self.parts = self.parts or parts
        self.search_us.append(search_us)
        self.attend_us.append(attend_us)
        self.spent_s += sum(search_us) * len(blocks[0]) / 1e6
        expected_us = float(np.median(search_us))
        rows = int(
            np.clip(BATCH_BUDGET_S * 1e6 / expected_us, min(MIN_BATCH_ROWS, len(queries)), len(queries))
        )
        rows -= rows % len(blocks[0])  # whole tokens: some methods choose for a group
        started = time.perf_counter()
        self._search(queries[:rows])
        self.queries_per_s.append(rows / (time.perf_counter() - started))

    def _search(self, queries: np.ndarray) -> Found:
        return self.index.search(queries, self.k, **self.effort)

    def _attend(self, queries: np.ndarray) -> Partial:
        return self.index.attend(queries, self.k, **self.effort)


def _timed(
    call: Callable[[np.ndarray], Result], blocks: Sequence[np.ndarray]
) -> tuple[list[Result], list[float]]:
    """What each call with a block returns, and its time per query in µs; a short warm-up comes first."""
    for block in blocks[:WARM_UP_CALLS]:
        call(block)
    results, samples_us = [], []
    for block in blocks:
        started = time.perf_counter_ns()
        results.append(call(block))
        samples_us.append((time.perf_counter_ns() - started) / 1e3 / len(block))
    return results, samples_us
