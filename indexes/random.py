"""Floor: k keys drawn at random, the same ones for the same query.

No paper. Its recall is k / n; its output error is what the budget alone buys. Build and insert O(1), search
O(k) a query.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Found, Index, Work, pad_ids


@dataclass
class Random(Index):
    """Draws without replacement from a generator seeded by the query's bytes and the index's seed."""

    kind: ClassVar[str] = "floor"
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
        """`k` (by default 100) random keys a query; nothing is read to find them."""
        n, k = len(self.keys), 100 if k is None else k
        drawn = np.empty((len(queries), min(k, n)), np.int32)
        for row, query in enumerate(np.ascontiguousarray(queries, np.float32)):
            generator = np.random.default_rng((self.seed, zlib.crc32(query.tobytes())))
            drawn[row] = generator.choice(n, drawn.shape[1], replace=False)
        read = np.zeros(len(queries), np.int64)
        return Found(pad_ids(drawn, k), Work(read, read, read))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose."""
        return [{}]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Appends the block."""
        self.keep_inserted(keys, values)

    def save_state(self, folder: Path) -> None:
        """The rows are all there is."""

    def load_state(self, folder: Path, mmap: bool) -> None:
        """The rows are all there is."""
