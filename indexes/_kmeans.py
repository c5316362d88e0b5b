"""Lloyd's k-means on a device: with a hundred thousand keys a core takes seconds, a GPU milliseconds.

Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982.
"""

from __future__ import annotations

import numpy as np
import torch

from ra_bench.attention import BLOCK_ELEMENTS, best_device, on_device, torch_threads


def kmeans(
    rows: np.ndarray, count: int, iterations: int, seed: int, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (count, d) float32 of `rows` (n, d) float32, and the nearest one (L2) of each row (n,) int64.

    Starts from `count` of the rows; a centroid that loses all of its rows stays where it is. Sums go row by
    row, so that equal rows give equal centroids. Without a GPU on `threads` of the CPU. Raises ValueError
    where count is not from 1 to n.
    """
    if not 1 <= count <= len(rows):
        raise ValueError(f"count must be from 1 to the {len(rows)} rows, got {count}")
    start = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    with torch_threads(threads):
        points = on_device(rows, best_device())
        centroids = points[torch.from_numpy(start).to(points.device)]
        for _ in range(iterations):
            centroids = _means(points, _nearest(points, centroids), centroids)
        return centroids.cpu().numpy(), _nearest(points, centroids).cpu().numpy()


def _means(points: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    sizes = torch.bincount(labels, minlength=len(centroids))
    grouped = points[torch.argsort(labels, stable=True)]
    sums = torch.segment_reduce(grouped, "sum", lengths=sizes, axis=0, unsafe=True)
    return torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)


def _nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    lost = -centroids.square().sum(1) / 2
    block = max(1, BLOCK_ELEMENTS // len(centroids))
    return torch.cat([torch.addmm(lost, part, centroids.T).argmax(1) for part in points.split(block)])
