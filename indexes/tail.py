"""Attends to what an index finds and to an estimate of all the rest, from the means of a few clusters.

With 100 keys a search finds about half of the attention mass at best; the rest is not nothing. Each cluster
of keys stands for those of its members that were not found: as many keys like their mean, with their mean
value, as in the estimation zone of RetroInfer (arXiv 2505.02922, section 4.2), here around any search. By
Jensen's inequality this is never more than their true weight. `estimate=mean` takes all keys for one cluster
with normally distributed logits: the mass is that of a normal with the keys' mean and covariance, cut off at
the least logit that was found, the value the mean value (SparQ's compensation, arXiv 2312.04985, section 3,
with this mass in place of its scores').
Found here, output error on the sample with the exact top 100, and 1000: alone .110, .044; clusters of 32 keys
.046, .017, of 128 .058, .021, of 512 .068, .023; `estimate=mean` .071, .021 (.459, .416 without the cut: the
logits have no such tail); `softmaxlift` .062, .012.
Build O(n d c) an iteration for c clusters, search that of the inner index and O((c + k) d), insert O(c d).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Partial, attended_work
from ra_bench.wrapper import Wrapper

LABEL_BYTES = 4


@dataclass
class Tail(Wrapper):
    """The inner index, the cluster of each key, and of each cluster size, summed keys and summed values."""

    paper: ClassVar[str] = "arXiv 2505.02922"
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("torch", "ra_bench.indexes._native._native")

    estimate: Literal["clusters", "mean"] = "clusters"
    cluster_tokens: int = 128  # keys of a cluster, on average
    iterations: int = 9  # of k-means

    def __post_init__(self) -> None:
        for name in ("cluster_tokens", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Builds the inner index, and the clusters."""
        from ra_bench.indexes._kmeans import kmeans  # loads torch

        super().build(keys, values, queries, about)
        self.build_inner(self.keys, self.values, queries, about)
        rows = self.keys.astype(np.float32)
        count = 1 if self.estimate == "mean" else max(1, round(len(rows) / self.cluster_tokens))
        self._centroids, labels = kmeans(rows, count, self.iterations, self.seed, self.threads)
        self._labels = labels.astype(np.int32)
        self._sum()

    def _sum(self) -> None:
        """Sizes (c,), summed keys and values (c, d) of the clusters, in float32, and their covariance."""
        count = len(self._centroids)
        self._sizes = np.bincount(self._labels, minlength=count).astype(np.float32)
        self._key_sums = _sums(self.keys, self._labels, count)
        values = np.empty((len(self.keys), 0), np.float32) if self.values is None else self.values
        self._value_sums = _sums(values, self._labels, count)
        # Of all keys, also of those that a search will find: theirs are a few of many.
        self._covariance = (
            np.atleast_2d(np.cov(self.keys.astype(np.float32), rowvar=False, bias=True)).astype(np.float32)
            if self.estimate == "mean"
            else np.empty((0, 0), np.float32)
        )

    def search(self, queries: np.ndarray, k: int | None, **effort: Any) -> Found:
        """What the inner index finds."""
        return self.inner.search(queries, k, **effort)

    def attend(self, queries: np.ndarray, k: int | None, **effort: Any) -> Partial:
        """Exact attention over what was found, and the estimate of the rest; its sum is an estimate, too."""
        from ra_bench.indexes._native._native import gather_logits, mix_rows  # compiled

        values = self.values_to_attend
        queries = np.ascontiguousarray(queries, np.float32)
        found = self.inner.search(queries, k, **effort)
        logits = gather_logits(queries, found.ids, self.keys)
        rest, sizes = self._rest_logits(queries, found.ids, logits)
        largest = np.maximum(logits.max(axis=1, initial=-np.inf), rest.max(axis=1))[:, None]
        found_weights, rest_weights = np.exp(logits - largest), np.exp(rest - largest)
        # The sums of a cluster hold its found members, too: each leaves with the weight of the estimate.
        left = rest_weights[np.arange(len(queries))[:, None], self._labels[found.ids]]
        output = mix_rows(found_weights - left, found.ids, values) + rest_weights @ self._value_sums
        total = found_weights.sum(axis=1) + (rest_weights * sizes).sum(axis=1)
        work = attended_work(found, self.keys, values)
        if work.bytes_read is not None:
            held = (self._sizes, self._key_sums, self._value_sums, self._covariance)
            work.bytes_read = work.bytes_read + sum(array.nbytes for array in held)
            work.bytes_read += (found.ids >= 0).sum(axis=1) * LABEL_BYTES
        return Partial(output / total[:, None], largest[:, 0] + np.log(total), work)

    def _rest_logits(
        self, queries: np.ndarray, ids: np.ndarray, logits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the members of each cluster that were not found: a logit, -inf of none, and how many; (m, c)."""
        m, count = len(queries), len(self._sizes)
        real = ids >= 0
        places = (np.arange(m)[:, None] * count + self._labels[ids])[real]
        taken = np.bincount(places, minlength=m * count).reshape(m, count)
        lost = np.bincount(places, logits[real].astype(np.float64), m * count).reshape(m, count)
        sizes = self._sizes - taken
        means = (queries @ self._key_sums.T - lost) / np.maximum(sizes, 1)
        if self.estimate == "mean":
            variances = np.einsum("md,de,me->m", queries, self._covariance, queries)[:, None]
            least = np.min(logits, axis=1, where=real, initial=np.inf)[:, None]
            means = _log_mean_exp(means, variances, least)
        return np.where(sizes > 0, means, -np.inf).astype(np.float32), sizes.astype(np.float32)

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> None:
        """None: the rest is estimated."""

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Inserts the block into the inner index, and each key into the nearest cluster."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        self.inner.insert(keys, values)
        rows = self.keys[first:].astype(np.float32)
        halves = (self._centroids**2).sum(axis=1) / 2
        nearest = (rows @ self._centroids.T - halves).argmax(axis=1).astype(np.int32)
        self._labels = np.concatenate([self._labels, nearest])
        self._sizes += np.bincount(nearest, minlength=len(self._sizes)).astype(np.float32)
        np.add.at(self._key_sums, nearest, rows)
        if self.values is not None:
            np.add.at(self._value_sums, nearest, self.values[first:].astype(np.float32))

    @property
    def nbytes(self) -> Bytes:
        """The inner index's, the sums, and which key is in which cluster."""
        inner = self.inner.nbytes
        sums = (
            self._labels,
            self._sizes,
            self._key_sums,
            self._value_sums,
            self._covariance,
            self._centroids,
        )
        return Bytes(inner.host + sum(array.nbytes for array in sums), inner.device)

    def save_state(self, folder: Path) -> None:
        """The inner index, and the clusters; their sums are taken again."""
        super().save_state(folder)
        np.savez(folder / "clusters.npz", centroids=self._centroids, labels=self._labels)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads them."""
        super().load_state(folder, mmap)
        with np.load(folder / "clusters.npz") as saved:
            self._centroids, self._labels = saved["centroids"], saved["labels"]
        if self._labels.shape != (len(self.keys),):
            raise ValueError(f"labels must be ({len(self.keys)},), got {self._labels.shape}")
        self._sum()


def _log_mean_exp(means: np.ndarray, variances: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Logarithm of E exp(x) (m, 1) of a normal x that is cut off above `most`."""
    from scipy.special import log_ndtr

    deviations = np.sqrt(np.maximum(variances, np.finfo(np.float32).tiny))
    tilted, plain = (log_ndtr((most - means - shift) / deviations) for shift in (variances, 0))
    kept: np.ndarray = means + variances / 2 + np.where(np.isfinite(most), tilted - plain, 0)
    return kept


def _sums(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Sums (count, d) float32 of the `rows` (n, d) of each label."""
    order = np.argsort(labels, kind="stable")
    sums = np.zeros((count, rows.shape[1]), np.float64)
    present, starts = np.unique(labels[order], return_index=True)
    if rows.shape[1]:
        sums[present] = np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
    return sums.astype(np.float32)
