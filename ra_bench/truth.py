"""Exact answers, which no index ever sees: the true top-k by inner product, and scores of given keys."""

from __future__ import annotations

import numpy as np

from ra_bench.attention import BLOCK_ELEMENTS, best_device, on_device

# Gathered keys of one block of queries, in elements: few enough to stay in the cache until they are used.
GATHER_ELEMENTS = 1 << 19


def exact_topk(
    queries: np.ndarray, keys: np.ndarray, k: int, key_limit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` keys of largest inner product with each query, exactly, on the GPU if there is one.

    `queries` (m, d), `keys` (n, d). `key_limit` (m,) lets query i see only the first `key_limit[i]` keys
    (causality). Returns ids (m, k) int32 and scores (m, k) float32, best first; places past the last
    visible key hold -1 and -inf. Works by blocks: the whole score matrix is never held.
    """
    import torch

    device = best_device()
    n, m = len(keys), len(queries)
    top = min(k, n)
    ids = np.full((m, k), -1, np.int32)
    scores = np.full((m, k), -np.inf, np.float32)
    keys_t = on_device(keys, device)
    columns = torch.arange(n, device=device)
    rows = max(1, BLOCK_ELEMENTS // (n * 4))
    for start in range(0, m, rows):
        block = slice(start, start + rows)
        all_scores = on_device(queries[block], device) @ keys_t.T
        if key_limit is not None:
            seen = torch.tensor(key_limit[block], device=device)
            all_scores.masked_fill_(columns[None, :] >= seen[:, None], -torch.inf)
        best = torch.topk(all_scores, top, dim=1)
        scores[block, :top] = best.values.cpu().numpy()
        ids[block, :top] = best.indices.cpu().numpy()
    ids[np.isneginf(scores)] = -1
    return ids, scores


def scores_of(queries: np.ndarray, keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Exact inner products of each query with the keys `ids` (m, k) names: (m, k) float32, -inf for -1."""
    scores = np.full(ids.shape, -np.inf, np.float32)
    rows = max(1, GATHER_ELEMENTS // max(1, ids.shape[1] * keys.shape[1]))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        gathered = keys[np.maximum(ids[block], 0)].astype(np.float32, copy=False)  # (rows, k, d)
        exact = np.einsum("rkd,rd->rk", gathered, np.asarray(queries[block], np.float32))
        scores[block] = np.where(ids[block] >= 0, exact, -np.inf)
    return scores
