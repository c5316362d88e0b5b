"""Keys, queries and values in low-rank bases: attends to all keys in the reduced space, rank by error budget.

Saxena et al., "Eigen attention: attention in low-rank space for KV cache compression", EMNLP Findings 2024,
arXiv 2408.05646. As in the paper the basis of keys and queries is joint and of a layer, before the rotary
embedding (keys are projected up and rotated anew for each call, which is most of the time here and none of it
for models without a rotation), that of the values is of a head, and the threshold on the singular values
falls until the output's relative error exceeds the budget. Differs: the error is that of the head's attention
over the indexed keys instead of the layer's output; it is measured on prefill queries and some keys of this
document instead of a calibration text; where one head is built alone, as in `compare`, it is its layer. Found
here: the first step of the threshold costs the sample's head (64 dimensions) more than the budget, so that
nothing is saved where the paper, on heads of 128, saves up to 40 %; at 23 % fewer bytes (`error=0.2`, 49 and
57 dimensions kept) the index's output is off by .12.
Build O(n d² + thresholds d), no search, attention O(n rank d), insert O(d rank) a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ra_bench.indexes._rotary import Rotary, from_arrays, rotary, rotary_of, to_arrays

from ra_bench.compressor import Compressor
from ra_bench.encoding import GrowingColumns
from ra_bench.head import Head
from ra_bench.index import Bytes, Index

if TYPE_CHECKING:
    import torch

STEP = 0.02  # by which the threshold on the singular values falls
TRIED_KEYS, TRIED_QUERIES = 4096, 64  # of a head, on which a threshold's error is measured
ROTATED_AT_ONCE = 1 << 13


@dataclass
class Eigen(Compressor):
    """softmax(q U Uᵀ k) over values W Wᵀ v, with bases U (d, rank) and W (d, value rank)."""

    paper: ClassVar[str] = "arXiv 2408.05646"
    query_aware: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True

    error: float = 0.025  # budget: relative error of the output that the ranks may cause
    least: float = 0.45  # of d: no rank falls below
    rank: int = 0  # of keys and values, at most d; 0: by the error budget
    basis: Literal["layer", "head"] = "layer"  # whose keys and queries the joint basis is of
    learn_queries: int = 4096

    def __post_init__(self) -> None:
        for name in ("error", "least", "rank", "learn_queries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.least > 1:
            raise ValueError(f"least must be at most 1, got {self.least}")

    _waits = False  # for the other heads of its layer

    def compress(
        self,
        keys: torch.Tensor,
        values: torch.Tensor | None,
        queries: torch.Tensor | None,
        about: Head | None,
    ) -> None:
        """Fits bases to the head alone, or leaves that to `build_layer`."""
        self._about = about
        self._rotary = rotary_of(about)
        self._learn = self._unrotated_queries(queries, about)
        if not self._waits:
            _fit([self])

    def _unrotated_queries(self, queries: torch.Tensor | None, about: Head | None) -> np.ndarray:
        """Learn queries (m, d) before rotation and softmax scale; the keys where there are none."""
        if queries is None or not len(queries) or about is None:
            return self._unrotated()
        rows = queries.cpu().numpy() / about.softmax_scale
        if self._rotary is None or about.query_positions is None:
            return rows
        return self._rotary.rope.undo(rows, about.query_positions)

    def _unrotated(self, first: int = 0) -> np.ndarray:
        """Keys from `first` on before rotation, (any, d) float32."""
        rows = np.asarray(self.keys[first:], np.float32)
        return rows if self._rotary is None else self._rotary.rope.undo(rows, self._positions(first))

    def _positions(self, first: int) -> np.ndarray:
        assert self._rotary is not None
        known = self._rotary.positions
        later = known[-1] + 1 + np.arange(max(0, len(self.keys) - len(known)))
        return np.concatenate([known, later])[first : len(self.keys)]

    def _set_bases(self, key_basis: np.ndarray, value_basis: np.ndarray) -> None:
        """Takes bases (d, rank), and compresses all rows."""
        self.key_basis, self.value_basis = key_basis, value_basis
        self._keys = GrowingColumns(self._reduced(self._unrotated() @ key_basis))
        self._values: GrowingColumns | None = None
        if self.values is not None:
            self._values = GrowingColumns(self._reduced(np.asarray(self.values, np.float32) @ value_basis))
        self._learn = np.empty((0, self.keys.shape[1]), np.float32)

    def _reduced(self, rows: np.ndarray) -> torch.Tensor:
        import torch

        kind = torch.float16 if self.keys.dtype == np.float16 else torch.float32
        return torch.tensor(np.ascontiguousarray(rows.T), device=self.device).to(kind)

    def logits(self, queries: torch.Tensor) -> torch.Tensor:
        """Inner products in the reduced space; rotated keys are projected up and rotated first."""
        import torch

        basis = self._tensor(self.key_basis)
        if self._rotary is None:
            return queries @ basis @ self._keys.filled.float()
        table = self._table()
        starts = range(0, len(self.keys), ROTATED_AT_ONCE)
        places = [slice(start, min(start + ROTATED_AT_ONCE, len(self.keys))) for start in starts]
        scores = [
            queries @ table.apply(self._keys.filled[:, block].float().T @ basis.T, block).T
            for block in places
        ]
        return torch.cat(scores, dim=1)

    def _table(self) -> Rotary:
        assert self._rotary is not None
        if len(self._rotary.positions) < len(self.keys):  # of inserted keys; with room for more
            more = self._rotary.positions[-1] + 1 + np.arange(len(self.keys) // 4 + 1)
            self._rotary = rotary(self._rotary.rope, np.concatenate([self._rotary.positions, more]))
        return self._rotary

    def mix(self, weights: torch.Tensor) -> torch.Tensor:
        """Weighted values in the reduced space, projected up."""
        assert self._values is not None
        return weights @ self._values.filled.float().T @ self._tensor(self.value_basis).T

    @property
    def token_bytes(self) -> float:
        """A key and a value in their reduced spaces."""
        ranks = self.key_basis.shape[1] + (self.value_basis.shape[1] if self.values is not None else 0)
        return ranks * self.keys.itemsize

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Reduces the block by the same bases; its positions follow the last."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        self._keys.append(self._reduced(self._unrotated(first) @ self.key_basis))
        if self._values is not None and self.values is not None:
            rows = np.asarray(self.values[first:], np.float32)
            self._values.append(self._reduced(rows @ self.value_basis))

    @property
    def nbytes(self) -> Bytes:
        """Reduced rows and bases; the tables of the rotation are the model's, shared by all heads."""
        parts = [self._keys] + ([] if self._values is None else [self._values])
        reduced = sum(part.buffer.numel() * part.buffer.element_size() for part in parts)
        return Bytes(reduced + self.key_basis.nbytes + self.value_basis.nbytes)

    def save_state(self, folder: Path) -> None:
        """The bases, and where the keys were rotated to."""
        bases = {"key_basis": self.key_basis, "value_basis": self.value_basis}
        np.savez(folder / "bases.npz", **bases, **to_arrays(self._rotary))  # type: ignore[arg-type]

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reduces the rows by the saved bases."""
        with np.load(folder / "bases.npz") as saved:
            self._rotary = from_arrays(saved)
            self._set_bases(saved["key_basis"], saved["value_basis"])

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
        """Builds all heads of a layer, whose keys and queries share one basis."""
        heads = [index for index in indexes if isinstance(index, Eigen) and index.basis == "layer"]
        for head in heads:
            head._waits = True
        super().build_layer(indexes, keys, values, queries, about, threads)
        for head in heads:
            head._waits = False
        if heads:
            _fit(heads)


def _fit(heads: Sequence[Eigen]) -> None:
    """Joint basis of all heads' keys and queries, a value basis each; ranks by the first head's settings."""
    settings, d = heads[0], heads[0].keys.shape[1]
    key_values, key_vectors = _singular([rows for head in heads for rows in (head._unrotated(), head._learn)])
    of_values = [_singular([head.keys[:0] if head.values is None else head.values]) for head in heads]
    least = min(d, max(1, round(settings.least * d)))

    def bases(threshold: float) -> list[tuple[np.ndarray, np.ndarray]]:
        rank = settings.rank or max(least, _rank(key_values, threshold))
        ranks = [settings.rank or max(least, _rank(sizes, threshold)) for sizes, _ in of_values]
        return [
            (key_vectors[:, :rank], vectors[:, :own])
            for own, (_, vectors) in zip(ranks, of_values, strict=True)
        ]

    chosen = bases(1.0)
    if not settings.rank:
        trials = [_Trial(head) for head in heads]
        for step in range(1, round(1 / STEP)):
            found = bases(1.0 - step * STEP)
            errors = [trial.error(*pair) for trial, pair in zip(trials, found, strict=True)]
            if np.mean(errors) > settings.error:
                break
            chosen = found
            if all(max(one.shape[1], two.shape[1]) == least for one, two in found):
                break
    for head, pair in zip(heads, chosen, strict=True):
        head._set_bases(*(np.ascontiguousarray(one) for one in pair))


def _singular(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, largest first, and right singular vectors (d, d) of the stacked rows of `parts`."""
    rows = [np.asarray(part, np.float32) for part in parts]
    gram = np.sum([part.T @ part for part in rows], axis=0, dtype=np.float64)
    squares, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(squares[::-1], 0)), np.ascontiguousarray(vectors[:, ::-1], np.float32)


