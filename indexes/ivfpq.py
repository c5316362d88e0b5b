"""Inverted lists of 4-bit product-quantizer codes, scanned in registers; the best are scored exactly.

Jégou, Douze, Schmid, "Product quantization for nearest neighbor search", PAMI 2011; André, Kermarrec,
Le Scouarnec, "Cache locality is not enough", PVLDB 2015 (fast scan); faiss: Douze et al. 2024,
arXiv 2401.08281. Differs: lists as in `ivf`; the re-ranking reads the original rows, so the library holds
no copy of the keys.
Build O(n nlist d), search O(nlist d + n nprobe / nlist + rerank k d), insert O(nlist d) a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._faiss import (
    add_to_lists,
    default_nlist,
    library,
    list_sizes,
    nprobe_sweep,
    padded,
    read,
    round_up,
    train_lists,
    use_threads,
)

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids
from ra_bench.rerank import best_exact

CODEWORDS = 16  # of a 4-bit code: the registers that fast scan looks up
BLOCK = 32  # keys whose codes fast scan interleaves; a list is filled up to a multiple
ID_BYTES = 8


@dataclass
class IvfPq(Index):
    """faiss IndexIVFPQFastScan, and exact inner products of the best codes."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "Jégou et al. 2011; faiss arXiv 2401.08281"
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("faiss", "ra_bench.indexes._native._native")

    nlist: int = 0  # number of cells; 0 means 4 * sqrt(n)
    dims: int = 1  # dimensions a 4-bit code stands for: d / the paper's m

    def __post_init__(self) -> None:
        if self.nlist < 0:
            raise ValueError(f"nlist must be at least 0, got {self.nlist}")
        if self.dims < 1:
            raise ValueError(f"dims must be at least 1, got {self.dims}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Trains centroids and codebooks on the keys (codes are of key - centroid) and fills the lists."""
        faiss = library()
        super().build(keys, values, queries, about)
        n, d = self.keys.shape
        dims = min(self.dims, d)
        width = round_up(d, dims)
        nlist = default_nlist(n, self.nlist)
        self._quantizer = faiss.IndexFlat(width, faiss.METRIC_L2)
        self._index = faiss.IndexIVFPQFastScan(
            self._quantizer, width, nlist, width // dims, 4, faiss.METRIC_INNER_PRODUCT, BLOCK
        )
        self._index.pq.cp.min_points_per_centroid = 1
        self._index.pq.cp.seed = self.seed
        train_lists(self._index, padded(self.keys, width), self.seed, self.threads, at_least=CODEWORDS)
        self._ready()

    def _ready(self) -> None:
        faiss = library()
        self._quantizer.metric_type = faiss.METRIC_INNER_PRODUCT
        self._index.implem = 11  # one query at a time: a third faster than faiss's choice for calls of few
        self._sizes = list_sizes(self._index)
        self._centroid_bytes = self._index.nlist * self._index.d * 4

    def search(self, queries: np.ndarray, k: int | None, *, nprobe: int = 64, rerank: int = 4) -> Found:
        """Codes of `nprobe` lists choose `rerank` * k keys; their exact inner products choose k (or 100)."""
        k = 100 if k is None else k
        use_threads(self.threads)
        index = self._index
        index.nprobe = nprobe = max(1, min(nprobe, index.nlist))
        queries = padded(queries, index.d)
        scores, lists = self._quantizer.search(queries, nprobe)
        candidates = min(k * max(rerank, 1), index.ntotal)
        _, ids = index.search_preassigned(queries, candidates, lists, scores)
        ids = ids.astype(np.int32)
        real = (ids >= 0).sum(axis=1)  # the -1 are last
        found = best_exact(queries[:, : self.keys.shape[1]], ids, self.keys, min(k, candidates))
        return Found(pad_ids(found, k), self._work(self._sizes[lists].sum(axis=1), real))

    def _work(self, touched: np.ndarray, exact: np.ndarray) -> Work:
        code_bytes = touched * (self._index.code_size + ID_BYTES)
        row_bytes = exact * (self.keys.shape[1] * self.keys.itemsize)
        return Work(touched, exact, code_bytes + row_bytes + self._centroid_bytes)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From 0.3 to 60 % of the lists; the more lists, the more of the found is scored exactly."""
        probes = nprobe_sweep(default_nlist(n, self.nlist))
        return [{"nprobe": nprobe, "rerank": 4 if i < 5 else 8} for i, nprobe in enumerate(probes)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Adds the block to the lists of its nearest centroids; centroids and codebooks stay as they are."""
        self.keep_inserted(keys, values)
        use_threads(self.threads)
        add_to_lists(self._index, self._quantizer, padded(keys, self._index.d))
        self._sizes = list_sizes(self._index)

    @property
    def nbytes(self) -> Bytes:
        """Codes in whole blocks, ids, centroids and codebooks."""
        blocks = round_up(self._sizes, BLOCK).sum() * self._index.code_size
        codebooks = CODEWORDS * self._index.d * 4
        return Bytes(int(blocks) + self._index.ntotal * ID_BYTES + self._centroid_bytes + codebooks)

    def save_state(self, folder: Path) -> None:
        """One faiss file."""
        faiss = library()
        faiss.write_index(self._index, str(folder / "codes.faiss"))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads the faiss file into memory."""
        faiss = library()
        self._index = read(folder / "codes.faiss", len(self.keys))
        self._quantizer = faiss.downcast_index(self._index.quantizer)
        self._ready()
