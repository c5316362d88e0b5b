"""Inverted lists of 4-bit codes made to keep inner products, scanned in registers; the best scored exactly.

Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020,
arXiv 1908.10396; the package `scann`. Differs: lists as the library fills them (k-means by L2, probed by
inner product), 4-bit codes of the residuals; its second list for a key (SOAR, arXiv 2404.00774) costs more
time than it saves on attention keys, so it is off. Below 256 keys the library scans all. It hides what it
reads, and takes no seed: two builds differ a little.
Build O(n nlist d), search O(nlist d + n nprobe / nlist + rerank k d), insert O(nlist d) a key.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ra_bench.indexes._lists import probe_and_rerank_sweep

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids

CODE_FROM = 256  # keys: fewer cannot train 16 codewords
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass
class ScaNN(Index):
    """scann.scann_ops_pybind: tree, score_ah and reorder."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "arXiv 1908.10396"
    can_insert: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("scann",)

    nlist: int = 0  # leaves of the tree; 0 means sqrt(n), as the library advises
    dims: int = 2  # dimensions a 4-bit code stands for
    threshold: float = 0.2  # the paper's T: the share of a key's norm from which its inner product counts
    rows: Literal["float32", "bfloat16", "int8"] = "float32"  # what the best codes are scored again with

    def __post_init__(self) -> None:
        if self.nlist < 0:
            raise ValueError(f"nlist must be at least 0, got {self.nlist}")
        if self.dims < 1:
            raise ValueError(f"dims must be at least 1, got {self.dims}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {self.threshold}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Trains tree and codebooks on a float32 copy of the keys, which the library keeps."""
        from scann import scann_ops_pybind
        from scann.scann_ops.py.scann_builder import ReorderType

        super().build(keys, values, queries, about)
        n, d = self.keys.shape
        builder = scann_ops_pybind.builder(self.keys.astype(np.float32, copy=False), 100, "dot_product")
        if n >= CODE_FROM:
            nlist = self._default_nlist(n)
            builder.tree(nlist, nlist, training_sample_size=n)
            builder.score_ah(min(self.dims, d), self.threshold, training_sample_size=n)
            builder.reorder(100, ReorderType[self.rows.upper()])
        else:
            builder.score_brute_force()
        self._ready(builder.set_n_training_threads(self.threads).build().searcher)

    def _ready(self, searcher: Any) -> None:
        searcher.set_num_threads(self.threads)
        tree = re.search(r"num_children: (\d+)", searcher.config())
        self._searcher, self._leaves = searcher, int(tree[1]) if tree else 0

    def _default_nlist(self, n: int) -> int:
        return min(n, self.nlist or int(math.sqrt(n)))

    def search(self, queries: np.ndarray, k: int | None, *, nprobe: int = 50, rerank: int = 6) -> Found:
        """Codes of `nprobe` leaves choose `rerank` * k keys; their exact inner products choose k (or 100)."""
        k = 100 if k is None else k
        queries = np.ascontiguousarray(queries, np.float32)
        n = self._searcher.size()
        top = min(k, n)
        candidates = min(k * max(rerank, 1), n)
        effort = (candidates, max(1, min(nprobe, self._leaves))) if self._leaves else (-1, -1)
        if not len(queries):
            return Found(pad_ids(np.empty((0, 0), np.int32), k), Work())
        in_parallel = self.threads > 1 and len(queries) > 1
        share = -(-len(queries) // self.threads)
        ids, scores = self._searcher.search_batched(queries, top, *effort, in_parallel, share)
        found = np.where(np.isnan(scores), -1, ids.astype(np.int32))  # the library fills up with 0
        return Found(pad_ids(found, k), Work())

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From 3 to 100 % of the leaves, with few and with many keys scored exactly."""
        few, many = ((3, 6, 12), (6, 12, 24)) if k < 500 else ((2, 3, 5), (3, 5, 8))
        return probe_and_rerank_sweep(self._default_nlist(n), few, many)

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """The library's own insert: into the nearest leaves; tree and codebooks stay as they are."""
        self.keep_inserted(keys, values)
        rows = np.ascontiguousarray(keys, np.float32)
        self._searcher.upsert([None] * len(rows), rows, len(rows))

    @property
    def nbytes(self) -> Bytes:
        """Rows, codes, list entries and centroids of the library."""
        n, d = self._searcher.size(), self.keys.shape[1]
        if not self._leaves:
            return Bytes(n * d * 4)
        codes = -(-d // min(self.dims, d))
        return Bytes(n * (d * NUMBER_BYTES[self.rows] + codes + 4) + self._leaves * d * 4)

    def save_state(self, folder: Path) -> None:
        """The library's own files."""
        library = folder / "scann"
        library.mkdir(exist_ok=True)
        self._searcher.serialize(str(library), True)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads the library's files into memory."""
        from scann import scann_ops_pybind

        self._ready(scann_ops_pybind.load_searcher(str(folder / "scann")).searcher)
        n = self._searcher.size()
        if len(self.keys) not in (0, n):  # 0: a transform released them
            raise ValueError(f"the scann files hold {n} keys, not {len(self.keys)}")
