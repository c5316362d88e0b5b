"""What the graph indexes share: the queue lengths worth trying, and a neighbour graph made from queries."""

from __future__ import annotations

import numpy as np

PIVOTS = 20  # a query's first so many neighbours are joined to all of its neighbours


def ef_sweep(n: int, k: int) -> list[int]:
    """Queue lengths from k to 32 k, at most half of the `n` keys, without repeats."""
    multiples = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
    most = max(n // 2, 1)
    return sorted({min(max(round(multiple * max(k, 10)), 1), most) for multiple in multiples})


def projected_neighbors(near: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A neighbour graph (n, K) of keys: those that queries find together first, then the nearest keys.

    `near` (n, K + 1) are each key's nearest keys, `found` (m, N) the exact neighbours of m queries, best
    first. A key is joined to the keys that are most often among the neighbours of queries with it in their
    first PIVOTS: RoarGraph's projection (arXiv 2408.08933, section 4). No key is joined to itself or twice.
    """
    n, most = near.shape[0], near.shape[1] - 1
    pivots = found[:, :PIVOTS]
    first = np.repeat(pivots, found.shape[1], axis=1).ravel().astype(np.int64)
    other = np.tile(found, (1, pivots.shape[1])).ravel()
    pairs, counts = np.unique(first * n + other, return_counts=True)
    nearest = (np.arange(n)[:, None] * n + near).ravel()
    weights = np.concatenate([counts, -np.tile(np.arange(1, most + 2), n)])  # below every count
    pairs = np.concatenate([pairs, nearest])
    order = np.lexsort((-weights, pairs))
    pairs, weights = pairs[order], weights[order]
    kept = np.r_[True, pairs[1:] != pairs[:-1]] & (pairs // n != pairs % n)
    pairs, weights = pairs[kept], weights[kept]
    order = np.lexsort((-weights, pairs // n))
    keys, others = np.divmod(pairs[order], n)
    rank = np.arange(len(keys)) - np.searchsorted(keys, keys)
    graph = np.full((n, most), -1, np.int64)
    graph[keys[rank < most], rank[rank < most]] = others[rank < most]
    return graph
