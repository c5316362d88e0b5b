"""Partial attention with its log-sum-exp, and the exact merge of parts.

RetrievalAttention, arXiv 2409.10516, appendix B, equations 4 and 5: with the log-sum-exp of each part, the
outputs of disjoint sets of keys add up to the attention over their union without any approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ra_bench.index import Partial

if TYPE_CHECKING:
    import torch

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

    device = best_device()
    n, m = len(keys), len(queries)
    output = np.zeros((m, values.shape[1]), np.float32)
    lse = np.full(m, -np.inf, np.float32)
    if n == 0 or m == 0:
        return output, lse
    keys_t, values_t = on_device(keys, device), on_device(values, device)
    columns = torch.arange(n, device=device)
    rows = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, m, rows):
        block = slice(start, start + rows)
        scores = on_device(queries[block], device) @ keys_t.T  # (rows, n)
        if limits is not None:
            seen = torch.tensor(limits[block], device=device)
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


def best_device() -> str:
    """Where exact work is fastest: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(rows: np.ndarray, device: str) -> torch.Tensor:
    """A float32 copy of `rows` on `device`; always a copy, since torch must not alias a read-only map."""
    import torch

    return torch.tensor(np.asarray(rows, np.float32), device=device)


def with_mean_value(part: Partial, share: np.ndarray, mean: np.ndarray) -> Partial:
    """`part` over chosen keys that hold `share` (m,) of all mass, with the `mean` value (d,) for the rest.

    SparQ, arXiv 2312.04985, section 4. The log-sum-exp is that of the chosen keys less ln(share): what all
    keys have if the share is right.
    """
    share = np.clip(share, 1e-6, 1.0)[:, None]
    return Partial(share * part.output + (1 - share) * mean, part.lse - np.log(share[:, 0]), part.work)
