"""Exact scores of a search's candidates: the second step of every method that first looks at codes."""

from __future__ import annotations

import numpy as np


def best_exact(queries: np.ndarray, ids: np.ndarray, keys: np.ndarray, top: int) -> np.ndarray:
    """The `top` of each row of candidates `ids` (m, c) by inner product with `queries` (m, d), best first.

    A row's -1 are last. Returns (m, top) int32; `top` is at most c.
    """
    from ra_bench.indexes._native._native import dot_rows  # compiled

    real = (ids >= 0).sum(axis=1)
    scores = np.full(ids.shape, np.inf, np.float32)  # negative inner products: numpy sorts upwards
    for row, (query, count) in enumerate(zip(np.ascontiguousarray(queries), real.tolist(), strict=True)):
        np.negative(dot_rows(query, keys, ids[row, :count]), out=scores[row, :count])
    rows = np.arange(len(ids))[:, None]
    if top < ids.shape[1]:
        chosen = np.argpartition(scores, top - 1, axis=1)[:, :top]
        ids, scores = ids[rows, chosen], scores[rows, chosen]
    return ids[rows, np.argsort(scores, axis=1)]
