"""Attention weights that keys got from observed queries, for the methods that keep keys by them."""

from __future__ import annotations

import numpy as np

from ra_bench.attention import best_device, on_device
from ra_bench.head import Head

BLOCK_ELEMENTS = 1 << 24  # weights of one block of queries, 64 MiB of float32


def summed_weights(queries: np.ndarray, keys: np.ndarray, about: Head | None = None) -> np.ndarray:
    """The softmax weights (n,) of `keys` (n, d), each query's over the keys it sees, summed over `queries`.

    `queries` (m, d) are multiplied by the softmax scale. `about` says by its positions which keys a query
    sees; without them it sees all.
    """
    import torch

    device, (n, m) = best_device(), (len(keys), len(queries))
    total = torch.zeros(n, dtype=torch.float64, device=device)
    rows = on_device(keys, device).T
    seen = _seen(m, n, about)
    places = torch.arange(n, device=device)
    step = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, m, step):
        block = slice(start, start + step)
        logits = on_device(queries[block], device) @ rows
        limits = torch.tensor(seen[block], device=device)
        logits.masked_fill_(places[None] >= limits[:, None], -torch.inf)
        total += logits[limits > 0].softmax(dim=1).sum(dim=0)
    return total.float().cpu().numpy()


def _seen(m: int, n: int, about: Head | None) -> np.ndarray:
    """How many of the n keys each query (m,) sees."""
    if about is None or about.key_positions is None or about.query_positions is None:
        return np.full(m, n)
    return np.searchsorted(about.key_positions, about.query_positions[-m:] if m else [], side="right")
