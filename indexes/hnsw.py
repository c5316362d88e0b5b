"""Hierarchical small-world graph, as hnswlib builds it: the graph index everybody knows.

Malkov, Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
Small World graphs", PAMI 2020, arXiv 1603.09320. Differs: space is inner product, which is no metric: links
are pruned as in the paper, and keys of large norm occlude the others (ra_bench/transform.py; `hnsw@lift`).
hnswlib refuses to return fewer than k keys; where its graph does not reach k from the entry, such a query
is asked again for fewer. More than one thread makes the graph depend on their timing.
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

# hnswlib.h, beside rows and links: a mutex (40), a list pointer (8), a level (4), a visited mark (2) and a
# node of the label table (about 42) per element; and 65536 mutexes for labels.
ELEMENT_OVERHEAD_BYTES = 96
LABEL_LOCKS_BYTES = 65536 * 40
FIRST_SEED = 100  # the library's default; its generator takes 0 and 1 for the same


@dataclass
class Hnsw(Index):
    """hnswlib in space `ip`, on a float32 copy of the keys."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 1603.09320"
    needs_lift: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("hnswlib",)

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
        import hnswlib

        super().build(keys, values, queries, about)
        n, d = self.keys.shape
        self._graph = hnswlib.Index("ip", d)
        self._graph.init_index(
            n, M=self.degree, ef_construction=self.ef_construction, random_seed=FIRST_SEED + self.seed
        )
        self._graph.add_items(self.keys.astype(np.float32, copy=False), num_threads=self.threads)

    def search(self, queries: np.ndarray, k: int | None, *, ef: int = 200) -> Found:
        """Best-first search of the lowest layer with a queue of max(ef, k); k is 100 by default."""
        k = 100 if k is None else k
        top = min(k, self._graph.get_current_count())
        self._graph.set_ef(max(ef, top))
        try:
            ids, _ = self._graph.knn_query(queries, top, num_threads=self.threads)
        except RuntimeError:  # some query reaches fewer than `top` keys
            ids = self._as_many_as_reached(queries, top)
        return Found(pad_ids(ids, k), Work())

    def _as_many_as_reached(self, queries: np.ndarray, top: int) -> np.ndarray:
        """`search` query by query; each is bisected for the largest count that hnswlib will return."""
        out = np.full((len(queries), top), -1, np.int64)
        for row, query in enumerate(queries):
            works, fails, count = 0, top + 1, top
            while fails - works > 1:
                try:
                    ids, _ = self._graph.knn_query(query, count, num_threads=1)
                except RuntimeError:
                    fails = count
                else:
                    out[row, :count] = ids[0]
                    works = count
                count = (works + fails) // 2
        return out

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Queues from k to 32 k, at most half of the keys."""
        return [{"ef": ef} for ef in ef_sweep(n, k)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Adds the block to the graph as the build would have; grows the library's arrays by a quarter."""
        first = self._graph.get_current_count()
        self.keep_inserted(keys, values)
        end = first + len(keys)
        if end > self._graph.get_max_elements():
            self._graph.resize_index(end + end // 4)
        ids = np.arange(first, end)
        self._graph.add_items(keys.astype(np.float32, copy=False), ids, num_threads=self.threads)

    @property
    def nbytes(self) -> Bytes:
        """Rows, links, labels and locks of hnswlib, with the room that a growth left."""
        graph = self._graph
        room = graph.get_max_elements() - graph.get_current_count()
        element = graph.dim * 4 + graph.M * 2 * 4 + 4 + 8  # row, lowest links, their count, label
        overhead = graph.get_max_elements() * ELEMENT_OVERHEAD_BYTES + LABEL_LOCKS_BYTES
        return Bytes(graph.index_file_size() + room * element + overhead)

    def save_state(self, folder: Path) -> None:
        """The file that hnswlib writes."""
        self._graph.save_index(str(folder / "graph.hnsw"))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads hnswlib's file into memory."""
        import hnswlib

        self._graph = hnswlib.Index("ip", self.keys.shape[1])
        try:
            self._graph.load_index(str(folder / "graph.hnsw"))
        except RuntimeError as error:
            raise ValueError(f"graph.hnsw: {error}") from error
        count, rows = self._graph.get_current_count(), len(self.keys)
        if rows not in (0, count):  # 0: a transform released them
            raise ValueError(f"graph.hnsw holds {count} keys, not {rows}")
