"""The index under test, the easy data it is tried on, and how a check says that a fact does not hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ra_bench import registry
from ra_bench.head import Head
from ra_bench.index import Found, Index, Partial

# The easy set: unit vectors around centers, queries of the same kind, a little longer than one.
N_KEYS, DIM, GROUP, N_QUERIES, N_LEARN, K, N_INSERTED = 1500, 16, 4, 24, 512, 10, 48
N_CENTERS, SPREAD, QUERY_NORM = 20, 0.5, 4.0
RECALL_FLOOR = 0.5
INSERTED_FLOOR = 0.8  # of the inserted keys, how many a query in their direction must find first
ERROR_CEILING = 0.9  # of attention by a method that draws or compresses; an output of zero has 1
DRAWS = 32  # seeds over whose draws a sampling method must be right on average
DRAWN = 200  # keys that it may draw each time: attention on the easy set is spread over hundreds
HALF_OVERLAP = 0.8  # of the ids from float32 keys, how many float16 keys of the same values must give


class Data(NamedTuple):
    """Arrays of the easy set."""

    keys: np.ndarray  # (N_KEYS, DIM) float32
    values: np.ndarray
    learn: np.ndarray  # (N_LEARN, DIM) float32, in blocks of GROUP
    queries: np.ndarray  # (N_QUERIES, DIM) float32, in blocks of GROUP
    more_keys: np.ndarray  # (N_INSERTED, DIM)
    more_values: np.ndarray


def easy_data(seed: int = 0) -> Data:
    """Clustered unit vectors with queries of the same distribution: any search should do well."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((N_CENTERS, DIM))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)

    def unit(count: int) -> np.ndarray:
        near = centers[rng.integers(N_CENTERS, size=count)]
        rows = near + SPREAD / np.sqrt(DIM) * rng.standard_normal((count, DIM))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def normal(count: int) -> np.ndarray:
        return rng.standard_normal((count, DIM)).astype(np.float32)

    return Data(
        keys=unit(N_KEYS),
        values=normal(N_KEYS),
        learn=QUERY_NORM * unit(N_LEARN),
        queries=QUERY_NORM * unit(N_QUERIES),
        more_keys=unit(N_INSERTED),
        more_values=normal(N_INSERTED),
    )


