"""Flat graph pruned with a slack factor alpha, as DiskANN builds it in memory, by inserting key after key.

Subramanya et al., "DiskANN: fast accurate billion-point nearest neighbor search on a single node", NeurIPS
2019; Singh et al., "FreshDiskANN", arXiv 2105.09613 (inserts); the package `diskannpy`. Differs: one pass
instead of two, and inner product as distance, which is no metric (see `hnsw`; `vamana@lift`). The package
pins an old NumPy, but works with the present one: `pip install --no-deps diskannpy`. The library hides what
it reads, and cannot save a graph without rebuilding it. What it returns beyond the keys that it reached is
unset memory: a row whose last id has another inner product than told is cut to what is true.
Build and insert O(log n) a key, search O(ef log n), in practice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._graph import ef_sweep

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids

LONGEST_QUEUE = 4096  # room that the library sets aside once; a longer queue is grown, with a line on stdout


@dataclass
class Vamana(Index):
    """diskannpy.DynamicMemoryIndex on a float32 copy of the keys."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "DiskANN, NeurIPS 2019; arXiv 2105.09613"
    needs_lift: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("diskannpy",)

    degree: int = 32  # the paper's R
    ef_construction: int = 100  # the paper's L: queue length of the build's searches
    alpha: float = 1.2  # a neighbour is dropped if a kept one is this many times closer to it

    def __post_init__(self) -> None:
        for name in ("degree", "ef_construction"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.alpha < 1:
            raise ValueError(f"alpha must be at least 1, got {self.alpha}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Inserts the keys in their order."""
        super().build(keys, values, queries, about)
        self._make_graph(len(self.keys))

    def _make_graph(self, capacity: int) -> None:
        import diskannpy

        self._capacity = capacity
        self._graph = diskannpy.DynamicMemoryIndex(
            distance_metric="mips",
            vector_dtype=np.float32,
            dimensions=self.keys.shape[1],
            max_vectors=capacity,
            complexity=self.ef_construction,
            graph_degree=self.degree,
            alpha=self.alpha,
            num_threads=self.threads,
            initial_search_complexity=LONGEST_QUEUE,
            search_threads=self.threads,
        )
        self._add(0)

    def _add(self, first: int) -> None:
        rows = self.keys[first:].astype(np.float32)
        labels = np.arange(first + 1, len(self.keys) + 1, dtype=np.uint32)  # 0 is no label
        self._graph.batch_insert(rows, labels, self.threads)

    def search(self, queries: np.ndarray, k: int | None, *, ef: int = 200) -> Found:
        """Best-first search with a queue of max(ef, k); k is 100 by default."""
        k = 100 if k is None else k
        top = min(k, len(self.keys))
        if not len(queries):
            return Found(np.empty((0, k), np.int32), Work())
        rows = np.ascontiguousarray(queries, np.float32)
        labels, scores = self._graph.batch_search(rows, top, max(ef, top, 10), self.threads)
        return Found(pad_ids(self._without_fill(rows, labels.astype(np.int64) - 1, -scores), k), Work())

    def _without_fill(self, queries: np.ndarray, ids: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """`ids` (m, k) with -1 from the first on whose told distance, -q·k, is not its own."""
        last = self._true(queries, ids[:, -1:], distances[:, -1:])
        if not last.all():
            true = self._true(queries, ids, distances)
            repeated = np.array([[i in row[:place] for place, i in enumerate(row)] for row in ids.tolist()])
            ids = np.where(np.logical_and.accumulate(true & ~repeated, axis=1), ids, -1)
        return ids

    def _true(self, queries: np.ndarray, ids: np.ndarray, distances: np.ndarray) -> np.ndarray:
        known = (ids >= 0) & (ids < len(self.keys))
        rows = self.keys[np.where(known, ids, 0)].astype(np.float32)
        scores = np.einsum("md,mkd->mk", queries, rows)
        size = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=2)
        with np.errstate(invalid="ignore", over="ignore"):  # unset memory can hold any float
            return known & (np.abs(scores + distances) <= 1e-4 * size + 1e-30)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Queues from k to 32 k, at most half of the keys."""
        return [{"ef": ef} for ef in ef_sweep(n, k)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Inserts the block as the build did; a full graph is built again with room for a quarter more."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        if len(self.keys) > self._capacity:
            self._make_graph(len(self.keys) + len(self.keys) // 4)
        else:
            self._add(first)

    @property
    def nbytes(self) -> Bytes:
        """Rows in multiples of 8 dimensions; links, lock and label of each; scratch of the searches."""
        row = -(-self.keys.shape[1] // 8) * 8 * 4
        beside = int(1.3 * self.degree) * 4 + 110  # the library's slack; the rest as measured (diskannpy 0.7)
        return Bytes((self._capacity + 1) * (row + beside) + self.threads * LONGEST_QUEUE * 1024)
