"""What this machine can do at best: random reads, the thread pool, a layer of heads on many cores.

`python -m ra_bench.machine` prints a table. A search can be no faster than its bytes divided by the rate at
which the machine reads random rows; `random_read_gb_per_s` measures that rate in a moment.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from ra_bench.hardware import core_count

MIB = 1 << 20
# Far beyond a core's own cache and, mostly, its share of the last level's.
WORKING_SET_BYTES = 256 * MIB
SLICE_S = 0.03  # how long one measurement reads
ROW_BYTES = (128, 256)  # float16 keys of 64 and of 128 dimensions


@cache
def random_read_gb_per_s(
    threads: int = 1,
    row_bytes: int = 256,
    working_set_bytes: int = WORKING_SET_BYTES,
    tries: int = 2,
    slice_s: float = SLICE_S,
) -> float:
    """10^9 bytes per second that `threads` read together from random rows of a working set.

    The ceiling of a search that gathers rows of `row_bytes` (a multiple of 64, at 64-byte addresses that are
    known ahead): no search reads faster. It falls as the working set grows, so give that of the search, such
    as `keys.nbytes`, to compare like with like. Measured once for the same arguments, in about 0.15 s for the
    default working set. The best of `tries` of `slice_s` each counts: on a busy machine, many short ones find
    moments in which nobody interrupts. Raises ValueError for impossible arguments.
    """
    from ra_bench.indexes._native._native import random_read_bytes_per_s

    rates = [random_read_bytes_per_s(threads, row_bytes, working_set_bytes, slice_s) for _ in range(tries)]
    return max(rates) / 1e9


def pool_call_us(threads: int, busy_us: float = 0.0, pause_us: float = 0.0, calls: int = 200) -> float:
    """Median cost in microseconds of one call of the native thread pool, beyond `busy_us` of work a thread.

    `pause_us` between calls lets its threads fall asleep, as they do between the layers of a decoded token.
    """
    from ra_bench.indexes._native._native import pool_call_us

    return float(np.median(pool_call_us(threads, calls, busy_us, pause_us))) - busy_us


def attend_layer_us(threads: int, heads: int, n: int, d: int, k: int, group: int = 4) -> float:
    """Best time in microseconds of one call that attends for `heads` synthetic heads of `n` keys each.

    The gather-attention that every method shares, over k random keys a query: what a layer costs once the ids
    are found.
    """
    from ra_bench.indexes._native._native import gather_attention_layer

    rng = np.random.default_rng(0)
    block = rng.standard_normal((1024, d)).astype(np.float16)
    keys = [np.tile(block, (n // 1024 + 1, 1))[:n].copy() for _ in range(heads)]
    ids = [rng.integers(0, n, (group, k), dtype=np.int32) for _ in range(heads)]
    queries = rng.standard_normal((heads, group, d)).astype(np.float32)
    output, lse = np.empty_like(queries), np.empty((heads, group), np.float32)
    times: list[float] = []
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        gather_attention_layer(queries, ids, keys, keys, output, lse, threads)
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 … below `cores`, and `cores`."""
    return [*(1 << i for i in range(cores.bit_length()) if 1 << i < cores), cores]


def table(cores: int) -> str:
    """Everything that this module measures, for 1 to `cores` threads."""
    lines = ["threads  " + "".join(f"{row:>6}-byte rows GB/s" for row in ROW_BYTES) + "   of one core"]
    for threads in thread_counts(cores):
        rates = [random_read_gb_per_s(threads, row, 4 * WORKING_SET_BYTES) for row in ROW_BYTES]
        scale = rates[-1] / random_read_gb_per_s(1, ROW_BYTES[-1], 4 * WORKING_SET_BYTES)
        lines.append(f"{threads:7}  " + "".join(f"{rate:>21.1f}" for rate in rates) + f"{scale:>14.2f}")
    lines += ["", "threads  pool call µs: at once  asleep  200 µs tasks, asleep"]
    for threads in thread_counts(cores)[1:]:
        costs = (pool_call_us(threads), pool_call_us(threads, 0, 500), pool_call_us(threads, 200, 500))
        lines.append(f"{threads:7}  {costs[0]:22.1f}{costs[1]:8.1f}{costs[2]:22.1f}")
    lines += ["", "threads  attend_layer, 64 heads x 4 queries x 1000 keys: ms  of one core  GB/s"]
    heads, n, d, k = 64, 32768, 128, 1000
    one = attend_layer_us(1, heads, n, d, k)
    for threads in thread_counts(cores):
        took = one if threads == 1 else attend_layer_us(threads, heads, n, d, k)
        rate = heads * 4 * k * d * 4 / took / 1e3
        lines.append(f"{threads:7}  {took / 1e3:50.2f}{one / took:13.2f}{rate:6.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(core_count()))
