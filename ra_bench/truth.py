"""Exact answers, which no index ever sees: the true top-k by inner product, and scores of given keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ra_bench import metrics
from ra_bench.attention import BLOCK_ELEMENTS, best_device, key_rows, on_device

if TYPE_CHECKING:
    import torch

# Gathered keys of one block of queries, in elements: few enough to stay in the cache until they are used.
GATHER_ELEMENTS = 1 << 19
# Scores of one block of queries on a GPU, in elements (1 GiB): a fourth of it takes half as long again.
GPU_ELEMENTS = 1 << 28
GROUP = 32  # keys whose largest score stands for them
# Fewer groups than this times k, and looking at all scores costs no more.
MIN_GROUPS_PER_K = 4


def exact_topk(
    queries: np.ndarray, keys: np.ndarray, k: int, key_limit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` keys of largest inner product with each query, exactly, on the GPU if there is one.

    `queries` (m, d), `keys` (n, d). `key_limit` (m,) lets query i see only the first `key_limit[i]` keys
    (causality). Returns ids (m, k) int32 and scores (m, k) float32, best first; places past the last
    visible key hold -1 and -inf. Works by blocks of keys and queries: neither the score matrix nor all
    keys in float32 are ever held.
    """
    import torch

    device = best_device()
    step = key_rows(keys, device)
    # Kept on the device until the end: a copy a block would make it wait.
    ids, scores = _topk_of_keys(queries, keys[:step], k, key_limit, device)
    for first in range(step, len(keys), step):
        limit = None if key_limit is None else key_limit - first
        more_ids, more_scores = _topk_of_keys(queries, keys[first : first + step], k, limit, device)
        scores, place = torch.topk(torch.cat([scores, more_scores], dim=1), k, dim=1)
        more_ids[more_ids >= 0] += first
        ids = torch.gather(torch.cat([ids, more_ids], dim=1), 1, place)
    return ids.cpu().numpy(), scores.cpu().numpy()


def nearest_keys(keys: np.ndarray, count: int) -> np.ndarray:
    """The `count` + 1 nearest of `keys` (n, d) to each key, exactly, on the GPU if there is one.

    Near is on the sphere to which `transform.Lift` lifts the keys; a key is its own nearest, but for equal
    ones. Returns (n, count + 1) int32, nearest first, -1 where there are no more.
    """
    rows = np.asarray(keys, np.float32)
    squares = np.einsum("nd,nd->n", rows, rows)
    lifted = np.column_stack([rows, np.sqrt(squares.max(initial=0.0) - squares)])
    return exact_topk(lifted, lifted, count + 1)[0]


def _topk_of_keys(
    queries: np.ndarray, keys: np.ndarray, k: int, key_limit: np.ndarray | None, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`exact_topk` of one block of keys, on the device."""
    import torch

    n, m = len(keys), len(queries)
    top = min(k, n)
    ids = torch.full((m, k), -1, dtype=torch.int32, device=device)
    scores = torch.full((m, k), -torch.inf, device=device)
    keys_t = on_device(keys, device)
    columns = torch.arange(n, device=device)
    rows = max(1, (GPU_ELEMENTS if device == "cuda" else BLOCK_ELEMENTS // 4) // n)
    for start in range(0, m, rows):
        block = slice(start, start + rows)
        all_scores = on_device(queries[block], device) @ keys_t.T
        if key_limit is not None:
            seen = torch.tensor(key_limit[block], device=device)
            all_scores.masked_fill_(columns[None, :] >= seen[:, None], -torch.inf)
        values, indices = _topk_of_rows(all_scores, top, apart=device == "cuda")
        scores[block, :top] = values
        ids[block, :top] = indices.int()
    ids.masked_fill_(torch.isneginf(scores), -1)
    return ids, scores


def _topk_of_rows(scores: torch.Tensor, k: int, apart: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row (m, n) and their columns, best first, by way of the maxima of groups.

    Exact: let t be the k-th largest maximum. Outside the k groups chosen no score exceeds t, and each chosen
    group holds a score of at least t; so k scores as large as the k largest lie inside. Which of several
    equal scores at the border are taken is open, as in torch.topk. One pass reads all scores;
    the rest is k groups. A group is GROUP columns that follow one another, or with `apart` lie evenly spaced.
    """
    import torch

    m, n = scores.shape
    groups = n // GROUP
    if groups < MIN_GROUPS_PER_K * k:
        found = torch.topk(scores, k, dim=1)
        return found.values, found.indices
    inside = scores[:, : groups * GROUP]
    # On a GPU the maxima take 5 times longer where neighbours in memory belong to one group; on a CPU less.
    if apart:
        maxima, first, step = inside.unflatten(1, (GROUP, groups)).amax(dim=1), 1, groups
    else:
        maxima, first, step = inside.unflatten(1, (groups, GROUP)).amax(dim=2), GROUP, 1
    chosen = torch.topk(maxima, k, dim=1, sorted=False).indices  # (m, k) groups
    members = torch.arange(GROUP, device=scores.device) * step
    columns = (chosen[:, :, None] * first + members).view(m, k * GROUP)
    rest = torch.arange(groups * GROUP, n, device=scores.device).expand(m, -1)  # in no group: candidates
    columns = torch.cat([columns, rest], dim=1)
    found = torch.topk(torch.gather(scores, 1, columns), k, dim=1)
    return found.values, torch.gather(columns, 1, found.indices)


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


def recall_of(queries: np.ndarray, keys: np.ndarray, ids: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Recall (m,) of the keys `ids` (m, k) of each query against the exact top-k scores `true` (m, k)."""
    return metrics.recall(metrics.distinct_scores(ids, scores_of(queries, keys, ids)), true)
