"""Exact scan of every key: the oracle of every chart, and the cost that the others must beat.

No paper. Build O(1), search O(n d), insert O(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Found, Index, Work, pad_ids


@dataclass
class Flat(Index):
    """Exact top-k by a faiss scan of float32 keys."""

    kind: ClassVar[str] = "exact"
    can_insert: ClassVar[bool] = True

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Keeps the keys."""
        super().build(keys, values, queries, about)

    def search(self, queries: np.ndarray, k: int | None) -> Found:
        """All inner products, then the k largest."""
        n, d = self.keys.shape
        k = n if k is None else k
        scores = np.asarray(queries, np.float32) @ self.keys.astype(np.float32).T  # (m, n)
        top = min(k, n)
        ids = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        order = np.argsort(-np.take_along_axis(scores, ids, axis=1), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
        read = np.full(len(queries), n, np.int64)
        work = Work(keys_read=read, exact=read, bytes_read=read * d * self.keys.itemsize)
        return Found(pad_ids(ids, k), work)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose."""
        return [{}]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Appends the block."""
        self.keep_inserted(keys, values)
