"""Blocks of 128 keys chosen by the few of each that the queries right after them scored highest.

Xiao et al., "InfLLM: training-free long-context extrapolation for LLMs with an efficient context memory",
NeurIPS 2024, arXiv 2402.04617. As in the paper each query head has 4 representative keys a block, those of
the largest mean product with the queries of the 4096 tokens that follow, and a block's score is the sum over
query heads and representatives. Differs: the heads of a KV head choose together, in the paper's code all of
a layer; the queries that judge are those the harness samples; keys keep their rotary positions, where the
paper gives all distant ones the same; later keys are judged by the last queries learned; the cache of blocks
on the GPU is left out: it saves transfers, not choices.
Found here: on the sample's head four keys choose nearly the best blocks (1024 tokens hold .42 of the index's
attention, the best 8 blocks .46), but 128 neighbours have little in common: the best 1000 keys hold .80, and
the output error (.104) is hardly below that of a window longer by 1000 tokens (.109).
Build O(n G d), search O(n G d / 128 + budget), insert O(G d) a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes
from ra_bench.partition import PartitionIndex, products, ragged

SCORED_AT_ONCE = 1 << 12  # keys


@dataclass
class InfLLM(PartitionIndex):
    """The mean of each block's representatives, one a query head, side by side."""

    paper: ClassVar[str] = "arXiv 2402.04617"
    query_aware: ClassVar[bool] = True
    shares_group: ClassVar[bool] = True

    block: int = 128  # keys
    representatives: int = 4  # keys that stand for their block
    local_tokens: int = 4096  # queries of how many tokens after a key judge it
    learn_queries: int = 8192

    def __post_init__(self) -> None:
        for name in ("block", "representatives", "local_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.learn_queries < 0:
            raise ValueError(f"learn_queries must be at least 0, got {self.learn_queries}")

    def partition(self, queries: np.ndarray | None, about: Head | None) -> np.ndarray:
        """Blocks in the order of the keys, after each key is judged."""
        rows, asked, positions = self._judges(queries, about)
        after = _MeansAfter(rows, asked, self.local_tokens)
        blocks = range(0, len(positions), SCORED_AT_ONCE)
        judged = [
            self._scores_by(after(positions[start : start + SCORED_AT_ONCE]), start) for start in blocks
        ]
        self._scores = np.concatenate(judged)
        self._last_queries = after(np.array([np.inf]))
        return self.place(0, self.keys)

    def _judges(
        self, queries: np.ndarray | None, about: Head | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries (t, G, d), the positions (t,) of their tokens, and those (n,) of the keys.

        Keys stand in for queries that are not given; where positions are not known, all queries judge all.
        """
        n, d = self.keys.shape
        if queries is None or not len(queries):
            return (
                self.keys.astype(np.float32)[:, None].repeat(self.group, axis=1),
                np.arange(n),
                np.arange(n),
            )
        rows = np.asarray(queries, np.float32).reshape(-1, self.group, d)
        if about is None or about.query_positions is None or about.key_positions is None:
            return rows, np.zeros(len(rows)), np.zeros(n)
        return rows, np.asarray(about.query_positions[:: self.group]), np.asarray(about.key_positions)

    def _scores_by(self, means: np.ndarray, start: int) -> np.ndarray:
        """Products (b, G) of the keys from `start` on with a mean query (b, G, d) of each."""
        return np.einsum("nd,ngd->ng", self.keys[start : start + len(means)].astype(np.float32), means)

    def place(self, first: int, keys: np.ndarray) -> np.ndarray:
        """The blocks go on; the last learned queries judge the new keys."""
        if first:
            means = self._last_queries.repeat(len(keys), axis=0)
            self._scores = np.concatenate([self._scores, self._scores_by(means, first)])
        return (first + np.arange(len(keys))) // self.block

    def summarize(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Mean representatives of each query head, in the keys' type: (blocks, G d)."""
        sizes = np.diff(np.append(offsets, len(ids)))
        members = ragged(ids, offsets[:, None], sizes[:, None])  # (blocks, widest)
        scores = np.where(members[..., None] >= 0, self._scores[members], -np.inf)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.representatives].transpose(0, 2, 1)
        chosen = np.take_along_axis(members[:, None], best, axis=2)  # (blocks, G, representatives)
        real = (chosen >= 0)[..., None]
        sums = (self.keys[chosen].astype(np.float32) * real).sum(axis=2)
        return (sums / real.sum(axis=2)).reshape(len(sizes), -1).astype(self.keys.dtype)

    def score_parts(self, queries: np.ndarray) -> np.ndarray:
        """The sum over query heads, (m / G, blocks)."""
        return products(queries.reshape(-1, self.summaries.shape[1]), self.summaries)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Ends at all keys: where neighbours are not alike, four keys tell nothing of their block."""
        sweep = super().effort_sweep(n, k)
        return sweep if sweep[-1]["budget"] >= n else [*sweep, {"budget": n}]

    @property
    def nbytes(self) -> Bytes:
        """Blocks, their representatives, and what judges later keys."""
        return Bytes(super().nbytes.host + self._scores.nbytes + self._last_queries.nbytes)

    def save_state(self, folder: Path) -> None:
        """Blocks and scores."""
        super().save_state(folder)
        np.savez(folder / "scores.npz", scores=self._scores, last_queries=self._last_queries)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads them."""
        super().load_state(folder, mmap)
        with np.load(folder / "scores.npz") as saved:
            self._scores, self._last_queries = saved["scores"], saved["last_queries"]


class _MeansAfter:
    """Mean queries of the tokens after a position."""

    def __init__(self, rows: np.ndarray, asked: np.ndarray, tokens: int) -> None:
        """Queries `rows` (t, G, d) of tokens at `asked` (t,); `tokens` after a position count."""
        order = np.argsort(asked, kind="stable")
        self._asked, self._tokens = asked[order], tokens
        self._sums = np.zeros((len(rows) + 1, *rows.shape[1:]))
        np.cumsum(rows[order], axis=0, out=self._sums[1:])

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Means (b, G, d) float32 of the queries at p + 1 … p + tokens for each p of `positions` (b,).

        Where so many do not follow, of the last `tokens` tokens.
        """
        start = np.minimum(positions, self._asked[-1] - self._tokens)
        first = np.searchsorted(self._asked, start, side="right")
        last = np.maximum(np.searchsorted(self._asked, start + self._tokens, side="right"), first + 1)
        return ((self._sums[last] - self._sums[first]) / (last - first)[:, None, None]).astype(np.float32)
