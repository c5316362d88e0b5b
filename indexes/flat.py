"""Exact scan of every key: the oracle of every chart, and the cost that the others must beat.

No paper. The shared kernel scores the rows where they lie, float16 or float32, and NumPy selects the k
largest: no copy is made, and k hardly matters. faiss's scan keeps a heap, which at k = 1000 costs more than
the scan itself. Build O(1), search O(n d), insert O(1).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids


@dataclass
class Flat(Index):
    """Exact top-k of all inner products."""

    kind: ClassVar[str] = "exact"
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("ra_bench.indexes._native._native",)

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Keeps the keys."""
        super().build(keys, values, queries, about)
        self._number_keys()

    def search(self, queries: np.ndarray, k: int | None) -> Found:
        """All inner products and the k largest; k=None sorts all keys."""
        from ra_bench.indexes._native._native import dot_rows

        n, d = self.keys.shape
        k = n if k is None else k
        top = min(k, n)

        def best(query: np.ndarray) -> np.ndarray:
            scores = dot_rows(query, self.keys, self._every_id)
            ids = np.argpartition(scores, n - top)[n - top :]
            return ids[np.argsort(-scores[ids], kind="stable")]

        rows = np.ascontiguousarray(queries, np.float32)
        if self.threads > 1 and len(rows) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                found = list(pool.map(best, rows))
        else:
            found = [best(row) for row in rows]
        ids = np.array(found, np.int32).reshape(len(rows), top)
        read = np.full(len(rows), n, np.int64)
        return Found(pad_ids(ids, k), Work(read, read, read * (d * self.keys.itemsize)))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose."""
        return [{}]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Appends the block."""
        self.keep_inserted(keys, values)
        self._number_keys()

    @property
    def nbytes(self) -> Bytes:
        """The list of all ids that the kernel asks for."""
        return Bytes(self._every_id.nbytes)

    def save_state(self, folder: Path) -> None:
        """The rows are all there is."""

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Numbers the rows that were read."""
        self._number_keys()

    def _number_keys(self) -> None:
        self._every_id = np.arange(len(self.keys), dtype=np.int32)
