"""Scores by a part of the channels, after a rotation that gathers the queries' energy in few of them.

Lee et al., "InfiniGen: efficient generative inference of large language models with dynamic KV cache
management", OSDI 2024, arXiv 2406.19707. Differs: it scores with the true query, where the paper speculates
with the input of the layer before, so what is measured here is its upper bound; the rotation (right singular
vectors of the queries) is of this head's prefill instead of a calibration text, and acts after the rotary
embedding. As in the paper, keys whose score is more than `alpha` below the best are left out, and without a k
at most 20 % of the keys are taken; each query head chooses for itself, where the paper gives all heads of a
layer the same count.
Build O(n d²), search O(n channels), insert O(d channels) a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ra_bench.encoding import EncodedIndex
from ra_bench.index import Found

if TYPE_CHECKING:
    import torch

MOST = 0.2  # of the keys, where no k is given


@dataclass
class InfiniGen(EncodedIndex):
    """q·A Aᵀ·k, where A are the chosen columns of the rotation: the paper's partial weights."""

    paper: ClassVar[str] = "arXiv 2406.19707"
    query_aware: ClassVar[bool] = True
    learned: ClassVar[tuple[str, ...]] = ("basis",)

    share: float = 0.3  # of the channels: the paper's partial weight ratio; at least 4 channels
    learn_queries: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if self.learn_queries < 0:
            raise ValueError(f"learn_queries must be at least 0, got {self.learn_queries}")

    def learn(self, keys: torch.Tensor, queries: torch.Tensor | None) -> None:
        """The rotation's columns in which queries and keys have the largest absolute sums."""
        import torch

        rows = keys if queries is None else queries
        _, rotation = torch.linalg.eigh(rows.T @ rows)  # the right singular vectors
        weight = (rows @ rotation).abs().mean(dim=0) + (keys @ rotation).abs().mean(dim=0)
        count = min(keys.shape[1], max(4, round(self.share * keys.shape[1])))
        self.basis = rotation[:, torch.topk(weight, count).indices].contiguous()

    def encode(self, keys: torch.Tensor) -> list[torch.Tensor]:
        """The keys in the chosen columns."""
        return [self.basis.T @ keys.T]

    def approximate_scores(self, queries: torch.Tensor) -> torch.Tensor:
        """Inner products over the chosen columns."""
        return queries @ self.basis @ self.codes[0]

    def search(self, queries: np.ndarray, k: int | None, *, alpha: float = 5.0, heavy: int = 1) -> Found:
        """At most `k` keys whose score is within `alpha` of the best, of `heavy` * k candidates."""
        k = max(1, int(MOST * len(self.keys))) if k is None else k
        scores, ids = self.top_scores(queries, k * max(heavy, 1))
        near = scores >= scores[:, :1] - alpha
        return self.best_of(queries, np.where(near, ids, -1), k, heavy)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """The paper's alpha, then wider, with up to 32 k keys scored exactly."""
        steps = (
            (3.0, 1),
            (4.0, 1),
            (5.0, 1),
            (8.0, 1),
            (8.0, 2),
            (12.0, 4),
            (16.0, 8),
            (20.0, 16),
            (24.0, 32),
        )
        return [{"alpha": alpha, "heavy": heavy} for alpha, heavy in steps if heavy == 1 or heavy * k < 2 * n]
