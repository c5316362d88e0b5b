"""`ChoosingIndex` and `PolicyIndex`: methods that attend to all keys of a token budget."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Partial, Work, attended_work, pad_ids
from ra_bench.rerank import best_exact

DEFAULT_BUDGET_TOKENS = 1024


class ChoosingIndex(Index):
    """An index that chooses keys for a query, and attends exactly to all that it has chosen.

    A subclass writes `choose`. `attend` reads what was chosen. `search` ranks it by exact inner product and
    gives the best k, so that recall tells how many of the true top-k the chosen keys hold; it reads them too.
    """

    requires: ClassVar[tuple[str, ...]] = ("ra_bench.indexes._native._native",)

    @abstractmethod
    def choose(self, queries: np.ndarray, tokens: int, **effort: Any) -> Found:
        """About `tokens` keys for each of `queries` (m, d): ids (m, any) int32, the -1 last, in any order.

        The work is that of choosing: `keys_read` counts the keys chosen too, `bytes_read` does not.
        """

    def budget_tokens(self, k: int | None, budget: int) -> int:
        """Tokens to attend to: the effort setting `budget`, or k where that is 0, but at most n."""
        return min(len(self.keys), budget or (DEFAULT_BUDGET_TOKENS if k is None else k))

    def search(self, queries: np.ndarray, k: int | None, *, budget: int = 0, **effort: Any) -> Found:
        """The `k` (by default all) best of the keys chosen: `budget` of them, or k where it is 0."""
        chosen = self.choose(queries, self.budget_tokens(k, budget), **effort)
        k = chosen.ids.shape[1] if k is None else k
        real = (chosen.ids >= 0).sum(axis=1)
        ids = best_exact(queries, chosen.ids, self.keys, min(k, chosen.ids.shape[1]))
        row_bytes = self.keys.shape[1] * self.keys.itemsize
        read = chosen.work.bytes_read
        work = Work(
            keys_read=chosen.work.keys_read,
            exact=real if chosen.work.exact is None else chosen.work.exact + real,
            bytes_read=None if read is None else read + real * row_bytes,
        )
        return Found(pad_ids(ids, k), work)

    def attend(self, queries: np.ndarray, k: int | None, *, budget: int = 0, **effort: Any) -> Partial:
        """Exact attention over all chosen keys."""
        if self.values is None:
            raise ValueError("attend needs values: build the index with values")
        from ra_bench.indexes._native._native import gather_attention  # compiled

        chosen = self.choose(queries, self.budget_tokens(k, budget), **effort)
        output, lse = gather_attention(queries, chosen.ids, self.keys, self.values, self.threads)
        return Partial(output, lse, attended_work(chosen, self.keys, self.values))

    def attended_ids(
        self, queries: np.ndarray, k: int | None, *, budget: int = 0, **effort: Any
    ) -> np.ndarray | None:
        """What is chosen."""
        return self.choose(queries, self.budget_tokens(k, budget), **effort).ids

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Budgets from k tokens on, each twice the last, up to half of the keys."""
        budgets = [k]
        while 2 * budgets[-1] <= n // 2:
            budgets.append(2 * budgets[-1])
        return [{"budget": budget} for budget in budgets]


class PolicyIndex(ChoosingIndex):
    """A method that keeps keys whatever the query: those before others in one order of importance.

    A subclass is a dataclass that writes `importance`, and says in `learn_queries` how many queries it wants.
    In the harness a policy's own sinks and recent tokens are those that every method attends to exactly.
    """

    kind: ClassVar[str] = "policy"

    @abstractmethod
    def importance(self, keys: np.ndarray, queries: np.ndarray | None, about: Head | None) -> np.ndarray:
        """Importance (n,) of `keys` (n, d), from the learn queries (m, d) float32: the largest are kept."""

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Ranks the keys; of equal importance, the newer is kept."""
        super().build(keys, values, queries, about)
        self.set_importance(np.asarray(self.importance(self.keys, queries, about), np.float32))

    def set_importance(self, importance: np.ndarray) -> None:
        """Replaces the importances (n,) and with them the order."""
        self._importance = importance
        self._order = np.lexsort((-np.arange(len(importance)), -importance)).astype(np.int32)

    def choose(self, queries: np.ndarray, tokens: int) -> Found:  # type: ignore[override]
        """The `tokens` most important keys, the same for every query; nothing is read to find them."""
        ids = np.tile(self._order[:tokens], (len(queries), 1))
        none = np.zeros(len(queries), np.int64)
        return Found(ids, Work(none + tokens, none, none))

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Keeps the block before all older keys: nothing is known of it but that it is recent."""
        self.keep_inserted(keys, values)
        newest = np.full(len(keys), np.inf, np.float32)
        self.set_importance(np.concatenate([self._importance, newest]))

    @property
    def nbytes(self) -> Bytes:
        """Importances and order."""
        return Bytes(self._importance.nbytes + self._order.nbytes)

    def save_state(self, folder: Path) -> None:
        """The importances."""
        np.save(folder / "importance.npy", self._importance)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads the importances."""
        importance = np.load(folder / "importance.npy")
        if importance.shape != (len(self.keys),):
            raise ValueError(f"importance must be ({len(self.keys)},), got {importance.shape}")
        self.set_importance(importance)
