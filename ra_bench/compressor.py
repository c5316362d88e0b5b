"""`Compressor`: a method that attends to all keys in a smaller form, and has no `search`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ra_bench.attention import best_device
from ra_bench.head import Head
from ra_bench.index import Found, Index, Partial, Work
from ra_bench.scoring import BLOCK_ELEMENTS

if TYPE_CHECKING:
    import torch


class Compressor(Index):
    """An index whose `attend` is softmax over approximate logits of all keys, host or device.

    A subclass is a dataclass that writes `compress`, `logits`, `mix` and `token_bytes`. k is ignored: what it
    costs is in its settings, or in effort settings of `attend` that it hands on to `logits` and `mix`.
    """

    kind: ClassVar[str] = "compressor"
    has_search: ClassVar[bool] = False
    where: ClassVar[str] = "host"

    @abstractmethod
    def compress(
        self,
        keys: torch.Tensor,
        values: torch.Tensor | None,
        queries: torch.Tensor | None,
        about: Head | None,
    ) -> None:
        """Keeps a smaller form of `keys` and `values` (n, d); learn queries (m, d); float32 tensors."""

    @abstractmethod
    def logits(self, queries: torch.Tensor) -> torch.Tensor:
        """Approximate q·k (m, n) of `queries` (m, d) and all keys."""

    @abstractmethod
    def mix(self, weights: torch.Tensor) -> torch.Tensor:
        """The approximate values weighted by `weights` (m, n): (m, d)."""

    @property
    @abstractmethod
    def token_bytes(self) -> float:
        """Bytes that `attend` reads of each token, its key's and its value's form together."""

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
        """Checks and keeps the rows, then compresses them."""
        super().build(keys, values, queries, about)
        learn = None if queries is None else self._tensor(queries)
        rows = None if self.values is None else self._tensor(self.values)
        self.compress(self._tensor(self.keys), rows, learn, about)

    def search(self, queries: np.ndarray, k: int | None) -> Found:  # type: ignore[override]
        """Refused: a compressor selects nothing."""
        raise NotImplementedError(f"{type(self).__name__} attends to all keys: it has no search")

    def attend(self, queries: np.ndarray, k: int | None) -> Partial:  # type: ignore[override]
        """Attention over all keys in their smaller form; `k` is ignored."""
        if self.values is None:
            raise ValueError("attend needs values: build the index with values")
        import torch

        n, m = len(self.keys), len(queries)
        output, lse = np.empty((m, self.values.shape[1]), np.float32), np.empty(m, np.float32)
        rows = max(1, BLOCK_ELEMENTS // n)
        for start in range(0, m, rows):
            block = slice(start, start + rows)
            logits = self.logits(self._tensor(queries[block]))
            part = torch.logsumexp(logits, dim=1)
            output[block] = self.mix(torch.exp(logits - part[:, None])).cpu().numpy()
            lse[block] = part.cpu().numpy()
        read = np.full(m, n, np.int64)
        return Partial(output, lse, Work(read, 0 * read, (read * self.token_bytes).astype(np.int64), read))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose at attention time."""
        return [{}]

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        import torch

        return torch.tensor(np.asarray(rows, np.float32), device=self.device)
