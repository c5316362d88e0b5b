"""`EncodedIndex`: a scoring method that encodes each key by itself, so that it takes later keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ra_bench.index import Bytes, Found, Work, pad_ids
from ra_bench.rerank import best_exact
from ra_bench.scoring import DEFAULT_K, ScoringIndex

if TYPE_CHECKING:
    import torch


class EncodedIndex(ScoringIndex):
    """A `ScoringIndex` of codes that `encode` makes of the keys, with what `learn` found at the build.

    Codes lie channel by channel, the key axis last: scores that need some channels read only these.
    Papers attend exactly to all keys that the approximate scores choose. So does `heavy=1`; for an equal k at
    a higher price, `heavy` times as many are scored exactly, and the best k of these are returned.
    """

    requires: ClassVar[tuple[str, ...]] = ("ra_bench.indexes._native._native",)
    can_insert: ClassVar[bool] = True
    # Names of the tensors that `learn` sets.
    learned: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def learn(self, keys: torch.Tensor, queries: torch.Tensor | None) -> None:
        """Sets the tensors named in `learned`, from the keys (n, d) of the build and the learn queries."""

    @abstractmethod
    def encode(self, keys: torch.Tensor) -> Sequence[torch.Tensor]:
        """Codes (any, n) of `keys` (n, d), of any number of kinds and types."""

    @property
    def codes(self) -> list[torch.Tensor]:
        """The codes (any, n) of all keys."""
        return [columns.filled for columns in self._codes]

    def prepare(self, keys: torch.Tensor, queries: torch.Tensor | None) -> None:
        """Learns, then encodes all keys."""
        self.learn(keys, queries)
        self._codes = [GrowingColumns(code) for code in self.encode(keys)]

    def search(self, queries: np.ndarray, k: int | None, *, heavy: int = 1) -> Found:  # type: ignore[override]
        """The `k` (by default 100) best of the `heavy` * k keys with the largest approximate scores."""
        k = DEFAULT_K if k is None else k
        _, ids = self.top_scores(queries, k * max(heavy, 1))
        return self.best_of(queries, ids, k, heavy)

    def best_of(self, queries: np.ndarray, candidates: np.ndarray, k: int, heavy: int) -> Found:
        """The `k` best of `candidates` (m, any) by exact score; their first k where `heavy` is 1."""
        exact = np.zeros(len(queries), np.int64)
        if heavy > 1 and candidates.size:
            exact += (candidates >= 0).sum(axis=1)
            rows = np.asarray(queries, np.float32)
            candidates = best_exact(rows, candidates, self.keys, min(k, candidates.shape[1]))
        read = np.full(len(queries), len(self.keys), np.int64)
        row_bytes = self.keys.shape[1] * self.keys.itemsize
        code_bytes = (read * self.key_bytes).astype(np.int64)
        return Found(pad_ids(candidates, k), Work(read, exact, code_bytes + exact * row_bytes))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From k to 32 k keys scored exactly, at most all."""
        return [{"heavy": heavy} for heavy in (1, 2, 4, 8, 16, 32) if heavy == 1 or heavy * k < 2 * n]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Encodes the block with what the build learned."""
        self.keep_inserted(keys, values)
        for columns, code in zip(self._codes, self.encode(self._tensor(keys)), strict=True):
            columns.append(code)

    @property
    def key_bytes(self) -> float:
        """All codes of a key."""
        return sum(code.shape[0] * code.element_size() for code in self.codes)

    @property
    def nbytes(self) -> Bytes:
        """Codes, and what was learned."""
        tensors = [columns.buffer for columns in self._codes] + [getattr(self, name) for name in self.learned]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return Bytes(0, held) if self.device != "cpu" else Bytes(held)

    def save_state(self, folder: Path) -> None:
        """What was learned; the codes are made again of the rows."""
        np.savez(folder / "learned.npz", **{name: getattr(self, name).cpu().numpy() for name in self.learned})

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads what was learned and encodes the rows."""
        import torch

        with np.load(folder / "learned.npz") as saved:
            for name in self.learned:
                setattr(self, name, torch.tensor(saved[name], device=self.device))
        self._codes = [GrowingColumns(code) for code in self.encode(self._tensor(self.keys))]


class GrowingColumns:
    """A matrix (rows, any) that takes more columns in amortised constant time a column."""

    def __init__(self, first: torch.Tensor) -> None:
        self.buffer = first.contiguous()
        self.count = first.shape[1]

    @property
    def filled(self) -> torch.Tensor:
        """The columns so far."""
        return self.buffer[:, : self.count]

    def append(self, columns: torch.Tensor) -> None:
        """Adds `columns` (rows, any) at the end."""
        end = self.count + columns.shape[1]
        if end > self.buffer.shape[1]:
            grown = self.buffer.new_empty(self.buffer.shape[0], end + end // 4)
            grown[:, : self.count] = self.filled
            self.buffer = grown
        self.buffer[:, self.count : end] = columns
        self.count = end
