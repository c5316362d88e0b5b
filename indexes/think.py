"""Drops the key channels that matter least to the last queries of the prompt; attends to all keys.

Xu et al., "ThinK: thinner key cache by query-driven pruning", ICLR 2025, arXiv 2407.21018. Differs: the
recent tokens that the paper keeps whole are the harness's window; no tokens are dropped (the paper adds
SnapKV or quantization for that). Found here: on the sample's head, of 64 dimensions, the paper's 40 %
put the index's output off by .24 (20 %: .15), and the index loses weight against the exact window (its
log-sum-exp falls by .46); the paper judges by the scores of tasks, on heads of 128.
Build O(n d), no search, attention O(n kept), insert O(kept) a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ra_bench.compressor import Compressor
from ra_bench.encoding import GrowingColumns
from ra_bench.head import Head
from ra_bench.index import Bytes

if TYPE_CHECKING:
    import torch


@dataclass
class Think(Compressor):
    """q·k over the channels j with the largest |q_j| |k_j|, norms over queries and over keys."""

    paper: ClassVar[str] = "arXiv 2407.21018"
    query_aware: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True

    pruned: float = 0.4  # share of the channels that are dropped: the paper's lambda
    observed_tokens: int = 32  # last tokens of the prompt whose queries judge the channels
    learn_queries: int = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.pruned < 1:
            raise ValueError(f"pruned must be in [0, 1), got {self.pruned}")
        for name in ("observed_tokens", "learn_queries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def compress(
        self,
        keys: torch.Tensor,
        values: torch.Tensor | None,
        queries: torch.Tensor | None,
        about: Head | None,
    ) -> None:
        """Keeps the best channels of the keys; the values stay as they are."""
        import torch

        weight = keys.norm(dim=0)
        if queries is not None and len(queries) and self.observed_tokens:
            weight = weight * queries[-self.observed_tokens * self.group :].norm(dim=0)
        count = max(1, round((1 - self.pruned) * keys.shape[1]))
        self._set_channels(torch.topk(weight, count).indices.sort().values.cpu().numpy())

    def _set_channels(self, channels: np.ndarray) -> None:
        self.channels = channels
        self._kept = GrowingColumns(self._pruned(self.keys))

    def _pruned(self, keys: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(keys[:, self.channels].T, device=self.device)

    def logits(self, queries: torch.Tensor) -> torch.Tensor:
        """Inner products over the kept channels."""
        return queries[:, self.channels] @ self._kept.filled.float()

    def mix(self, weights: torch.Tensor) -> torch.Tensor:
        """The values as they are, weighted."""
        assert self.values is not None
        return weights @ self._tensor(self.values)

    @property
    def token_bytes(self) -> float:
        """Kept channels of the key, and the value."""
        value_bytes = 0 if self.values is None else self.values.shape[1] * self.values.itemsize
        return len(self.channels) * self.keys.itemsize + value_bytes

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Keeps the same channels of the block."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        self._kept.append(self._pruned(self.keys[first:]))

    @property
    def nbytes(self) -> Bytes:
        """The kept channels."""
        return Bytes(self._kept.buffer.numel() * self.keys.itemsize + self.channels.nbytes)

    def save_state(self, folder: Path) -> None:
        """Which channels were kept."""
        np.save(folder / "channels.npy", self.channels)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Keeps the same channels."""
        self._set_channels(np.load(folder / "channels.npy"))
