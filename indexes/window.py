"""Floor: the last k keys, as if a longer local window were attended at the same budget.

No paper. Whoever does not beat it has learned nothing from the query. Build and insert O(1), search O(k).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Found, Index, Work, pad_ids


@dataclass
class Window(Index):
    """The newest keys first, whatever the query."""

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
        """The last `k` (by default 100) keys; nothing is read to find them."""
        n, k = len(self.keys), 100 if k is None else k
        newest = np.arange(n - 1, max(n - k, 0) - 1, -1)
        read = np.zeros(len(queries), np.int64)
        return Found(pad_ids(np.tile(newest, (len(queries), 1)), k), Work(read, read, read))

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
