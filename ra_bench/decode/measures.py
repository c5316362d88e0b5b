"""From the steps of a run to the numbers of its row."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ra_bench.decode.indexed import IndexedLayer
from ra_bench.decode.step import Step
from ra_bench.index import Work
from ra_bench.results import Row

PROBED_LAYERS = 4
PROBE_PASSES = 3


def costs(steps: Sequence[Step], search_share: float | None) -> Row:
    """Times of the steps; `search_share` splits what the host did between search and attention.

    Without it, where an index does not search, all of it is attention.
    """
    if not steps:
        return {}
    seconds = np.array([step.seconds for step in steps])
    names = ("model", "copy", "gpu_attention", "merge", "insert", "harness")
    parts = {name: float(np.mean([step.parts.get(name, 0.0) for step in steps])) * 1e3 for name in names}
    row: Row = {f"{name}_ms": mean_ms for name, mean_ms in parts.items()}
    host_ms = float(np.mean([step.parts.get("host", 0.0) for step in steps])) * 1e3
    share = search_share or 0.0
    return row | {
        "search_ms": host_ms * share,
        "cpu_attention_ms": host_ms * (1 - share),
        "tpot_ms": float(np.median(seconds)) * 1e3,
        "tpot_p95_ms": float(np.percentile(seconds, 95)) * 1e3,
        "tokens_per_s": len(seconds) / float(seconds.sum()),
        "step_ms_samples": (seconds * 1e3).tolist(),
    }


def search_share(layers: Sequence[IndexedLayer]) -> float | None:
    """The share of `search` in `attend`, timed head by head with the last step's queries on a few layers.

    A native call does both for a whole layer at once, so that they cannot be told apart while it runs.
    None where the index does not search.
    """
    chosen = layers[:: max(1, len(layers) // PROBED_LAYERS)]
    search_s, attend_s = 0.0, 0.0
    for _ in range(PROBE_PASSES):
        for layer in chosen:
            how = layer.retrieval
            for index, queries in zip(layer.indexes, layer.last_queries, strict=True):
                started_s = time.perf_counter()
                try:
                    index.search(queries, how.k, **how.effort)
                except NotImplementedError:
                    return None
                searched_s = time.perf_counter()
                index.attend(queries, how.k, **how.effort)
                attend_s += time.perf_counter() - searched_s
                search_s += searched_s - started_s
    return min(1.0, search_s / attend_s)


def work_of(layers: Sequence[IndexedLayer], keys: int) -> Row:
    """What the layers' indexes read over all steps; `keys` were in each index before the first."""
    works = [work for layer in layers for step in layer.works for work in step]
    steps = max(1, len(layers[0].works))
    read, size = _mean(works, "keys_read"), _total(works, "bytes_read")
    indexed = keys + float(np.mean(layers[0].inserted_before or [0]))
    return {
        "keys_read": read,
        "keys_read_share": None if read is None else read / indexed,
        "bytes_read": None if size is None else size / steps,
        "attended": _mean(works, "attended"),
    }


def break_even(row: Row, baseline: Row | None) -> float | None:
    """The output length from which a run with its build takes less time than a baseline; None: never."""
    if baseline is None or not row.get("tpot_ms") or not baseline.get("tpot_ms"):
        return None
    won_s = (baseline["tpot_ms"] - row["tpot_ms"]) / 1e3
    spent_s = (row["ttft_build_s"] or 0.0) - (baseline["ttft_build_s"] or 0.0)
    if spent_s <= 0:
        return 0.0 if won_s >= 0 else None
    return spent_s / won_s if won_s > 0 else None


def _mean(works: Sequence[Work], name: str) -> float | None:
    counts = [getattr(work, name) for work in works]
    if not counts or any(count is None for count in counts):
        return None
    return float(np.concatenate(counts).mean())


def _total(works: Sequence[Work], name: str) -> float | None:
    counts = [getattr(work, name) for work in works]
    if not counts or any(count is None for count in counts):
        return None
    return float(np.concatenate(counts).sum())
