"""Pages of 16 keys chosen by an upper bound of their scores, from the extremes of each channel.

Tang et al., "Quest: query-aware sparsity for efficient long-context LLM inference", ICML 2024, arXiv
2406.10774. As in the paper's code each query head chooses for itself, and at least 3 pages. Differs: the page
of the newest keys, which the paper always reads, is in the harness's window; the first two layers, which it
leaves dense, are the user's choice of layers.
Found here: on the sample's head a bound exceeds its page's best key by 10.8 logits on average, by 1.5 more or
less from page to page, and so much noise in the ranking costs much: 1000 tokens of the largest bounds hold
.47 of the index's attention, of the best pages .65, the best 1000 keys .80.
Build O(n d), search O(n d / 8 + budget), insert O(d) a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Found
from ra_bench.partition import PartitionIndex, products

LEAST_PAGES = 3


@dataclass
class Quest(PartitionIndex):
    """Sum over channels of max(q_j max_j, q_j min_j): no key of the page scores more."""

    paper: ClassVar[str] = "arXiv 2406.10774"

    page: int = 16  # keys that share their extremes

    def __post_init__(self) -> None:
        if self.page < 1:
            raise ValueError(f"page must be at least 1, got {self.page}")

    def partition(self, queries: np.ndarray | None, about: Head | None) -> np.ndarray:
        """Pages in the order of the keys."""
        return self.place(0, self.keys)

    def place(self, first: int, keys: np.ndarray) -> np.ndarray:
        """The pages go on."""
        return (first + np.arange(len(keys))) // self.page

    def summarize(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The largest of each channel, then the smallest, in the keys' type: (pages, 2 d)."""
        extremes = [extreme.reduceat(self.keys[ids], offsets, axis=0) for extreme in (np.maximum, np.minimum)]
        return np.concatenate(extremes, axis=1)

    def score_parts(self, queries: np.ndarray) -> np.ndarray:
        """A positive channel meets the largest, a negative one the smallest: one inner product of 2 d."""
        return products(np.concatenate([queries.clip(min=0), queries.clip(max=0)], axis=1), self.summaries)

    def choose(self, queries: np.ndarray, tokens: int) -> Found:
        """The best pages, until they hold `tokens` keys."""
        return super().choose(queries, max(tokens, LEAST_PAGES * self.page))
