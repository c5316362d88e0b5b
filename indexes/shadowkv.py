"""Chunks of 8 keys chosen by their mean; the chosen keys are rebuilt from a low-rank form without rotation.

Sun et al., "ShadowKV: KV cache in shadows for high-throughput long-context LLM inference", ICML 2025, arXiv
2410.21465. As in the paper the basis is that of all heads' keys of a layer before the rotary embedding, a
group's heads share the chunks of their largest softmax weight, and the chunks that their mean stands for
worst (outliers) are kept exact and always attended. Differs: the local chunks are the harness's window;
outliers take at most the share of a budget that they have in the paper (48 chunks beside 256); where one head
is built alone, as in `compare`, it gets its share of the rank, which rebuilds it worse than the same share of
a layer's basis; later keys stay exact. `search` ranks the chosen keys by their true inner products. Found
here: on the sample's head, alone and of 64 dimensions, the share of the rank is 10, and what is lost in
rebuilding keys is most of the error (a fifth of the tokens: .33 of the index's output, with all 64 .07).
Build O(n d²), search O(n d / 8 + chosen rank d), insert O(d) a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._rotary import from_arrays, rotary_of, to_arrays

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Partial, Work
from ra_bench.partition import PartitionIndex, means

OUTLIER_SHARE = 48 / (48 + 256)  # of a budget of chunks, in the paper
ROWS_AT_ONCE = 1 << 16  # keys that are rebuilt in one go


@dataclass
class ShadowKV(PartitionIndex):
    """Landmarks (means) of chunks, and A (n, rank) B (rank, d) in place of the keys before rotation."""

    paper: ClassVar[str] = "arXiv 2410.21465"
    shares_group: ClassVar[bool] = True

    chunk: int = 8  # keys that share a landmark
    outliers: int = 48  # chunks kept exact
    rank_share: float = 160 / 1024  # rank of the layer's keys, over their dimensions; the paper's is 160

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("outliers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.rank_share <= 1:
            raise ValueError(f"rank_share must be in (0, 1], got {self.rank_share}")

    _waits = False  # for the other heads of its layer
    _exact = np.empty(0, bool)  # (n,): which keys are not rebuilt

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Landmarks, outliers and, unless `build_layer` does it, a low-rank form of this head alone."""
        super().build(keys, values, queries, about)
        self._rotary = rotary_of(about)
        self._outliers = self._find_outliers()
        if not self._waits:
            _fit([self])

    def partition(self, queries: np.ndarray | None, about: Head | None) -> np.ndarray:
        """Chunks in the order of the keys."""
        return self.place(0, self.keys)

    def place(self, first: int, keys: np.ndarray) -> np.ndarray:
        """The chunks go on."""
        return (first + np.arange(len(keys))) // self.chunk

    def summarize(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Means."""
        return means(self.keys, ids, offsets)

    def _find_outliers(self) -> np.ndarray:
        """Chunks whose least alike key has the lowest cosine with the landmark, worst first."""
        rows, means = self.keys.astype(np.float32), self.summaries[self._labels]
        sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(means, axis=1)
        cosines = np.einsum("nd,nd->n", rows, means) / np.maximum(sizes, 1e-30)
        worst = np.minimum.reduceat(cosines, self.starts[:-1])  # chunks lie in the order of the keys
        return np.argsort(worst, kind="stable")[: self.outliers]

    def score_parts(self, queries: np.ndarray) -> np.ndarray:
        """The largest softmax weight of a group's queries on each landmark, (m / G, parts)."""
        logits = queries @ self.summaries.T
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        weights /= weights.sum(axis=1, keepdims=True)
        return weights.reshape(-1, self.group, weights.shape[1]).max(axis=1)

    def choose(self, queries: np.ndarray, tokens: int) -> Found:
        """Some outliers, then the chunks of the largest weights, until they hold `tokens` keys."""
        queries = np.ascontiguousarray(queries, np.float32)
        scores = self.score_parts(queries)
        scores[:, self._outliers[: self._outlier_count(tokens)]] = 2.0  # more than any weight
        parts, counts = self.best_parts(scores, tokens)
        return self.found(parts, counts, len(queries))

    def _outlier_count(self, tokens: int) -> int:
        return min(len(self._outliers), int(OUTLIER_SHARE * tokens / self.chunk))

    def attend(self, queries: np.ndarray, k: int | None, *, budget: int = 0) -> Partial:
        """Attention over the chosen keys as they are rebuilt, and their exact values."""
        if self.values is None:
            raise ValueError("attend needs values: build the index with values")
        queries = np.ascontiguousarray(queries, np.float32)
        chosen = self.choose(queries, self.budget_tokens(k, budget))
        ids = chosen.ids[:: self.group]  # a row a token
        rows = queries.reshape(-1, self.group, queries.shape[1])
        output, lse = np.zeros(rows.shape, np.float32), np.full(rows.shape[:2], -np.inf, np.float32)
        step = max(1, ROWS_AT_ONCE // max(ids.shape[1], 1))
        for start in range(0, len(ids), step):
            block = slice(start, start + step)
            keys = self._rebuilt(ids[block])
            logits = np.where(ids[block, None] >= 0, rows[block] @ keys.transpose(0, 2, 1), -np.inf)
            highest = logits.max(axis=2, keepdims=True)
            weights = np.exp(logits - highest)
            total = weights.sum(axis=2, keepdims=True)
            output[block] = (weights / total) @ self.values[ids[block]].astype(np.float32)
            lse[block] = (np.log(total) + highest)[..., 0]
        return Partial(output.reshape(queries.shape), lse.ravel(), self._attend_work(chosen))

    def _rebuilt(self, ids: np.ndarray) -> np.ndarray:
        """Keys (t, w, d) of `ids` (t, w): outliers and later ones exact, the others low-rank."""
        import torch

        flat = np.maximum(ids.ravel(), 0)
        exact = self._exact[flat]
        rows = self._coefficients[np.where(exact, 0, flat)].astype(np.float32) @ self._basis
        if self._rotary is not None:
            places = torch.tensor(np.where(exact, 0, flat), dtype=torch.int64)
            rows = self._rotary.apply(torch.from_numpy(rows), places).numpy()
        rows[exact] = self.keys[flat[exact]]
        return rows.reshape(*ids.shape, -1)

    def _attend_work(self, chosen: Found) -> Work:
        real = chosen.ids >= 0
        attended = real.sum(axis=1)
        exact = (real & self._exact[chosen.ids]).sum(axis=1)
        rank, d = self._basis.shape
        low_rank = rank * self._coefficients.itemsize
        value_bytes = 0 if self.values is None else self.values.itemsize
        searched = chosen.work.bytes_read if chosen.work.bytes_read is not None else 0
        read = searched + attended * d * value_bytes + exact * d * self.keys.itemsize
        return Work(chosen.work.keys_read, exact, read + (attended - exact) * low_rank, attended)

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> None:
        """None: most keys are rebuilt, and so not exact."""

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Joins or opens chunks; the block's keys stay exact."""
        super().insert(keys, values)
        self._exact = np.concatenate([self._exact, np.ones(len(keys), bool)])

    @property
    def nbytes(self) -> Bytes:
        """Landmarks, lists and the low-rank form (of a layer's heads, each counts its share)."""
        held = self._coefficients.nbytes // self._sharers + self._basis.nbytes + self._exact.nbytes
        return Bytes(super().nbytes.host + held)

    def _set_form(self, coefficients: np.ndarray, basis: np.ndarray, sharers: int) -> None:
        """Takes A (n, rank), which `sharers` heads share, and B (rank, d)."""
        self._coefficients, self._basis, self._sharers = coefficients, basis, sharers
        self._exact = np.isin(self._labels, self._outliers)

    def _unrotated(self) -> np.ndarray:
        """The keys before rotation, float32."""
        rows = np.asarray(self.keys, np.float32)
        return rows if self._rotary is None else self._rotary.rope.undo(rows, self._rotary.positions)

    def save_state(self, folder: Path) -> None:
        """Landmarks, outliers, low-rank form."""
        super().save_state(folder)
        form = {"coefficients": self._coefficients, "basis": self._basis, "sharers": np.array(self._sharers)}
        form |= {"outliers": self._outliers, "exact": self._exact}
        np.savez(folder / "form.npz", **form, **to_arrays(self._rotary))  # type: ignore[arg-type]

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads them."""
        super().load_state(folder, mmap)
        with np.load(folder / "form.npz") as saved:
            self._rotary, self._outliers = from_arrays(saved), saved["outliers"]
            self._set_form(saved["coefficients"], saved["basis"], int(saved["sharers"]))
            self._exact = saved["exact"]

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
        """Builds all heads of a layer on one low-rank form of their keys side by side."""
        heads = [index for index in indexes if isinstance(index, ShadowKV)]
        for head in heads:
            head._waits = True
        super().build_layer(indexes, keys, values, queries, about, threads)
        for head in heads:
            head._waits = False
        _fit(heads)


def _fit(heads: Sequence[ShadowKV]) -> None:
    """Leading singular vectors of the heads' unrotated keys side by side, (n, H d), and coefficients."""
    side_by_side = np.concatenate([head._unrotated() for head in heads], axis=1)
    width = side_by_side.shape[1]
    rank = min(width, max(1, round(heads[0].rank_share * width)))
    _, vectors = np.linalg.eigh((side_by_side.T @ side_by_side).astype(np.float64))
    basis = np.ascontiguousarray(vectors[:, ::-1][:, :rank].T, np.float32)  # (rank, H d)
    coefficients = (side_by_side @ basis.T).astype(heads[0].keys.dtype)
    d = width // len(heads)
    for h, head in enumerate(heads):
        head._set_form(coefficients, np.ascontiguousarray(basis[:, h * d : (h + 1) * d]), len(heads))
