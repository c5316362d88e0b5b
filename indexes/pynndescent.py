"""Nearest-neighbour graph refined by neighbours of neighbours, then pruned and searched best first.

Dong, Moses, Li, "Efficient k-nearest neighbor graph construction for generic similarity measures", WWW 2011;
pynndescent: McInnes 2018-. The library's distances for inner product take every key with q·k <= 0 as
infinitely far, so a raw search finds little at any price. Keys of one length (normalize, lift) are compared
by Euclidean distance instead, with queries scaled to that length, which has the same order. Up to four times
`neighbors` keys are scanned. Search takes one thread whatever `threads` says. Compiled by numba, anew in each
process: `warm_up` takes half a minute; for raw inner product again by each object, 2 seconds of each build.
Build O(n^1.14) by the paper's measurements; no insert.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Work, pad_ids

SCAN_FACTOR = 4
EQUAL_NORMS = 1e-3  # relative spread of norms up to which keys count as lying on a sphere
MOST_RESULTS = 2**15 - 1  # pynndescent counts its heap in int16
CODE_BYTES = 11 << 20  # what numba compiles for one object of raw inner product (numba 0.68, x86-64)


@dataclass
class PyNNDescent(Index):
    """pynndescent.NNDescent on a float32 copy of the keys."""

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "Dong et al. 2011"
    needs_lift: ClassVar[bool] = True
    copies_keys: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("pynndescent",)

    neighbors: int = 30  # the paper's K: neighbours of a key in the graph

    def __post_init__(self) -> None:
        if self.neighbors < 2:
            raise ValueError(f"neighbors must be at least 2, got {self.neighbors}")

    def warm_up(self, d: int) -> None:
        """Lets numba compile build and search for both metrics, on random rows."""
        rows = np.random.default_rng(0).standard_normal((10 * self.neighbors, d)).astype(np.float32)
        for metric in ("euclidean", "inner_product"):
            self._descend(rows, metric).query(rows[:7], k=10)

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Neighbour graph, pruning, search tree."""
        super().build(keys, values, queries, about)
        self._count = len(self.keys)
        rows = self.keys.astype(np.float32)  # a copy: the library reorders it
        norms = np.linalg.norm(rows, axis=1)
        self._on_sphere = bool(norms.max() - norms.min() <= EQUAL_NORMS * norms.max())
        self._norm = float(norms.max())
        self._rows: np.ndarray | None = None
        self._graph: Any = None
        if len(rows) <= SCAN_FACTOR * self.neighbors:
            self._rows = rows
        else:
            self._graph = self._descend(rows, "euclidean" if self._on_sphere else "inner_product")

    def _descend(self, rows: np.ndarray, metric: str) -> Any:
        import numba
        import pynndescent

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of neighbours that duplicates crowd out
            graph = pynndescent.NNDescent(
                rows,
                metric=metric,
                n_neighbors=self.neighbors,
                random_state=self.seed,
                n_jobs=min(self.threads, numba.get_num_threads()),
                compressed=True,
            )
            graph.prepare()
        return graph

    def search(self, queries: np.ndarray, k: int | None, *, epsilon: float = 0.02) -> Found:
        """Expands keys up to (1 + `epsilon`) times as far as the k-th best (by default the 100th)."""
        k = 100 if k is None else k
        queries = np.ascontiguousarray(queries, np.float32)
        if self._rows is not None:
            order = np.argsort(-(queries @ self._rows.T), axis=1)
            return Found(pad_ids(order, k), Work())
        if self._on_sphere:
            norms = np.linalg.norm(queries, axis=1, keepdims=True)
            queries = queries * (self._norm / np.maximum(norms, np.finfo(np.float32).tiny))
        top = min(k, self._count, MOST_RESULTS)
        ids = self._graph.query(queries, k=top, epsilon=epsilon, return_distances=False)
        return Found(pad_ids(_without_fill(ids), k), Work())

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Up to 10 % farther; much more visits every key."""
        epsilons = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
        return [{"epsilon": epsilon} for epsilon in epsilons]

    @property
    def nbytes(self) -> Bytes:
        """Every array that the library's object holds, and the code that is compiled for it alone."""
        if self._rows is not None:
            return Bytes(self._rows.nbytes)
        code = 0 if self._on_sphere else CODE_BYTES
        return Bytes(code + sum(_arrays(vars(self._graph), {}).values()))


def _without_fill(ids: np.ndarray) -> np.ndarray:
    """`ids` with -1 where the graph did not reach k keys.

    The library translates its -1 into the id of the last key of its own order; so a row's last id that is
    there more than once is no find.
    """
    same = ids == ids[:, -1:]
    if same.sum() > len(ids):
        run = np.logical_and.accumulate(same[:, ::-1], axis=1)[:, ::-1]
        repeated = same.sum(axis=1, keepdims=True) > 1
        return np.where(run & repeated, -1, ids)
    return ids


def _arrays(held: Any, seen: dict[int, int]) -> dict[int, int]:
    """Bytes of all arrays within dictionaries, sequences and sparse matrices, by address."""
    if isinstance(held, np.ndarray):
        seen[held.__array_interface__["data"][0]] = held.nbytes
    elif isinstance(held, dict):
        for value in held.values():
            _arrays(value, seen)
    elif isinstance(held, tuple | list):
        for value in held:
            _arrays(value, seen)
    elif hasattr(held, "indptr"):
        _arrays([held.data, held.indices, held.indptr], seen)
    return seen
