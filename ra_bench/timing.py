"""Passes over blocks of queries, each call timed on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")

# A further pass starts only while the passes before it took less than this: slow settings get fewer.
PASSES_BUDGET_S = 0.25
WARM_UP_CALLS = 3
# The same for the calls that measure throughput, and the fewest rows that make a batch.
BATCH_BUDGET_S = 0.1
MIN_BATCH_ROWS = 128


class Passes(NamedTuple):
    """`results[p][i]` and `samples_us[p, i]`: what call i of pass p returned, and its time per query."""

    results: list[list]
    samples_us: np.ndarray


def timed_passes(call: Callable[[np.ndarray], Result], blocks: Sequence[np.ndarray], repeats: int) -> Passes:
    """Calls `call` with each block (G, d) in turn, `repeats` times over, after a short warm-up.

    A time is that of the call divided by the block's rows.
    """
    for block in blocks[:WARM_UP_CALLS]:
        call(block)
    results: list[list] = []
    samples: list[list[float]] = []
    spent_s = 0.0
    while len(results) < repeats and (not results or spent_s < PASSES_BUDGET_S):
        pass_results, pass_samples = [], []
        for block in blocks:
            started = time.perf_counter_ns()
            result = call(block)
            elapsed = time.perf_counter_ns() - started
            pass_results.append(result)
            pass_samples.append(elapsed / 1e3 / len(block))
            spent_s += elapsed / 1e9
        results.append(pass_results)
        samples.append(pass_samples)
    return Passes(results, np.array(samples))


def queries_per_second(
    call: Callable[[np.ndarray], Result], queries: np.ndarray, repeats: int, expected_us: float
) -> float:
    """Median rate of `repeats` calls with `queries` (m, d) at once.

    A slow setting, by the `expected_us` per query, is given only the first queries and one call.
    """
    rows = int(np.clip(BATCH_BUDGET_S * 1e6 / expected_us, min(MIN_BATCH_ROWS, len(queries)), len(queries)))
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < BATCH_BUDGET_S):
        started = time.perf_counter()
        call(queries[:rows])
        seconds.append(time.perf_counter() - started)
    return rows / float(np.median(seconds))
