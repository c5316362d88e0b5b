"""Exact scan of every key: the oracle of every chart, and the cost that the others must beat.

No paper. faiss scans the rows where they lie, float16 or float32, one query after another in SIMD; nothing
is copied. At 128K keys of 128 dimensions that is faster than a float32 copy of float16 keys, which reads
twice the bytes. Build O(1), search O(n d), insert O(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._faiss import library, use_threads

from ra_bench.head import Head
from ra_bench.index import Found, Index, Work, pad_ids


@dataclass
class Flat(Index):
    """Exact top-k by a faiss scan of the keys themselves."""

    kind: ClassVar[str] = "exact"
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("faiss",)

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Keeps the keys."""
        super().build(keys, values, queries, about)
        self._look_at_keys()

    def _look_at_keys(self) -> None:
        """A faiss index whose codes are the rows of `self.keys`, in place; `self.keys` must outlive it."""
        faiss = library()
        n, d = self.keys.shape
        if self.keys.dtype == np.float16:
            half = faiss.ScalarQuantizer.QT_fp16
            self._scan = faiss.IndexScalarQuantizer(d, half, faiss.METRIC_INNER_PRODUCT)
        else:
            self._scan = faiss.IndexFlatIP(d)
        start = faiss.cast_integer_to_void_ptr(self.keys.ctypes.data)
        owner = self._scan.codes.owner  # empty: NumPy owns the rows
        self._scan.codes = faiss.MaybeOwnedVectorUInt8.create_view(start, self.keys.nbytes, owner)
        self._scan.ntotal = n

    def search(self, queries: np.ndarray, k: int | None) -> Found:
        """All inner products and the k largest; k=None sorts all keys."""
        n, d = self.keys.shape
        k = n if k is None else k
        use_threads(self.threads)
        _, ids = self._scan.search(np.ascontiguousarray(queries, np.float32), min(k, n))
        read = np.full(len(queries), n, np.int64)
        return Found(pad_ids(ids, k), Work(read, read, read * (d * self.keys.itemsize)))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose."""
        return [{}]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Appends the block."""
        self.keep_inserted(keys, values)
        self._look_at_keys()

    def save_state(self, folder: Path) -> None:
        """The rows are all there is."""

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Looks at the rows that were read."""
        self._look_at_keys()
