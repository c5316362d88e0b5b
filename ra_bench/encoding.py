"""`EncodedIndex`: a scoring method that encodes each key by itself, so that it takes later keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ra_bench.choosing import ChoosingIndex
from ra_bench.index import Bytes, Found, Work
from ra_bench.scoring import ScoringIndex

if TYPE_CHECKING:
    import torch


class EncodedIndex(ChoosingIndex, ScoringIndex):
    """Scores of codes that `encode` makes of the keys, with what `learn` found at the build.

    Codes lie channel by channel, the key axis last: scores that need some channels read only these.
    """

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

    def choose(self, queries: np.ndarray, tokens: int) -> Found:  # type: ignore[override]
        """The `tokens` keys of the largest approximate scores; something of every key is read."""
        _, ids = self.top_scores(queries, tokens, ordered=False)
        return self.scored(ids, self.key_bytes)

    def scored(self, ids: np.ndarray, key_bytes: float) -> Found:
        """Chosen `ids` (m, any), and the work of scores that read `key_bytes` of each key."""
        read = np.full(len(ids), len(self.keys), np.int64)
        return Found(ids, Work(read, 0 * read, (read * key_bytes).astype(np.int64)))

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Encodes the block with what the build learned."""
        self.keep_inserted(keys, values)
        for columns, code in zip(self._codes, self.encode(self._tensor(keys)), strict=True):
            columns.append(code)

    def in_key_type(self, code: torch.Tensor) -> torch.Tensor:
        """`code` as the keys are stored: float16 or float32."""
        import torch

        return code.clamp(-65504, 65504).half() if self.keys.dtype == np.float16 else code.to(torch.float32)

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
