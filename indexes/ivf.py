"""Inverted lists: k-means cells of the keys; a query scans those whose centroids it likes best.

Jégou, Douze, Schmid, "Product quantization for nearest neighbor search", PAMI 2011 (IVFADC without its
codes); faiss: Douze et al. 2024, arXiv 2401.08281. Differs: faiss normalises the centroids for inner
product; here they are plain means, keys go to the list of the nearest one and lists are probed by
q·centroid, which finds more at the same cost. Rows are float16, where faiss's IndexIVFFlat holds float32:
the same recall and time at half the memory.
Build O(n nlist d), search O((nlist + n nprobe / nlist) d), insert O(nlist d) a key, without retraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ra_bench.indexes._faiss import (
    ROW_MULTIPLE,
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

ID_BYTES = 8  # faiss keeps an int64 id beside each row of a list


@dataclass
class Ivf(Index):
    """faiss IndexIVFScalarQuantizer in float16, or IndexIVFFlat in float32."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "Jégou et al. 2011; faiss arXiv 2401.08281"
    can_insert: ClassVar[bool] = True
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("faiss",)

    nlist: int = 0  # number of cells, the paper's k'; 0 means 4 * sqrt(n)
    iterations: int = 10  # of k-means; 5 halve the build and read 1 to 2 % more keys at a recall of .95
    trained_on: Literal["cpu", "device"] = "cpu"  # device: k-means in torch, on the GPU where there is one
    codes: Literal["keys", "float16", "float32"] = "keys"  # the type of the lists; "keys": as the keys are

    def __post_init__(self) -> None:
        if self.nlist < 0:
            raise ValueError(f"nlist must be at least 0, got {self.nlist}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Trains the centroids on the keys and fills the lists."""
        faiss = library()
        super().build(keys, values, queries, about)
        n, d = self.keys.shape
        width = round_up(d, ROW_MULTIPLE)
        nlist = default_nlist(n, self.nlist)
        self._quantizer = faiss.IndexFlat(width, faiss.METRIC_L2)
        metric = faiss.METRIC_INNER_PRODUCT
        if self._code_type() == "float16":
            half = faiss.ScalarQuantizer.QT_fp16
            self._index = faiss.IndexIVFScalarQuantizer(self._quantizer, width, nlist, half, metric, False)
        else:
            self._index = faiss.IndexIVFFlat(self._quantizer, width, nlist, metric)
        train_lists(
            self._index,
            padded(self.keys, width),
            self.seed,
            self.threads,
            iterations=self.iterations,
            on_device=self.trained_on == "device",
        )
        self._ready()

    def _ready(self) -> None:
        faiss = library()
        self._quantizer.metric_type = faiss.METRIC_INNER_PRODUCT
        self._sizes = list_sizes(self._index)
        self._key_bytes = self._index.code_size + ID_BYTES
        self._centroid_bytes = self._index.nlist * self._index.d * 4

    def _code_type(self) -> str:
        return str(self.keys.dtype) if self.codes == "keys" else self.codes

    def search(self, queries: np.ndarray, k: int | None, *, nprobe: int = 64) -> Found:
        """The best `k` (by default 100) of the `nprobe` lists with the largest q·centroid."""
        k = 100 if k is None else k
        use_threads(self.threads)
        index = self._index
        index.nprobe = nprobe = max(1, min(nprobe, index.nlist))
        queries = padded(queries, index.d)
        scores, lists = self._quantizer.search(queries, nprobe)
        _, ids = index.search_preassigned(queries, min(k, index.ntotal), lists, scores)
        touched = self._sizes[lists].sum(axis=1)
        return Found(
            pad_ids(ids, k), Work(touched, touched, touched * self._key_bytes + self._centroid_bytes)
        )

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From 0.3 to 60 % of the lists."""
        return [{"nprobe": nprobe} for nprobe in nprobe_sweep(default_nlist(n, self.nlist))]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Adds the block to the lists of its nearest centroids, which stay as they are."""
        self.keep_inserted(keys, values)
        use_threads(self.threads)
        add_to_lists(self._index, self._quantizer, padded(keys, self._index.d))
        self._sizes = list_sizes(self._index)

    @property
    def nbytes(self) -> Bytes:
        """Lists and centroids."""
        return Bytes(self._index.ntotal * self._key_bytes + self._centroid_bytes + self._sizes.nbytes)

    def save_state(self, folder: Path) -> None:
        """One faiss file."""
        faiss = library()
        faiss.write_index(self._index, str(folder / "lists.faiss"))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads the faiss file into memory."""
        faiss = library()
        self._index = read(folder / "lists.faiss", len(self.keys))
        self._quantizer = faiss.downcast_index(self._index.quantizer)
        self._ready()