def _rank(sizes: np.ndarray, threshold: float) -> int:
    """How many singular values have a cumulative share below the threshold (the paper's rule)."""
    total = sizes.sum()
    if threshold >= 1.0 or total <= 0:
        return len(sizes)
    return max(1, int((np.cumsum(sizes) / total < threshold).sum()))


class _Trial:
    """A head's exact output on some of its keys and learn queries, against which thresholds are judged."""

    def __init__(self, head: Eigen) -> None:
        n = len(head.keys)
        places = np.unique(np.linspace(0, n - 1, min(n, TRIED_KEYS)).round().astype(np.int64))
        self._head = head
        self._keys = head._unrotated()[places]
        self._values = np.asarray(head.keys if head.values is None else head.values, np.float32)[places]
        self._positions = None if head._rotary is None else head._positions(0)[places]
        last = head._learn[-TRIED_QUERIES:]
        scale = head._about.softmax_scale if head._about is not None else 1.0
        self._queries = self._rotated(last, np.full(len(last), self._last)) * scale
        self._exact = self._attend(self._keys, self._values)

    @property
    def _last(self) -> int:
        return 0 if self._positions is None else int(self._positions[-1]) + 1

    def _rotated(self, rows: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        rotation = self._head._rotary
        return rows if rotation is None or positions is None else rotation.rope.apply(rows, positions)

    def _attend(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        logits = self._queries @ self._rotated(keys, self._positions).T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (weights @ values) / weights.sum(axis=1, keepdims=True)

    def error(self, key_basis: np.ndarray, value_basis: np.ndarray) -> float:
        """Relative error of the output with rows projected to the bases."""
        output = self._attend(
            self._keys @ key_basis @ key_basis.T, self._values @ value_basis @ value_basis.T
        )
        return float(np.linalg.norm(output - self._exact)) / max(float(np.linalg.norm(self._exact)), 1e-30)
