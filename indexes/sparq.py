"""Scores by the channels in which the group's queries are largest; the rest of the mass gets the mean value.

Ribar et al., "SparQ attention: bandwidth-efficient LLM inference", ICML 2024, arXiv 2312.04985. Differs: the
local window is the harness's, so the mean is over the indexed values. As in the paper a group shares its
channels and its keys, the approximate softmax has the temperature sqrt(|q_r|₁ / |q|₁) (the query comes
scaled), and its mass outside the chosen keys goes to the mean value; the log-sum-exp told for the merge is
that of the chosen keys, less the logarithm of their share.
Build O(n d), search O(n channels), insert O(d) a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ra_bench.encoding import EncodedIndex
from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Partial, attended_work
from ra_bench.scoring import BLOCK_ELEMENTS, DEFAULT_K

if TYPE_CHECKING:
    import torch


@dataclass
class SparQ(EncodedIndex):
    """q·k over the group's largest channels of a channel-major copy of the keys."""

    paper: ClassVar[str] = "arXiv 2312.04985"

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Copies the keys channel by channel and sums the values."""
        super().build(keys, values, queries, about)
        self._sum_values(self.values)

    def _sum_values(self, values: np.ndarray | None) -> None:
        self._value_sum = None if values is None else values.sum(axis=0, dtype=np.float64)

    def learn(self, keys: torch.Tensor, queries: torch.Tensor | None) -> None:
        """Nothing: each query chooses its channels."""

    def encode(self, keys: torch.Tensor) -> list[torch.Tensor]:
        """The keys channel by channel, in their own type."""
        import torch

        return [keys.T.to(torch.float16 if self.keys.dtype == np.float16 else torch.float32)]

    def approximate_scores(self, queries: torch.Tensor, channels: int = 0) -> torch.Tensor:
        """Approximate attention weights (m / G, G, n) from `channels` channels."""
        import torch

        rows = queries.view(-1, self.group, queries.shape[1])
        magnitudes = rows.abs()
        chosen = torch.topk(magnitudes.sum(dim=1), self._count(channels), dim=1).indices  # (tokens, channels)
        part = rows.gather(2, chosen[:, None].expand(-1, self.group, -1))
        columns = self.codes[0][chosen.flatten()].float().view(*chosen.shape, -1)
        share = part.abs().sum(dim=2) / magnitudes.sum(dim=2).clamp_min(1e-30)
        logits = (part / share.clamp_min(1e-30).sqrt()[..., None]) @ columns
        return logits.softmax(dim=2)

    def _count(self, channels: int) -> int:
        d = self.keys.shape[1]
        return min(d, channels or max(1, d // 4))

    def _choose(
        self, queries: np.ndarray, k: int | None, channels: int, heavy: int
    ) -> tuple[Found, np.ndarray]:
        """What `search` finds, and the share (m,) of the approximate mass that it holds."""
        import torch

        n, k = len(self.keys), DEFAULT_K if k is None else k
        candidates, weights = [np.empty((0, 0), np.int32)], []
        tokens = max(1, BLOCK_ELEMENTS // (n * max(self.group, self._count(channels))))
        blocks = range(0, len(queries), tokens * self.group)
        for start in blocks:
            block = self._tensor(queries[start : start + tokens * self.group])
            weights.append(self.approximate_scores(block, channels))
            ids = torch.topk(weights[-1].sum(dim=1), min(k * max(heavy, 1), n), dim=1).indices
            candidates.append(ids.cpu().numpy().astype(np.int32).repeat(self.group, axis=0))
        ids = np.concatenate(candidates[1:]) if len(candidates) > 1 else candidates[0]
        found = self.best_of(queries, ids, k, heavy)
        every = torch.tensor(found.ids[:, : min(k, n)], dtype=torch.int64, device=self.device)
        sizes = [part.shape[0] * self.group for part in weights]
        shares = [
            part.reshape(-1, n).gather(1, chosen).sum(dim=1)
            for part, chosen in zip(weights, every.split(sizes), strict=True)
        ]
        share = torch.cat(shares).cpu().numpy() if shares else np.empty(0, np.float32)
        read_bytes = n * self._count(channels) * self.codes[0].element_size()
        row_bytes = self.keys.shape[1] * self.keys.itemsize
        exact = np.zeros(len(queries), np.int64) if found.work.exact is None else found.work.exact
        found.work.bytes_read = read_bytes + exact * row_bytes
        return found, share

    def search(self, queries: np.ndarray, k: int | None, *, channels: int = 0, heavy: int = 1) -> Found:
        """The `k` (100) keys of the group's largest summed weights from `channels` (d / 4) channels."""
        return self._choose(queries, k, channels, heavy)[0]

    def attend(self, queries: np.ndarray, k: int | None, *, channels: int = 0, heavy: int = 1) -> Partial:
        """Exact attention over what is found, and the mean value for the mass that is not."""
        if self.values is None or self._value_sum is None:
            raise ValueError("attend needs values: build the index with values")
        from ra_bench.indexes._native._native import gather_attention  # compiled

        found, share = self._choose(queries, k, channels, heavy)
        output, lse = gather_attention(queries, found.ids, self.keys, self.values, self.threads)
        share = np.clip(share, 1e-6, 1.0)[:, None]
        mean = (self._value_sum / len(self.keys)).astype(np.float32)
        work = attended_work(found, self.keys, self.values)
        return Partial(share * output + (1 - share) * mean, lse - np.log(share[:, 0]), work)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From d / 8 to d channels, then more keys scored exactly."""
        d = self.keys.shape[1] or 128
        steps = [(8, 1), (4, 1), (2, 1), (2, 2), (2, 4), (1, 8), (1, 32)]
        return [
            {"channels": max(1, d // part), "heavy": heavy}
            for part, heavy in steps
            if heavy == 1 or heavy * k < 2 * n
        ]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Copies the block and adds its values to the sum."""
        super().insert(keys, values)
        if self._value_sum is not None and values is not None:
            self._value_sum += values.sum(axis=0, dtype=np.float64)

    @property
    def nbytes(self) -> Bytes:
        """The channel-major copy and the sum of the values."""
        held = super().nbytes
        return Bytes(held.host + 8 * self.keys.shape[1], held.device)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Copies and sums again."""
        super().load_state(folder, mmap)
        self._sum_values(self.values)
