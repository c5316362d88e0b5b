"""`ScoringIndex`: a method that scores every key cheaply is one expression in torch; the rest is here."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ra_bench.attention import best_device
from ra_bench.head import Head
from ra_bench.index import Found, Index, Work, pad_ids

if TYPE_CHECKING:
    import torch

DEFAULT_K = 100
# Scores of one block of queries stay below this many elements (64 MiB of float32).
BLOCK_ELEMENTS = 1 << 24


class ScoringIndex(Index):
    """An index whose search is the top-k of approximate scores of all keys.

    A subclass is a dataclass that writes `prepare` (what it keeps of the keys) and `approximate_scores`. It
    runs where `where` says: on the host, or on the GPU if there is one. A search reads something of every
    key: `keys_read` is n, and `key_bytes` says how much of each.
    """

    where: ClassVar[str] = "host"

    @abstractmethod
    def prepare(self, keys: torch.Tensor, queries: torch.Tensor | None) -> None:
        """Keeps what the scores need of `keys` (n, d) and of the learn queries (m, d), float32 tensors."""

    @abstractmethod
    def approximate_scores(self, queries: torch.Tensor) -> torch.Tensor:
        """Scores (m, n) of all keys for `queries` (m, d); only their order counts.

        Whole blocks of G rows come in. A method that chooses for a group gives one row (m / G, n) a block.
        """

    @property
    @abstractmethod
    def key_bytes(self) -> float:
        """Bytes that `approximate_scores` reads of each key, for the work counters."""

    @property
    def device(self) -> str:
        """Where the tensors lie: "cpu", or "cuda" for a method of the device."""
        return best_device() if self.where == "device" else "cpu"

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Checks and keeps the rows, then prepares the scores."""
        super().build(keys, values, queries, about)
        learn = None if queries is None else self._tensor(queries)
        self.prepare(self._tensor(self.keys), learn)

    # A method without effort settings: the contract's **effort is empty.
    def search(self, queries: np.ndarray, k: int | None) -> Found:  # type: ignore[override]
        """The `k` (by default 100) keys of the largest approximate scores."""
        k = DEFAULT_K if k is None else k
        _, ids = self.top_scores(queries, k)
        read = np.full(len(queries), len(self.keys), np.int64)
        work = Work(read, np.zeros_like(read), (read * self.key_bytes).astype(np.int64))
        return Found(pad_ids(ids, k), work)

    def top_scores(self, queries: np.ndarray, k: int, ordered: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The `k` (at most n) largest approximate scores (m, k), and the ids of their keys."""
        n = len(self.keys)
        tokens = max(1, BLOCK_ELEMENTS // (n * self.group))  # whole tokens: a group's queries stay together
        scores, ids = [np.empty((0, min(k, n)), np.float32)], [np.empty((0, min(k, n)), np.int32)]
        for start in range(0, len(queries), tokens * self.group):
            block = self._tensor(queries[start : start + tokens * self.group])
            part, found = largest(self.approximate_scores(block), min(k, n), ordered)
            scores.append(part.repeat(len(block) // len(part), axis=0))
            ids.append(found.repeat(len(block) // len(found), axis=0))
        return np.concatenate(scores), np.concatenate(ids)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose at search time."""
        return [{}]

    def save_state(self, folder: Path) -> None:
        """The rows are kept by the base class; the scores are prepared from them again."""

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Prepares the scores from the rows. A method that learns from queries overrides both hooks."""
        self.prepare(self._tensor(self.keys), None)

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(np.asarray(rows, np.float32), device=self.device)


def largest(scores: torch.Tensor, k: int, ordered: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest of each row of `scores` (m, n), and their places, int32; largest first if `ordered`.

    On the host NumPy selects them: torch's topk takes 2 to 30 times as long, the more the larger k is.
    """
    if scores.is_cuda:
        values, places = scores.topk(k, dim=1, sorted=ordered)
        return values.cpu().numpy(), places.cpu().numpy().astype(np.int32)
    rows, n = scores.numpy(), scores.shape[1]
    places = np.argpartition(rows, n - k, axis=1)[:, n - k :]
    values = np.take_along_axis(rows, places, axis=1)
    if ordered:
        order = np.argsort(-values, axis=1, kind="stable")
        values, places = np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)
    return values, places.astype(np.int32)
