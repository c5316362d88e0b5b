"""The exact merge of partial attentions: once a layer and token in live decoding."""

from __future__ import annotations

import numpy as np


class Merge:
    """Two parts, index and static: of one token's query heads, and of many test queries."""

    params = (7, 32, 1024)
    param_names = ("queries",)

    def setup(self, queries: int) -> None:
        """Random parts of d 128."""
        import torch  # noqa: F401 - loaded before the clock starts

        from ra_bench.attention import merge

        rng = np.random.default_rng(0)
        self.merge = merge
        self.parts = [
            (
                rng.normal(size=(queries, 128)).astype(np.float32),
                rng.normal(size=queries).astype(np.float32),
            )
            for _ in range(2)
        ]

    def time_merge(self, queries: int) -> None:
        """20 merges: one is too short to be timed alone."""
        for _ in range(20):
            self.merge(self.parts)
