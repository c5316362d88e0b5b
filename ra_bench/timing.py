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
from ra_bench.snapshot import Snapshot

Result = TypeVar("Result")

# A setting gets a further pass only while its passes before took less than this: slow settings get fewer.
PASSES_BUDGET_S = 0.25
WARM_UP_CALLS = 3
# The throughput call of a pass takes about this long: slow settings are given the first queries only.
BATCH_BUDGET_S = 0.1
MIN_BATCH_ROWS = 128


class SettingRun:
    """The passes of one search setting: what was found, and how long each call took per query, in µs.

    A method without search is timed by its `attend` alone: `found` and `search_us` stay empty. One with state
    observes each token after it was answered, as in decoding, and `built` brings it back to what it was.
    """

    def __init__(self, index: Index, built: Snapshot, k: int, effort: dict[str, Any], threads: int) -> None:
        self.index, self.k, self.effort, self.threads = index, k, effort, threads
        self._built = built
        self.found: list[list[Found]] = []  # of each pass, of each block
        self.parts: list[list[Partial]] = []  # the same
        self.search_us: list[list[float]] = []
        self.attend_us: list[list[float]] = []
        self.observe_us: list[list[float]] = []
        self.queries_per_s: list[float] = []
        self.spent_s = 0.0

    @property
    def wants_more(self) -> bool:
        """Whether it is quick enough for a further pass."""
        return self.spent_s < PASSES_BUDGET_S

    @property
    def answer_us(self) -> list[list[float]]:
        """Times of search, or of attend where there is none."""
        return self.search_us if self.index.has_search else self.attend_us

    @property
    def is_repeatable(self) -> bool | None:
        """Whether all passes found the same, or attended to the same; None after a single pass."""
        answers = (
            [np.concatenate([found.ids for found in one_pass]) for one_pass in self.found]
            if self.index.has_search
            else [np.concatenate([part.output for part in one_pass]) for one_pass in self.parts]
        )
        if len(answers) < 2:
            return None
        return all(np.array_equal(answers[0], again) for again in answers[1:])

    def add_pass(self, queries: np.ndarray, blocks: Sequence[np.ndarray]) -> None:
        """Searches and attends with each block (G, d), on one thread; then one call with many `queries`."""
        self.index.use_threads(1)
        if self.index.has_search:
            found, search_us = self._timed(self._search, blocks)
            self.found.append(found)
            self.search_us.append(search_us)
        parts, attend_us = self._timed(self._attend, blocks)
        self.parts.append(parts)
        self.attend_us.append(attend_us)
        self.index.use_threads(self.threads)
        self.spent_s += sum(self.answer_us[-1]) * len(blocks[0]) / 1e6
        self._add_throughput(queries, len(blocks[0]))

    def _add_throughput(self, queries: np.ndarray, group: int) -> None:
        expected_us = float(np.median(self.answer_us[-1]))
        rows = int(
            np.clip(BATCH_BUDGET_S * 1e6 / expected_us, min(MIN_BATCH_ROWS, len(queries)), len(queries))
        )
        rows -= rows % group  # whole tokens: some methods choose for a group
        answer: Callable[[np.ndarray], Any] = self._search if self.index.has_search else self._attend
        started = time.perf_counter()
        answer(queries[:rows])
        self.queries_per_s.append(rows / (time.perf_counter() - started))

    def _search(self, queries: np.ndarray) -> Found:
        return self.index.search(queries, self.k, **self.effort)

    def _attend(self, queries: np.ndarray) -> Partial:
        return self.index.attend(queries, self.k, **self.effort)

    def _timed(
        self, call: Callable[[np.ndarray], Result], blocks: Sequence[np.ndarray]
    ) -> tuple[list[Result], list[float]]:
        """What each call with a block returns, and its time per query in µs; a short warm-up comes first."""
        for block in blocks[:WARM_UP_CALLS]:
            call(block)
        results, samples_us, observe_us = [], [], []
        for block in blocks:
            started = time.perf_counter_ns()
            results.append(call(block))
            samples_us.append((time.perf_counter_ns() - started) / 1e3 / len(block))
            if self.index.is_stateful:
                started = time.perf_counter_ns()
                self.index.observe(block)
                observe_us.append((time.perf_counter_ns() - started) / 1e3 / len(block))
        if self.index.is_stateful:
            self.observe_us.append(observe_us)
            self._built.restore()
        return results, samples_us
