"""`PartitionIndex`: a method that selects whole pages or clusters of keys by what it keeps of each."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.choosing import ChoosingIndex
from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Work


class PartitionIndex(ChoosingIndex):
    """Keys in parts (pages, blocks, clusters); a query reads a summary of each, and then the best parts.

    A subclass is a dataclass that writes `partition` (the part of each key), `summarize` (one row a part) and
    `score_parts`. Inserted keys go where `place` says; the summaries of the parts they join are made anew.
    """

    can_insert: ClassVar[bool] = True
    trims: ClassVar[bool] = False  # the last part is cut where the budget ends; otherwise it is read whole
    shares_group: ClassVar[bool] = False  # the G queries of a token choose together

    @abstractmethod
    def partition(self, queries: np.ndarray | None, about: Head | None) -> np.ndarray:
        """The part (n,) of each of `self.keys`: integers from 0 on."""

    @abstractmethod
    def summarize(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """A float row (any,) for each part: part i is the keys ids[offsets[i]:offsets[i + 1]]."""

    @abstractmethod
    def score_parts(self, queries: np.ndarray) -> np.ndarray:
        """Scores (m, parts) of `queries` (m, d) and `self.summaries`; (m / G, parts) if a group shares."""

    def place(self, first: int, keys: np.ndarray) -> np.ndarray:
        """The parts of inserted `keys` (b, d), which are keys first, first + 1, … of the index."""
        raise NotImplementedError(f"{type(self).__name__} cannot insert")

    @property
    def part_bytes(self) -> int:
        """Bytes that `score_parts` reads of each part."""
        return self.summaries.shape[1] * self.summaries.itemsize

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Divides the keys and summarises each part."""
        super().build(keys, values, queries, about)
        labels = self.partition(queries, about)
        _, self._labels = np.unique(labels, return_inverse=True)  # no part is empty
        self._labels = self._labels.astype(np.int32)
        self._arrange()
        self.summaries = self.summarize(self.members, self.starts[:-1])

    def _arrange(self) -> None:
        """Sorts the keys by part: part i has the keys members[starts[i]:starts[i + 1]], oldest first."""
        self.members = np.argsort(self._labels, kind="stable").astype(np.int32)
        self.sizes = np.bincount(self._labels)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def choose(self, queries: np.ndarray, tokens: int) -> Found:  # type: ignore[override]
        """The best parts, until they hold `tokens` keys."""
        queries = np.ascontiguousarray(queries, np.float32)
        parts, counts = self.best_parts(self.score_parts(queries), tokens)
        return self.found(parts, counts, len(queries))

    def best_parts(self, scores: np.ndarray, tokens: int, more: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The best parts (r, p) of each row of `scores` (r, parts), best first, that together hold `tokens`.

        And how many keys of each are wanted (r, p): none of those after the budget is filled, of which there
        are at least `more` (as long as there are parts).
        """
        count = scores.shape[1]
        p = min(count, -(-2 * tokens * count // len(self.keys)) + 1 + more)
        while True:
            parts = top_parts(scores, p)
            sizes = self.sizes[parts]
            before = np.cumsum(sizes, axis=1) - sizes
            if p == count or not len(parts) or (before[:, -1 - more] + sizes[:, -1 - more] >= tokens).all():
                break
            p = min(count, 2 * p)
        left = np.maximum(tokens - before, 0)
        return parts, np.minimum(sizes, left) if self.trims else np.where(left > 0, sizes, 0)

    def found(self, parts: np.ndarray, counts: np.ndarray, m: int) -> Found:
        """The keys of the chosen `parts` (r, p), `counts` of each, for m queries, and the work."""
        ids = ragged(self.members, self.starts[parts], counts)
        if len(ids) != m:  # a row for a token: its queries share it
            ids = ids.repeat(m // max(len(ids), 1), axis=0)
        read = (ids >= 0).sum(axis=1)
        summaries = np.full(m, len(self.sizes) * self.part_bytes, np.int64)
        return Found(ids, Work(read, np.zeros(m, np.int64), summaries))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Budgets up to all keys: a part's summary tells little where its keys have little in common."""
        return super().effort_sweep(2 * n, k)

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Places the block and makes the summaries of the parts it joins anew."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        if not len(keys):
            return
        placed = np.asarray(self.place(first, self.keys[first:]), np.int32)
        self._labels = np.concatenate([self._labels, placed])
        self._arrange()
        changed = np.unique(placed)
        ids = ragged(self.members, self.starts[changed][None], self.sizes[changed][None])[0]
        offsets = np.cumsum(self.sizes[changed]) - self.sizes[changed]
        more = len(self.sizes) - len(self.summaries)
        if more:
            fresh = np.zeros((more, self.summaries.shape[1]), self.summaries.dtype)
            self.summaries = np.concatenate([self.summaries, fresh])
        self.summaries[changed] = self.summarize(ids, offsets)

    @property
    def nbytes(self) -> Bytes:
        """Summaries, and which key is in which part."""
        lists = (self._labels, self.members, self.sizes, self.starts)
        return Bytes(self.summaries.nbytes + sum(array.nbytes for array in lists))

    def save_state(self, folder: Path) -> None:
        """Parts and summaries."""
        np.save(folder / "labels.npy", self._labels)
        np.save(folder / "summaries.npy", self.summaries)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads parts and summaries."""
        self._labels, self.summaries = np.load(folder / "labels.npy"), np.load(folder / "summaries.npy")
        if self._labels.shape != (len(self.keys),):
            raise ValueError(f"labels must be ({len(self.keys)},), got {self._labels.shape}")
        self._arrange()


def means(rows: np.ndarray, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The mean (d,) of each part's `rows` (n, d), float32: part i has rows ids[offsets[i]:offsets[i + 1]]."""
    sizes = np.diff(np.append(offsets, len(ids)))[:, None].astype(np.float32)
    return np.add.reduceat(rows[ids].astype(np.float32), offsets, axis=0) / sizes


def products(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products (m, r) float32 of `queries` (m, w) and `rows` (r, w) float16 or float32.

    By the native kernel, which reads float16 rows as they are; NumPy would widen all of them in each call.
    """
    from ra_bench.indexes._native._native import dot_rows  # compiled

    every = np.arange(len(rows), dtype=np.int32)
    out = np.empty((len(queries), len(rows)), np.float32)
    for row, query in enumerate(np.ascontiguousarray(queries, np.float32)):
        out[row] = dot_rows(query, rows, every)
    return out


def ragged(members: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Slices members[start : start + count] of each row of `starts` and `counts` (r, p), one after another.

    Returns (r, largest sum of counts), int32, each row filled up with -1.
    """
    totals = counts.sum(axis=1)
    width = int(totals.max(initial=0))
    flat = counts.ravel()
    shifts = np.repeat(starts.ravel() - (np.cumsum(flat) - flat), flat)
    ids = np.full((len(counts), width), -1, np.int32)
    ids[np.arange(width) < totals[:, None]] = members[shifts + np.arange(len(shifts))]
    return ids


def top_parts(scores: np.ndarray, p: int) -> np.ndarray:
    """Places (r, p) of the largest of each row, largest first; of equals, the first."""
    if p < scores.shape[1]:
        near = np.argpartition(-scores, p - 1, axis=1)[:, :p]
        near.sort(axis=1)
    else:
        near = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, near, axis=1), axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)
