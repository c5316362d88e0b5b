"""Hierarchical small-world graph, as usearch builds it: like `hnsw`, but over float16 rows and with counters.

Malkov, Yashunin, arXiv 1603.09320; the package `usearch`. Differs: space is inner product, which is no metric
(see `hnsw`; `usearch@lift`). Float16 keys are stored as float16, and queries rounded likewise. The library
counts a call's distances: each of its queries gets an equal share, and a key met on two levels counts twice.
More than one thread makes the graph depend on their timing.
Build and insert O(log n) a key, search O(ef log n), in practice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._graph import ef_sweep

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids


@dataclass
class USearch(Index):
    """usearch.index.Index by inner product."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 1603.09320"
    needs_lift: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("usearch",)

    degree: int = 16  # the paper's M: links of a node; twice as many in the lowest layer
    ef_construction: int = 200  # the paper's efConstruction: queue length of the build's searches

    def __post_init__(self) -> None:
        if self.degree < 2:
            raise ValueError(f"degree must be at least 2, got {self.degree}")
        if self.ef_construction < 1:
            raise ValueError(f"ef_construction must be at least 1, got {self.ef_construction}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Adds the keys one by one, in their order."""
        super().build(keys, values, queries, about)
        self._graph = self._empty_graph()
        self._graph.add(np.arange(len(self.keys)), self.keys, threads=self.threads)

    def _empty_graph(self) -> Any:
        from usearch.index import Index as Graph

        return Graph(
            ndim=self.keys.shape[1],
            metric="ip",
            dtype="f16" if self.keys.dtype == np.float16 else "f32",
            connectivity=self.degree,
            expansion_add=self.ef_construction,
            enable_key_lookups=False,
        )

    def search(self, queries: np.ndarray, k: int | None, *, ef: int = 200) -> Found:
        """Best-first search of the lowest layer with a queue of max(ef, k); k is 100 by default."""
        k = 100 if k is None else k
        m, n = len(queries), len(self._graph)
        if not m:
            return Found(np.empty((0, k), np.int32), Work())
        self._graph.expansion_search = max(ef, 1)
        rows = np.ascontiguousarray(queries, np.float32)
        matches = self._graph.search(rows, min(k, n), threads=self.threads)
        if m == 1:  # one row comes back without its axis
            ids = np.asarray(matches.keys, np.int32)[None]
        else:
            filled = np.arange(matches.keys.shape[1]) < matches.counts[:, None]
            ids = np.where(filled, matches.keys.astype(np.int32), -1)
        return Found(pad_ids(ids, k), self._work(m, n, matches.computed_distances, matches.visited_members))

    def _work(self, m: int, n: int, distances: int, expanded: int) -> Work:
        exact = distances // m + (np.arange(m) < distances % m)
        row_bytes = self._graph.ndim * (2 if self._graph.dtype.name == "F16" else 4)
        link_bytes = expanded * (2 * self.degree + 1) * 4 // m
        return Work(np.minimum(exact, n), exact, exact * row_bytes + link_bytes)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Queues from k to 32 k, at most half of the keys."""
        return [{"ef": ef} for ef in ef_sweep(n, k)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Adds the block to the graph as the build would have."""
        first = len(self._graph)
        self.keep_inserted(keys, values)
        ids = np.arange(first, first + len(keys))
        self._graph.add(ids, np.ascontiguousarray(keys), threads=self.threads)

    @property
    def nbytes(self) -> Bytes:
        """Rows, links, ids and a pointer a key; what the library reserves beyond is not touched."""
        return Bytes(self._graph.serialized_length + 8 * len(self._graph))

    def save_state(self, folder: Path) -> None:
        """The file that usearch writes."""
        self._graph.save(str(folder / "graph.usearch"))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads usearch's file into memory."""
        from usearch.index import Index as Graph

        self._graph = Graph.restore(str(folder / "graph.usearch"), enable_key_lookups=False)
        rows = len(self.keys)
        if self._graph is None or rows not in (0, len(self._graph)):  # 0: a transform released them
            raise ValueError(f"graph.usearch does not hold {rows} keys")
