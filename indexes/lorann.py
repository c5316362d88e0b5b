"""Inverted lists in which a low-rank regression, learned from queries, scores the keys; the best exactly.

Jääsaari, Hyvönen, Roos, "LoRANN: low-rank matrix factorization for approximate nearest neighbor search",
NeurIPS 2024, arXiv 2410.18926; the package `lorann`. Differs: rows of less than 64 dimensions are filled up
with zeros, which the library demands; the regressions learn from prefill queries, as the package offers for
queries that are not distributed like the keys; a list that got too few of them learns from its keys. The
library hides what it reads, and takes no seed: two builds differ a little.
Build O(n nlist d + n d²), search O(nlist d + n nprobe rank / nlist + rerank k d); no insert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ra_bench.indexes._lists import probe_and_rerank_sweep

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids

LEAST_DIMS = 64


@dataclass
class LoRANN(Index):
    """lorann.LorannIndex by inner product, over float32 rows."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 2410.18926"
    query_aware: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("lorann",)

    nlist: int = 0  # clusters; 0 means sqrt(n), as the library advises
    rank: Literal[16, 32] = 32  # the paper's r
    bits: Literal[4, 8] = 8  # of the numbers in the regressions' matrices
    learn_queries: int = 32768  # 0: learn from the keys

    def __post_init__(self) -> None:
        for name in ("nlist", "learn_queries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Clusters the keys and fits each cluster's regression; float16 keys are copied as float32."""
        import lorann

        super().build(keys, values, queries, about)
        self._rows = _wide(self.keys)  # the library points into it
        self._nlist = self._default_nlist(len(self._rows))
        self._index = lorann.LorannIndex(self._rows, self._nlist, None, self.bits, self.rank)
        learn = None if queries is None or not len(queries) else _wide(queries)
        self._index.build(n_threads=self.threads, training_queries=learn)

    def _default_nlist(self, n: int) -> int:
        return max(1, min(n, self.nlist or int(math.sqrt(n))))

    def search(self, queries: np.ndarray, k: int | None, *, nprobe: int = 50, rerank: int = 4) -> Found:
        """Regressions of `nprobe` clusters choose `rerank` * k keys; exact inner products choose k (100)."""
        k = 100 if k is None else k
        if not len(queries):
            return Found(pad_ids(np.empty((0, 0), np.int32), k), Work())
        nprobe = max(1, min(nprobe, self._nlist))
        candidates = k * max(rerank, 1)
        ids = self._index.search(_wide(queries), k, nprobe, candidates, n_threads=self.threads)
        return Found(np.ascontiguousarray(ids, np.int32), Work())

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From 3 to 100 % of the clusters, with few and with many keys scored exactly."""
        few, many = ((2, 3, 4), (4, 6, 12)) if k < 500 else ((2, 2, 3), (3, 4, 6))
        return probe_and_rerank_sweep(self._default_nlist(n), few, many)

    @property
    def nbytes(self) -> Bytes:
        """Float32 rows where they are not the keys given, and of each cluster codes, ids and matrices."""
        n, d = self._rows.shape
        own_rows = 0 if np.shares_memory(self._rows, self.keys) else self._rows.nbytes
        reduced = d // 32 * 32
        per_key = self.rank * self.bits // 8 + 2 * 4 + 4
        per_cluster = reduced * (self.rank * self.bits // 8 + 8) + 2 * self.rank * 4
        return Bytes(own_rows + n * per_key + self._nlist * per_cluster + d * reduced * 4)

    def save_state(self, folder: Path) -> None:
        """The library's own file, which holds the float32 rows too."""
        self._index.save(str(folder / "clusters.lorann"))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads the library's file into memory, rows included."""
        import lorann

        self._index = lorann.LorannIndex.load(str(folder / "clusters.lorann"))
        n, self._nlist = self._index.n_samples, self._index.n_clusters
        if len(self.keys) not in (0, n):  # 0: a transform released them
            raise ValueError(f"clusters.lorann holds {n} keys, not {len(self.keys)}")
        self._rows = np.broadcast_to(np.float32(0), (n, self._index.dim))  # the library has its own


def _wide(rows: np.ndarray) -> np.ndarray:
    """`rows` (m, d) as float32, C-contiguous, with zeros up to the library's least dimension."""
    if rows.shape[1] >= LEAST_DIMS:
        return np.ascontiguousarray(rows, np.float32)
    out = np.zeros((len(rows), LEAST_DIMS), np.float32)
    out[:, : rows.shape[1]] = rows
    return out
