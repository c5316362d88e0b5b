"""Makes top-k search a fair draw by softmax weight: one coordinate of noise more, and weights cut from below.

Zharkov, Singal, Padaki, Andoni, "Attention via black-box vector search", 2026. Key i becomes (k_i, -log u_i)
with u_i drawn from (0, 1], the query (q, 1): the largest inner products are the largest priorities w_i / u_i.
Of k + 1 found, the last one's priority t makes the weights max(w_i, t) of the others, whose sums are right on
average (priority sampling). The true top k needs ever more keys as attention spreads; this does not.
Found here, output error: on the sample .062 with 100 keys, where the exact top 100 has .110 and `tail` .058;
.012 with 1000, where they have .044 and .021. On six heads of 130K keys .078 (.146, .110) and .014 (.060,
.044): half and a quarter of the error of top-k; the paper has a fifth with 128 keys, on another model.
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
from ra_bench.transform import drop_copied_rows, widened
from ra_bench.wrapper import Wrapper

DEFAULT_K = 100  # where none is given
LEAST, LEAST_TOTAL = np.finfo(np.float32).min, np.finfo(np.float32).tiny


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
        self.build_inner(lifted, None, None if queries is None else widened(queries, 1), about)
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
        from ra_bench.indexes._native._native import gather_logits, mix_rows  # compiled

        values = self.values_to_attend
        queries = np.ascontiguousarray(queries, np.float32)
        # The last coordinate, 1, takes a key's noise as it is.
        found = self.inner.search(widened(queries, 1), (DEFAULT_K if k is None else k) + 1, **effort)
        logits = gather_logits(queries, found.ids, self.keys)
        log_weights, ids = self._weighed(logits, found.ids)
        largest = np.maximum(log_weights.max(axis=1, keepdims=True, initial=-np.inf), LEAST)
        weights = np.exp(log_weights - largest)
        total = weights.sum(axis=1, keepdims=True)
        output = mix_rows(weights, ids, values) / np.maximum(total, LEAST_TOTAL)
        with np.errstate(divide="ignore"):  # nothing found
            lse = largest[:, 0] + np.log(total[:, 0])
        return Partial(output, lse, gathered_work(found.work, (ids >= 0).sum(axis=1), self.keys, values))

    def _weighed(self, logits: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of weights (m, k + 1), and the ids that they are of; of the others -inf and -1."""
        real = ids >= 0
        found = real.sum(axis=1, keepdims=True)
        priorities = np.where(real, logits + self._noise[ids], np.inf)
        last = priorities.argmin(axis=1)
        rows = np.arange(len(ids))
        threshold = priorities[rows, last][:, None]
        all_found = found == len(self.keys)  # nothing to estimate
        # The threshold's own key stands for none, unless it is the only one.
        dropped = real & (np.arange(ids.shape[1]) == last[:, None]) & ~all_found & (found > 1)
        ids = np.where(dropped, np.int32(-1), ids)
        cut = np.where(all_found, logits, np.maximum(logits, threshold))
        return np.where(ids >= 0, cut, -np.inf).astype(np.float32), ids

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> None:
        """None: what is drawn stands for all keys."""

    def observe(self, queries: np.ndarray) -> None:
        """Passes the step's queries on, one longer."""
        self.inner.observe(widened(queries, 1))

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
