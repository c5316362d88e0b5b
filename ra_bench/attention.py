"""Partial attention with its log-sum-exp, and the exact merge of parts.

RetrievalAttention, arXiv 2409.10516, appendix B, equations 4 and 5: with the log-sum-exp of each part, the
outputs of disjoint sets of keys add up to the attention over their union without any approximation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Scores of one block of queries stay below this many elements (256 MiB of float32).
BLOCK_ELEMENTS = 1 << 26


def partial_attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, limits: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact attention of `queries` (m, d) over `keys` and `values` (n, d), on the GPU if there is one.

    Queries are already multiplied by the softmax scale. `limits` (m,) lets query i see only the first
    `limits[i]` keys. Returns output (m, d) and log-sum-exp (m,), float32; a query that sees no key gets
    output 0 and log-sum-exp -inf.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, m = len(keys), len(queries)
    output = np.zeros((m, values.shape[1]), np.float32)
    lse = np.full(m, -np.inf, np.float32)
    if n == 0 or m == 0:
        return output, lse
    keys_t = torch.from_numpy(np.asarray(keys, np.float32)).to(device)
    values_t = torch.from_numpy(np.asarray(values, np.float32)).to(device)
    columns = torch.arange(n, device=device)
    rows = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, m, rows):
        block = slice(start, start + rows)
        scores = torch.from_numpy(np.asarray(queries[block], np.float32)).to(device) @ keys_t.T  # (rows, n)
        if limits is not None:
            seen = torch.from_numpy(np.asarray(limits[block])).to(device)
            scores.masked_fill_(columns[None, :] >= seen[:, None], -torch.inf)
        part_lse = torch.logsumexp(scores, dim=1)
        finite = torch.isfinite(part_lse)
        weights = torch.exp(scores - torch.where(finite, part_lse, 0.0)[:, None])
        output[block] = (weights @ values_t).cpu().numpy()
        lse[block] = part_lse.cpu().numpy()
    return output, lse


def merge(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Merges parts (output (m, d), log-sum-exp (m,)) over disjoint keys into attention over their union.

    Exact up to rounding; safe for log-sum-exps of any size, and for empty parts (-inf).
    """
    lses = np.stack([np.asarray(lse, np.float64) for _, lse in parts])  # (parts, m)
    largest = lses.max(axis=0)
    shifted = np.exp(lses - np.where(np.isfinite(largest), largest, 0.0))
    total = shifted.sum(axis=0)  # (m,)
    weights = shifted / np.where(total > 0, total, 1.0)
    output = sum(w[:, None] * np.asarray(o, np.float64) for w, (o, _) in zip(weights, parts, strict=True))
    with np.errstate(divide="ignore"):
        lse = np.log(total) + largest
    return np.asarray(output, np.float32), lse.astype(np.float32)