class Subject:
    """The index under test: its spec, and how the checks build and ask it."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.data = easy_data()

    def create(self, seed: int = 0) -> Index:
        """A new, unbuilt object."""
        return registry.create(self.spec, seed=seed)

    def built(self, keys: np.ndarray | None = None, values: np.ndarray | None = None, seed: int = 0) -> Index:
        """A new object, built over `keys` or the easy set as the harness would: with learn queries."""
        if keys is None:
            keys, values = self.data.keys, self.data.values
        index = self.create(seed)
        self.build(index, keys, values)
        return index

    def build(self, index: Index, keys: np.ndarray, values: np.ndarray | None) -> None:
        """Builds `index` with learn queries and what the harness tells of them."""
        wanted = index.learn_queries > 0 and keys.shape[1] == DIM
        learn = self.data.learn if wanted else None
        index.build(keys, values, learn, about(keys, learn, index.learn_neighbors))

    @cached_property
    def index(self) -> Index:
        """One object over the easy set, for the checks that change nothing."""
        return self.built()

    def sweep(self, index: Index, n: int, k: int) -> list[dict[str, Any]]:
        """The sweep, without what the spec fixes."""
        fixed = registry.parse(self.spec).effort
        return [
            {name: value for name, value in effort.items() if name not in fixed}
            for effort in index.effort_sweep(n, k)
        ]

    def dearest(self, index: Index, n: int, k: int) -> dict[str, Any]:
        """The last setting of the sweep."""
        return self.sweep(index, n, k)[-1]

    def search(self, index: Index, k: int, queries: np.ndarray | None = None, n: int = N_KEYS) -> Found:
        """The dearest search of an index of `n` keys, whose result is well formed."""
        queries = self.data.queries if queries is None else queries
        found = index.search(queries, k, **self.dearest(index, n, k))
        require_well_formed(found, len(queries), k, n)
        return found

    def answer(self, index: Index, k: int, queries: np.ndarray | None = None, n: int = N_KEYS) -> np.ndarray:
        """What the index answers at its dearest: ids (m, k); of a method without search, attention (m, d)."""
        if index.has_search:
            return self.search(index, k, queries, n).ids
        queries = self.data.queries if queries is None else queries
        part = index.attend(queries, k, **self.dearest(index, n, k))
        require_part(part, queries.shape)
        return part.output

    def finds_something(self, index: Index, k: int, n: int, what: str) -> None:
        """Raises unless each query finds a key, or of a method without search, attends to one.

        A method that draws may draw nothing.
        """
        answer = self.answer(index, k, n=n)
        may_miss = not index.has_search or index.kind == "sampling"
        require(may_miss or (answer[:, 0] >= 0).all(), f"{what}, none was found")

    def attention_error(self, queries: np.ndarray, change: Callable[[Index], None] = lambda _: None) -> float:
        """Mean relative error of attention at the dearest setting, of new objects that `change` has changed.

        Of a method that draws, that of the mean over several seeds: what it adds up must be right on average.
        """
        seeds, k = (DRAWS, DRAWN) if self.index.kind == "sampling" else (1, K)
        outputs, lses = [], []
        for seed in range(seeds):
            index = self.built(seed=seed)
            change(index)
            n = len(index.keys)
            part = index.attend(queries, k, **self.dearest(index, n, k))
            outputs.append(part.output)
            lses.append(part.lse.astype(np.float64))
        weights = np.exp(lses - np.max(lses, axis=0))
        weights /= weights.sum(axis=0)
        output = np.einsum("sm,smd->md", weights, outputs)
        assert index.values is not None
        exact, _ = dense_attention(
            queries, np.tile(np.arange(n), (len(queries), 1)), index.keys, index.values
        )
        return float((np.linalg.norm(output - exact, axis=1) / np.linalg.norm(exact, axis=1)).mean())


class BrokenContractError(Exception):
    """A fact of the contract that does not hold."""


def require(holds: Any, message: str) -> None:
    """Raises BrokenContractError unless `holds`."""
    if not holds:
        raise BrokenContractError(message)


def require_well_formed(found: Found, m: int, k: int, n: int) -> None:
    """Raises unless ids are (m, k) int32, distinct, below n, with -1 only after the last real one."""
    ids = found.ids
    require(isinstance(ids, np.ndarray) and ids.dtype == np.int32, f"ids must be int32, got {ids.dtype}")
    require(ids.shape == (m, k), f"ids must be {(m, k)}, got {ids.shape}")
    require(ids.size == 0 or (ids.min() >= -1 and ids.max() < n), f"ids must be in [-1, {n})")
    real = ids >= 0
    require((real[:, 1:] <= real[:, :-1]).all(), "-1 must come after the last real id")
    ranked = np.sort(ids, axis=1)
    twice = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)
    require(not twice.any(), "ids of one query must be distinct")


def require_part(part: Partial, shape: tuple[int, ...]) -> None:
    """Raises unless the result of `attend` is finite, float32, output of `shape` (m, d) and lse (m,)."""
    for name, array, expected in (("output", part.output, shape), ("lse", part.lse, shape[:1])):
        require(
            array.shape == expected and array.dtype == np.float32,
            f"{name} must be {expected} float32, got {array.shape} {array.dtype}",
        )
        require(np.isfinite(array).all(), f"{name} must be finite")


def require_same(one: np.ndarray, two: np.ndarray, what: str) -> None:
    """Raises unless two answers are the same: ids equal, outputs equal up to rounding."""
    if one.shape != two.shape:
        differing = len(one)
    elif one.dtype == np.int32:
        differing = int((one != two).any(axis=1).sum())
    else:
        differing = int((~np.isclose(one, two, rtol=1e-4, atol=1e-4)).any(axis=1).sum())
    require(differing == 0, f"{what}: answers to {differing} of {len(one)} queries differ")


def raises(expected: type[Exception], call: Callable[[], Any], what: str) -> None:
    """Raises BrokenContractError unless `call` raises `expected`."""
    try:
        call()
    except expected:
        return
    except Exception as error:
        raise BrokenContractError(
            f"{what} must raise {expected.__name__}, raised {type(error).__name__}: {error}"
        ) from error
    raise BrokenContractError(f"{what} must raise {expected.__name__}, raised nothing")


def about(keys: np.ndarray, learn: np.ndarray | None, neighbors: int) -> Head:
    """What the harness tells of a head: one query head after another, positions, exact neighbours."""
    n = len(keys)
    if learn is None:
        return Head(model="made", group=GROUP, key_positions=np.arange(128, 128 + n))
    m = len(learn)
    scores = learn @ keys.astype(np.float32).T
    return Head(
        model="made",
        group=GROUP,
        key_positions=np.arange(128, 128 + n),
        query_positions=128 + np.arange(m) // GROUP,
        query_heads=np.arange(m) % GROUP,
        query_neighbors=np.argsort(-scores, axis=1)[:, : min(neighbors, n)].astype(np.int32),
    )


def dense_attention(
    queries: np.ndarray, ids: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax attention in float64 of each query over its own `ids`; 0 and -inf where it has none."""
    output = np.zeros((len(queries), values.shape[1]))
    lse = np.full(len(queries), -np.inf)
    for row in range(len(ids)):
        chosen = ids[row][ids[row] >= 0]
        if not len(chosen):
            continue
        scores = keys[chosen].astype(np.float64) @ queries[row].astype(np.float64)
        weights = np.exp(scores - scores.max())
        lse[row] = scores.max() + np.log(weights.sum())
        output[row] = weights @ values[chosen].astype(np.float64) / weights.sum()
    return output, lse


def true_top(keys: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Ids (m, k) of the largest inner products."""
    return np.argsort(-(queries.astype(np.float64) @ keys.T.astype(np.float64)), axis=1)[:, :k]


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Mean share of a row's ids in `one` that the same row of `two` has."""
    shares = [np.isin(a[a >= 0], b).sum() / max(len(a), 1) for a, b in zip(one, two, strict=True)]
    return float(np.mean(shares))


def selects(index: Index) -> bool:
    """Whether attention of an index is exact over what its search finds: it keeps the default `attend`."""
    return type(index).attend is Index.attend


def saved(index: Index, folder: Path) -> bool:
    """Saves `index`; False where its method says that it cannot."""
    try:
        index.save(folder)
    except NotImplementedError:
        return False
    return True
