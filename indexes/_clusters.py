"""What the cluster methods share: k-means over the directions of keys, and the mean key of each cluster."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from ra_bench.indexes._faiss import library, use_threads

from ra_bench.head import Head
from ra_bench.partition import PartitionIndex, means, products

LEAST_INSERTED = 8  # clusters of an inserted block


class ClusterIndex(PartitionIndex):
    """Clusters of keys of like direction; a query scores their means, kept in the keys' type.

    A subclass is a dataclass that writes `cluster_count`. An inserted block is divided into clusters of its
    own, at least 8: the papers do so with 320 to 1024 new tokens, but the harness inserts 64 at a time, and
    so few in one cluster of the usual size would have little in common.
    """

    requires: ClassVar[tuple[str, ...]] = ("faiss", "ra_bench.indexes._native._native")

    iterations: int  # of k-means

    @abstractmethod
    def cluster_count(self, n: int) -> int:
        """How many clusters n keys are divided into; what is below 1 or above n is brought there."""

    def partition(self, queries: np.ndarray | None, about: Head | None) -> np.ndarray:
        """All keys at once."""
        return self.cluster(self.keys, self.cluster_count(len(self.keys)))

    def place(self, first: int, keys: np.ndarray) -> np.ndarray:
        """New clusters."""
        clusters = self.cluster(keys, max(LEAST_INSERTED, self.cluster_count(len(keys))))
        _, labels = np.unique(clusters, return_inverse=True)
        return len(self.sizes) + labels

    def cluster(self, keys: np.ndarray, count: int) -> np.ndarray:
        """Which of `count` clusters each of `keys` (n, d) is in (n,): the direction of largest cosine."""
        rows = unit_rows(keys.astype(np.float32))
        return nearest(rows, self.directions(rows, count), self.threads)

    def directions(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Mean directions (count, d) of `rows` (n, d) float32: spherical k-means, from evenly spaced rows."""
        count = max(1, min(count, len(rows)))
        faiss = library()
        use_threads(self.threads)
        kmeans = faiss.Kmeans(rows.shape[1], count, niter=self.iterations, seed=self.seed + 1, spherical=True)
        kmeans.cp.min_points_per_centroid = 1  # silences a warning about few rows
        kmeans.cp.max_points_per_centroid = max(256, -(-len(rows) // count))  # every row counts
        kmeans.train(rows, init_centroids=unit_rows(rows[np.arange(count) * len(rows) // count]))
        return unit_rows(kmeans.centroids)  # faiss leaves them as they are where they are all the rows

    def summarize(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Mean keys."""
        return means(self.keys, ids, offsets).astype(self.keys.dtype)

    def score_parts(self, queries: np.ndarray) -> np.ndarray:
        """Inner products with the means."""
        return products(queries, self.summaries)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """`rows` (n, d) float32 divided by their norms; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest(rows: np.ndarray, directions: np.ndarray, threads: int) -> np.ndarray:
    """The one of `directions` (c, d) with the largest inner product with each of `rows` (n, d): (n,)."""
    faiss = library()
    use_threads(threads)
    return faiss.knn(rows, directions, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]
