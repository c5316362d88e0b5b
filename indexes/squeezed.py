"""Clusters of keys of like direction, all of those whose estimated softmax weight is above one threshold.

Hooper et al., "Squeezed Attention: accelerating long context length LLM inference", ACL 2025, arXiv
2411.09688. As in the paper clusters are 5 % of the keys, a cluster's weight is that of its mean, e^{q·C} /
sum n_j e^{q·C_j}, and the threshold is the quantile, over keys, of the mean weights that the prompt's last
queries give: so easy queries read less than hard ones. Differs: a budget of tokens stands for the quantile
(1 - budget / n); the threshold is shared by the heads of a layer (in `compare`, where a head is built alone,
by none), in the paper by all of the model; the last queries are the last that the harness samples; the paper
clusters a fixed prefix only, later keys make clusters of their own here; its second level of clusters is left
out (tried with 1 %: it would save reading 6 in 10 of the means and change nothing else).
Found here: on the sample's head the threshold beats a fixed number of tokens by little (an output error of
.064 against .066 at 1008 tokens on average), and the quantile does not tell how many are read, since the
weights of single queries spread wider than their mean: a budget of 100 attends to 275, one of 1000 to 693.
Build O(n² d / 20) an iteration, search O(n d / 20 + chosen), insert O(d) a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from ra_bench.indexes._clusters import ClusterIndex

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index
from ra_bench.partition import top_parts


@dataclass
class Squeezed(ClusterIndex):
    """Estimated weights of clusters against a threshold learned from queries."""

    paper: ClassVar[str] = "arXiv 2411.09688"
    query_aware: ClassVar[bool] = True

    clusters: float = 0.05  # as a share of the keys
    iterations: int = 25  # of k-means
    observed_tokens: int = 100  # last tokens of the prompt, whose queries set the threshold
    learn_queries: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.clusters <= 1:
            raise ValueError(f"clusters must be in (0, 1], got {self.clusters}")
        for name in ("iterations", "observed_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learn_queries < 0:
            raise ValueError(f"learn_queries must be at least 0, got {self.learn_queries}")

    def cluster_count(self, n: int) -> int:
        """A share of the keys."""
        return round(self.clusters * n)

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Clusters, and the weights that the last learn queries give them, largest first."""
        super().build(keys, values, queries, about)
        observed = None if queries is None else queries[-self.observed_tokens * self.group :]
        if observed is None or not len(observed):
            observed = self.keys[-self.observed_tokens :]
        weights = self.score_parts(np.asarray(observed, np.float32)).mean(axis=0)
        self._levels = _levels(weights, self.sizes / len(self.keys))

    def score_parts(self, queries: np.ndarray) -> np.ndarray:
        """The softmax weight of each key of a cluster, if all keys were as their cluster's mean."""
        logits = super().score_parts(queries)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / (weights @ self.sizes.astype(np.float32))[:, None]

    def choose(self, queries: np.ndarray, tokens: int) -> Found:
        """All clusters above the threshold of a budget, and always the best."""
        weights = self.score_parts(np.ascontiguousarray(queries, np.float32))
        above = weights >= self.threshold(tokens)
        parts = top_parts(weights, max(1, int(above.sum(axis=1).max(initial=1))))
        counts = self.sizes[parts] * np.take_along_axis(above, parts, axis=1)
        counts[:, 0] = self.sizes[parts[:, 0]]
        return self.found(parts, counts, len(queries))

    def threshold(self, tokens: int) -> float:
        """The weight that only the keys of `tokens` have: the quantile at 1 - tokens / n."""
        share = tokens / len(self.keys)
        if share >= 1:
            return 0.0
        place = np.searchsorted(self._levels[1], share)
        return float(self._levels[0, min(place, self._levels.shape[1] - 1)])

    @property
    def nbytes(self) -> Bytes:
        """Clusters and thresholds."""
        return Bytes(super().nbytes.host + self._levels.nbytes)

    def save_state(self, folder: Path) -> None:
        """Clusters and thresholds."""
        super().save_state(folder)
        np.save(folder / "levels.npy", self._levels)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads them."""
        super().load_state(folder, mmap)
        self._levels = np.load(folder / "levels.npy")

    @classmethod
    def build_layer(
        cls,
        indexes: Sequence[Index],
        keys: Sequence[np.ndarray],
        values: Sequence[np.ndarray] | None = None,
        queries: Sequence[np.ndarray] | None = None,
        about: Sequence[Head] | None = None,
        threads: int = 1,
    ) -> None:
        """Builds all heads of a layer, and gives them one threshold."""
        super().build_layer(indexes, keys, values, queries, about, threads)
        heads = [index for index in indexes if isinstance(index, Squeezed)]
        weights = np.concatenate([head._levels[0] for head in heads])
        shares = np.concatenate([np.diff(head._levels[1], prepend=0.0) for head in heads])
        shared = _levels(weights, shares / len(heads))
        for head in heads:
            head._levels = shared


def _levels(weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Weights (c,) of clusters, largest first, and the share of all keys that is down to each: (2, c)."""
    order = np.argsort(-weights, kind="stable")
    return np.stack([weights[order], np.cumsum(shares[order])])
