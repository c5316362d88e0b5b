"""Makes top-k search a fair draw by softmax weight: one coordinate of noise more, and weights cut from below.

Zharkov, Singal, Padaki, Andoni, "Attention via black-box vector search", 2026. Key i becomes (k_i, -log u_i)
with u_i drawn from (0, 1], the query (q, 1): the largest inner products are the largest priorities w_i / u_i.
Of k + 1 found, the last one's priority t makes the weights max(w_i, t) of the others, whose sums are right on
average (priority sampling). The true top k needs ever more keys as attention spreads; this does not.
Found here, output error on the sample: .062 with 100 keys, where the exact top 100 has .110 and `tail` .058;
.012 with 1000, where they have .044 and .021.
Differs: an index that finds fewer than k + 1 keys gives the threshold by the last that it found.
Build, search and insert cost what they cost the inner index, over rows of d + 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Partial, gathered_work
from ra_bench.transform import drop_copied_rows
from ra_bench.wrapper import Wrapper, logits_of

DEFAULT_K = 100  # where none is given


@dataclass
class SoftmaxLift(Wrapper):
    """The inner index over keys with noise, and the noise of each key in `_noise` (n,) float32."""

    kind: ClassVar[str] = "sampling"
    paper: ClassVar[str] = "Zharkov et al. 2026"
    has_search: ClassVar[bool] = False  # what it draws is no top k
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("ra_bench.indexes._native._native",)

    def wrap(self, inner: Index, effort: dict[str, Any]) -> None:
        """As ever, but neighbours of the keys as they are would be none of theirs with noise."""
        super().wrap(inner, effort)
        self.learn_neighbors = self.key_neighbors = 0

    def warm_up(self, d: int) -> None:
        """Warms the inner index up for rows that are one longer."""
        self.inner.warm_up(d + 1)

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Draws the noise and builds the inner index on the longer rows."""
        super().build(keys, values, queries, about)
        self._noise = np.empty(0, np.float32)
        lifted = self._lifted(self.keys)
        if about is not None:  # no rotation, and no neighbours, of these rows
            about = replace(about, rope=None, query_neighbors=None, key_neighbors=None)
        self.build_inner(lifted, None, None if queries is None else _with_one(queries), about)
        drop_copied_rows(self.inner)

    def _lifted(self, keys: np.ndarray) -> np.ndarray:
        """`keys` (b, d) with their noise, in their type, drawn by the seed and their place."""
        draws = 1 - np.random.default_rng([self.seed, len(self._noise)]).random(len(keys))  # in (0, 1]
        lifted = np.empty((len(keys), keys.shape[1] + 1), keys.dtype)
        lifted[:, :-1], lifted[:, -1] = keys, -np.log(draws)
        self._noise = np.concatenate([self._noise, lifted[:, -1].astype(np.float32)])  # as it was rounded
        return lifted

    def search(self, queries: np.ndarray, k: int | None) -> Found:
        """Refused: the keys that it draws are not the nearest."""
        raise NotImplementedError(f"{type(self).__name__} draws keys: it has no search")

    def attend(self, queries: np.ndarray, k: int | None, **effort: Any) -> Partial:
        """The estimate from k of k + 1 keys that the inner index finds; its sum is an estimate, too."""
        values = self.values_to_attend
        queries = np.ascontiguousarray(queries, np.float32)
        wanted = DEFAULT_K if k is None else k
        found = self.inner.search(_with_one(queries), wanted + 1, **effort)
        logits = logits_of(queries, self.keys, found.ids)
        output = np.zeros((len(queries), values.shape[1]), np.float32)
        lse = np.full(len(queries), -np.inf, np.float32)
        attended = np.zeros(len(queries), np.int64)
        for row, (ids, mine) in enumerate(zip(found.ids, logits, strict=True)):
            drawn = self._weighed(ids[ids >= 0], mine[ids >= 0], wanted)
            if drawn is not None:
                kept, log_weights = drawn
                weights = np.exp(log_weights - log_weights.max())
                output[row] = weights @ values[kept].astype(np.float32) / weights.sum()
                lse[row] = log_weights.max() + np.log(weights.sum())
                attended[row] = len(kept)
        return Partial(output, lse, gathered_work(found.work, attended, self.keys, values))

    def _weighed(self, ids: np.ndarray, logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The keys that stand for all, and the logarithms of their weights; None where nothing was found."""
        if not len(ids):
            return None
        if len(ids) == len(self.keys) <= k:  # all: nothing to estimate
            return ids, logits
        priorities = logits + self._noise[ids]
        best = np.argsort(-priorities, kind="stable")[: k + 1]
        kept = best[: max(1, len(best) - 1)]
        return ids[kept], np.maximum(logits[kept], priorities[best[-1]])

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> None:
        """None: what is drawn stands for all keys."""

    def observe(self, queries: np.ndarray) -> None:
        """Passes the step's queries on, one longer."""
        self.inner.observe(_with_one(queries))

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Draws noise for the block and inserts it into the inner index."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        self.inner.insert(self._lifted(self.keys[first:]))
        drop_copied_rows(self.inner)

    @property
    def nbytes(self) -> Bytes:
        """The inner index's, its longer rows unless it holds its own, and the noise."""
        inner = self.inner.nbytes
        return Bytes(inner.host + self.inner.keys.nbytes + self._noise.nbytes, inner.device)

    def save_state(self, folder: Path) -> None:
        """The inner index and the noise."""
        super().save_state(folder)
        np.save(folder / "noise.npy", self._noise)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads both."""
        super().load_state(folder, mmap)
        self._noise = np.load(folder / "noise.npy")
        if self._noise.shape != (len(self.keys),):
            raise ValueError(f"noise must be ({len(self.keys)},), got {self._noise.shape}")


def _with_one(queries: np.ndarray) -> np.ndarray:
    """`queries` (m, d) as (m, d + 1): the last coordinate takes a key's noise as it is."""
    longer = np.ones((len(queries), queries.shape[1] + 1), np.float32)
    longer[:, :-1] = queries
    return longer
