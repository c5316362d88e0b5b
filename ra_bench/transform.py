"""Geometry for inner product, as one axis for every index: `none`, `normalize`, `lift` (SPEC@lift).

Graph construction prunes a neighbour that another kept neighbour is closer to. Under raw inner product the
keys of largest norm are "closest" to everything, occlude all others, and the graph falls apart. `lift`
repairs it and keeps the order of inner products exactly; `normalize` does not keep it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index

# Later keys may be longer than any key seen at build; c is this much above the largest norm.
LIFT_HEADROOM = 1.05


class Transform(ABC):
    """A map of keys and queries into the space in which an index is built; `fit` sees the keys only."""

    keeps_order = False  # of inner products: exact neighbours of the raw vectors are those of the mapped ones
    clamped = 0  # inserted keys that did not fit the lift and were shortened

    @abstractmethod
    def fit(self, keys: np.ndarray) -> None:
        """Learns what the map needs from `keys` (n, d)."""

    @abstractmethod
    def keys(self, keys: np.ndarray) -> np.ndarray:
        """Maps `keys` (n, d) to (n, d'), float32."""

    @abstractmethod
    def queries(self, queries: np.ndarray) -> np.ndarray:
        """Maps `queries` (m, d) to (m, d'), float32."""

    def state(self) -> dict[str, float]:
        """What `fit` learned, as JSON can hold it; `vars(transform).update` restores it."""
        return dict(vars(self))


class Normalize(Transform):
    """k / |k|. Inner product becomes |q| cos(q, k): the order changes with the spread of norms."""

    def fit(self, keys: np.ndarray) -> None:
        pass

    def keys(self, keys: np.ndarray) -> np.ndarray:
        keys = keys.astype(np.float32)
        norms = np.linalg.norm(keys, axis=1, keepdims=True)
        return keys / np.maximum(norms, np.finfo(np.float32).tiny)

    def queries(self, queries: np.ndarray) -> np.ndarray:
        return np.asarray(queries, np.float32)


class Lift(Transform):
    """(k / c, sqrt(1 - |k / c|²)) and (q, 0): all keys on a sphere, q·k divided by c.

    Bachrach et al., "Speeding up the Xbox recommender system using a Euclidean transformation for
    inner-product spaces", RecSys 2014, section 3. The order of inner products is kept exactly.
    It helps a graph where keys lie in clusters around a common mean, as attention's do; on centred Gaussian
    keys with a wide spread of norms most lifted keys huddle at the pole, and a raw graph finds more.
    """

    keeps_order = True

    def __init__(self) -> None:
        self.c = 1.0
        self.clamped = 0

    def fit(self, keys: np.ndarray) -> None:
        largest = float(np.sqrt(_squared_norms(keys).max()))
        self.c = largest * LIFT_HEADROOM if largest > 0 else 1.0
        self.clamped = 0

    def keys(self, keys: np.ndarray) -> np.ndarray:
        lifted = np.empty((len(keys), keys.shape[1] + 1), np.float32)
        # float32 before the division: a float16 quotient would be rounded, and the order of keys with it.
        np.multiply(keys, np.float32(1.0 / self.c), out=lifted[:, :-1], dtype=np.float32)
        squared = _squared_norms(lifted[:, :-1])
        too_long = squared > 1.0
        if too_long.any():
            self.clamped += int(too_long.sum())
            lifted[too_long, :-1] /= np.sqrt(squared[too_long, None])
        lifted[:, -1] = np.sqrt(np.maximum(1.0 - squared, 0.0))
        return lifted

    def queries(self, queries: np.ndarray) -> np.ndarray:
        return widened(queries, 0)


TRANSFORMS: dict[str, type[Transform]] = {"normalize": Normalize, "lift": Lift}


class Transformed(Index):
    """Any index, built on transformed keys and asked with transformed queries (SPEC@TRANSFORM).

    `attend` gathers from the original rows, so its output is exact over what the inner index found.
    """

    def __init__(self, inner: Index, transform: Transform) -> None:
        self.inner = inner
        self.transform = transform
        self.learn_queries = inner.learn_queries
        self.learn_neighbors = inner.learn_neighbors
        # What the inner method is, this one is; they are class variables, so by their names.
        facts = ("kind", "paper", "query_aware", "can_insert", "deterministic", "where")
        vars(self).update({name: getattr(inner, name) for name in facts})

    def use_threads(self, threads: int) -> None:
        """Sets the inner index's threads too."""
        super().use_threads(threads)
        self.inner.use_threads(threads)

    def warm_up(self, d: int) -> None:
        """Warms the inner index up for the rows that the transform makes."""
        self.inner.warm_up(self.transform.queries(np.zeros((1, d), np.float32)).shape[1])

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Fits the transform to `keys` and builds the inner index on what it makes of them."""
        super().build(keys, values, queries, about)
        self.inner.seed = self.seed
        self.inner.use_threads(self.threads)
        self.transform.fit(self.keys)
        learn = None if queries is None else self.transform.queries(queries)
        # The rotary embedding no longer applies to transformed vectors.
        about = None if about is None else replace(about, rope=None)
        if about is not None and not self.transform.keeps_order:
            about = replace(about, query_neighbors=None)
        self.inner.build(self.transform.keys(self.keys), None, learn, about)
        drop_copied_rows(self.inner)

    def search(self, queries: np.ndarray, k: int | None, **effort: Any) -> Found:
        """The inner index's search with transformed queries."""
        return self.inner.search(self.transform.queries(queries), k, **effort)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """The inner index's sweep."""
        return self.inner.effort_sweep(n, k)

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Inserts transformed keys; a key beyond the lift's headroom is shortened and counted."""
        if not self.can_insert:
            raise NotImplementedError(f"{type(self.inner).__name__} cannot insert")
        self.keep_inserted(keys, values)  # first: it checks them
        self.inner.insert(self.transform.keys(keys))
        drop_copied_rows(self.inner)

    def observe(self, queries: np.ndarray) -> None:
        """Passes the step's queries on."""
        self.inner.observe(self.transform.queries(queries))

    @property
    def is_stateful(self) -> bool:
        """Whether the inner index is."""
        return self.inner.is_stateful

    @property
    def nbytes(self) -> Bytes:
        """The inner index's memory and its transformed copy of the keys, unless it holds its own."""
        inner = self.inner.nbytes
        return Bytes(inner.host + self.inner.keys.nbytes, inner.device)

    def save_state(self, folder: Path) -> None:
        """Saves the inner index in a subfolder."""
        self.inner.save(folder / "inner")
        np.savez(folder / "transform.npz", **self.transform.state())  # type: ignore[arg-type]

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Loads the inner index from its subfolder."""
        self.inner = type(self.inner).load(folder / "inner", mmap)
        with np.load(folder / "transform.npz") as state:
            vars(self.transform).update({name: state[name].item() for name in state.files})


def widened(rows: np.ndarray, last: float) -> np.ndarray:
    """`rows` (m, d) as (m, d + 1) float32, with `last` for the last coordinate of each."""
    out = np.full((len(rows), rows.shape[1] + 1), last, np.float32)
    out[:, :-1] = rows
    return out


def drop_copied_rows(inner: Index) -> None:
    """Lets the rows go that an inner index was given, where its library keeps its own copy of them."""
    if inner.copies_keys:
        inner.keys = np.empty((0, inner.keys.shape[1]), inner.keys.dtype)  # a slice would keep them alive
        inner._buffers = {}


def _squared_norms(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32, copy=False)
    return np.einsum("nd,nd->n", rows, rows)
