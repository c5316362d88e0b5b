"""Navigating spreading-out graph, as faiss builds it: one layer, one entry, monotone paths from it.

Fu, Xiang, Wang, Cai, "Fast approximate nearest neighbor search with the navigating spreading-out graph",
PVLDB 2019, arXiv 1707.00143; faiss: arXiv 2401.08281. Differs: distances are negative inner products; the
neighbour graph that it prunes is exact. With `learn_queries` (not in the paper; for an ablation) that graph
joins what queries find together, as `ra` does, and the nearest keys where there is room; where keys are equal
it stays the paper's. faiss never ends where many keys are equal: the graph is of distinct rows. It cannot
build the graph of few keys: up to four times max(neighbors, degree) are scanned instead.
Build O(n² d) for the exact neighbours and O(n log n) for the graph, search O(ef log n); no insert.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._faiss import library, read, use_threads
from ra_bench.indexes._graph import ef_sweep, projected_neighbors
from ra_bench.indexes._learn import learn_set

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids

SCAN_FACTOR = 4


@dataclass
class Nsg(Index):
    """faiss IndexNSGFlat with metric inner product, on a float32 copy of the keys."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 1707.00143"
    needs_lift: ClassVar[bool] = True
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("faiss",)

    degree: int = 32  # the paper's m, faiss' R: most links of a node
    neighbors: int = 64  # the paper's k, faiss' GK: neighbours of a node in the graph that is pruned
    build_ef: int = 64  # the paper's l, faiss' L: queue length of the build's searches
    learn_queries: int = 0
    learn_neighbors: int = 0

    def __post_init__(self) -> None:
        for name in ("degree", "neighbors", "build_ef"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        learn = self.learn_queries, self.learn_neighbors
        if min(learn) < 0 or (min(learn) == 0) != (max(learn) == 0):
            raise ValueError(f"learn_queries and learn_neighbors must both be 0 or both above, got {learn}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Exact neighbours of all keys, then the pruned graph."""
        faiss = library()
        super().build(keys, values, queries, about)
        use_threads(self.threads)
        rows = self._distinct(self.keys.astype(np.float32, copy=False))
        n, d = rows.shape
        if n <= SCAN_FACTOR * max(self.neighbors, self.degree):
            self._index = faiss.IndexFlatIP(d)
        else:
            self._index = faiss.IndexNSGFlat(d, self.degree, faiss.METRIC_INNER_PRODUCT)
            self._index.build_type = 0  # exact neighbours
            self._index.GK = self.neighbors
            self._index.nsg.L = self.build_ef
        if self.learn_queries and queries is not None and self._twins is None and not self._scans:
            _, found = learn_set(self.keys, queries, about, self.learn_queries, self.learn_neighbors)
            _, near = faiss.knn(rows, rows, self.neighbors + 1, metric=faiss.METRIC_INNER_PRODUCT)
            self._index.build(rows, projected_neighbors(near, found))
        else:
            self._index.add(rows)

    def _distinct(self, rows: np.ndarray) -> np.ndarray:
        """The distinct rows; `_twins` keeps which ids each stands for, where not each stands for itself."""
        signless = np.ascontiguousarray(rows + np.float32(0))  # -0 becomes 0
        whole = signless.view(np.dtype((np.void, signless.itemsize * signless.shape[1])))[:, 0]
        _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
        self._twins: np.ndarray | None = None
        if len(first) == len(rows):
            return rows
        self._twins = inverse  # (n,) distinct row of each key
        self._group_twins()
        return rows[first]

    def _group_twins(self) -> None:
        if self._twins is not None:
            ends = np.cumsum(np.bincount(self._twins))
            self._groups = np.split(np.argsort(self._twins, kind="stable"), ends[:-1])

    @property
    def _scans(self) -> bool:
        return not hasattr(self._index, "nsg")

    def search(self, queries: np.ndarray, k: int | None, *, ef: int = 200) -> Found:
        """Best-first search from the entry with a queue of max(ef, k); k is 100 by default."""
        k = 100 if k is None else k
        use_threads(self.threads)
        top = min(k, self._index.ntotal)
        if not self._scans:
            self._index.nsg.search_L = max(ef, top)
        _, ids = self._index.search(np.ascontiguousarray(queries, np.float32), top)
        if self._twins is not None:
            rows = [[i for u in row if u >= 0 for i in self._groups[u]][:k] for row in ids.tolist()]
            ids = np.array([row + [-1] * (k - len(row)) for row in rows], np.int64).reshape(len(rows), k)
        return Found(pad_ids(ids, k), Work())

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Queues from k to 32 k, at most half of the keys."""
        return [{"ef": ef} for ef in ef_sweep(n, k)]

    @property
    def nbytes(self) -> Bytes:
        """Rows and links."""
        links = 0 if self._scans else self._index.nsg.R
        twins = 0 if self._twins is None else 2 * self._twins.nbytes
        return Bytes(self._index.ntotal * (self._index.d + links) * 4 + twins)

    def save_state(self, folder: Path) -> None:
        """One faiss file, and which keys are equal."""
        faiss = library()
        faiss.write_index(self._index, str(folder / "graph.faiss"))
        if self._twins is not None:
            np.save(folder / "twins.npy", self._twins)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads the faiss file into memory."""
        twins = folder / "twins.npy"
        self._twins = np.load(twins) if twins.is_file() else None
        self._index = read(folder / "graph.faiss", len(self.keys) if self._twins is None else 0)
        self._group_twins()
