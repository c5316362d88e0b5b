"""Scores by a part of the channels, after a rotation that gathers the queries' energy in few of them.

Lee et al., "InfiniGen: efficient generative inference of large language models with dynamic KV cache
management", OSDI 2024, arXiv 2406.19707. Differs: it scores with the true query, where the paper speculates
with the input of the layer before, so what is measured here is its upper bound; the rotation (right singular
vectors of the queries) is of this head's prefill instead of a calibration text, and acts after the rotary
embedding. As in the paper, keys whose score is more than `alpha` below the best are left out, and without a k
at most 20 % of the keys are taken; each query head chooses for itself, where the paper gives all heads of a
layer the same count. Found here: the sample's logits are so flat that 100 keys are never 5 below the best,
and `alpha` bites from some hundred keys on.
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
        return [self.in_key_type(self.basis.T @ keys.T)]

    def approximate_scores(self, queries: torch.Tensor) -> torch.Tensor:
        """Inner products over the chosen columns."""
        return queries @ self.basis @ self.codes[0].float()

    def budget_tokens(self, k: int | None, budget: int) -> int:
        """As ever, but a fifth of the keys where neither is given."""
        most = max(1, int(MOST * len(self.keys)))
        return super().budget_tokens(k, budget or (most if k is None else 0))

    def choose(self, queries: np.ndarray, tokens: int, *, alpha: float = 5.0) -> Found:
        """At most `tokens` keys: those whose score is within `alpha` of the best."""
        scores, ids = self.top_scores(queries, tokens)  # best first: those left out are the last
        return self.scored(np.where(scores >= scores[:, :1] - alpha, ids, -1), self.key_bytes)

    def search(self, queries: np.ndarray, k: int | None, *, budget: int = 0, alpha: float = 5.0) -> Found:
        """The `k` best of the keys chosen, at most `budget` (k where it is 0)."""
        return super().search(queries, k, budget=budget, alpha=alpha)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """The paper's alpha, then wider with the budget."""
        budgets = [effort["budget"] for effort in super().effort_sweep(n, k)]
        wider = [{"budget": budget, "alpha": 5.0 + 3.0 * i} for i, budget in enumerate(budgets)]
        return [{"budget": k, "alpha": 3.0}, {"budget": k, "alpha": 4.0}, *wider]
