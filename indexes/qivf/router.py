"""The router: a linear model of which lists hold a query's nearest keys, fitted to the learn queries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ra_bench.attention import torch_threads

BATCH = 512
LEARNING_RATE = 0.02


class Router(NamedTuple):
    """Share of a query's neighbours in each list: softmax over lists of query · weights + bias.

    `weights` (nlist, d) and `bias` (nlist,), float32.
    """

    weights: np.ndarray
    bias: np.ndarray


def fit_router(
    queries: np.ndarray,
    neighbors: np.ndarray,
    assigned: np.ndarray,
    centroids: np.ndarray,
    steps: int,
    seed: int,
    threads: int,
) -> Router:
    """Fits the router to learn `queries` (m, d), whose nearest keys are `neighbors` (m, N), -1 padded.

    `assigned` (n,) is the list of each key. Starts at the centroids (nlist, d), since a list's share grows
    with q·centroid; minimises the cross entropy between its shares and the true ones, by Adam.
    """
    import torch

    lists_of_query = np.where(neighbors >= 0, assigned[neighbors], -1)  # (m, N)
    with torch_threads(threads), torch.enable_grad():
        all_queries = torch.tensor(np.asarray(queries, np.float32))  # a copy: they may be read-only
        lists = torch.from_numpy(lists_of_query.astype(np.int64))
        weights = torch.tensor(centroids, dtype=torch.float32, requires_grad=True)
        bias = torch.zeros(len(centroids), requires_grad=True)
        sharpness = torch.zeros((), requires_grad=True)  # one factor for all lists finds its place first
        optimizer = torch.optim.Adam([weights, bias, sharpness], lr=LEARNING_RATE)
        chooser = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(all_queries), (BATCH,), generator=chooser)
            logits = all_queries[rows] @ weights.T * sharpness.exp() + bias
            real = lists[rows] >= 0
            picked = torch.gather(torch.log_softmax(logits, dim=1), 1, lists[rows].clamp(min=0))
            loss = -torch.where(real, picked, 0.0).sum() / real.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Router((weights * sharpness.exp()).detach().numpy().copy(), bias.detach().numpy().copy())
