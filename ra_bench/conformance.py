"""The checks that every index passes; `ra-bench check SPEC` and tests/test_conformance.py run them.

A check is a function of a `Subject` whose docstring states the fact that it checks. It raises where the fact
does not hold, and may return a remark. `run` turns whatever happens into a `CheckResult`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ra_bench import registry
from ra_bench.head import Head
from ra_bench.index import Found, Index

# The easy set: unit vectors around centers, queries of the same kind, a little longer than one.
N_KEYS, DIM, GROUP, N_QUERIES, N_LEARN, K, N_INSERTED = 1500, 16, 4, 24, 512, 10, 48
N_CENTERS, SPREAD, QUERY_NORM = 20, 0.5, 4.0
RECALL_FLOOR = 0.5
INSERTED_FLOOR = 0.8  # of the inserted keys, how many a query in their direction must find first
HALF_OVERLAP = 0.8  # of the ids from float32 keys, how many float16 keys of the same values must give

# The memory check: rows long enough that one copy stands out, few enough that a graph is built in seconds.
MEMORY_KEYS, MEMORY_DIM = 4096, 256
MEMORY_SLACK, MEMORY_SHARE = 1 << 20, 1.1  # growth may exceed nbytes by these; a float16 copy is 2 MiB

Check = Callable[["Subject"], "str | None"]


@dataclass(frozen=True)
class CheckResult:
    """What came of one check: its name, whether it passed, and why not (or a remark)."""

    name: str
    passed: bool
    detail: str = ""


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


def require_same(one: np.ndarray, two: np.ndarray, what: str) -> None:
    """Raises unless two arrays of ids are equal."""
    differing = int((one != two).any(axis=1).sum()) if one.shape == two.shape else len(one)
    require(differing == 0, f"{what}: ids of {differing} of {len(one)} queries differ")


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


def result_shapes(subject: Subject) -> None:
    """Ids are (m, k) int32, and the work is (m,) int64 or None, for one query, many and none."""
    for k in (1, K):
        for m in (GROUP, N_QUERIES):
            found = subject.search(subject.index, k, subject.data.queries[:m])
            for name, count in vars(found.work).items():
                if count is not None:
                    require(
                        count.shape == (m,) and count.dtype == np.int64,
                        f"work.{name} must be ({m},) int64, got {count.shape} {count.dtype}",
                    )


def own_budget(subject: Subject) -> None:
    """k=None asks for as many keys as the method likes."""
    found = subject.index.search(subject.data.queries, None)
    require(found.ids.ndim == 2, f"ids must be (m, any), got {found.ids.shape}")
    require_well_formed(found, N_QUERIES, found.ids.shape[1], N_KEYS)


def every_effort(subject: Subject) -> str:
    """Each setting of the sweep is accepted, at its own k and at another, and gives well-formed ids."""
    sweep = subject.sweep(subject.index, N_KEYS, K)
    require(len(sweep) > 0, "effort_sweep must not be empty")
    for effort in sweep:
        for k in (K, 5 * K):
            found = subject.index.search(subject.data.queries, k, **effort)
            require_well_formed(found, N_QUERIES, k, N_KEYS)
    return f"{len(sweep)} settings"


def more_results_than_keys(subject: Subject) -> None:
    """K > n gives k columns, of which at most n are real."""
    subject.search(subject.index, N_KEYS + 7)


def few_keys(subject: Subject) -> None:
    """One, two or five keys are an index too, smaller than any parameter of the method."""
    for n in (1, 2, 5):
        index = subject.built(subject.data.keys[:n], subject.data.values[:n])
        for k in (1, n, K):
            found = subject.search(index, k, n=n)
            require((found.ids[:, 0] >= 0).all(), f"of {n} keys, none was found")


def one_dimension(subject: Subject) -> None:
    """Rows of one dimension are vectors too."""
    keys = subject.data.keys[:, :1]
    index = subject.built(keys, subject.data.values[:, :1])
    subject.search(index, K, subject.data.queries[:, :1])


def duplicates(subject: Subject) -> None:
    """Keys that are there many times, or all the same, are found as different ids."""
    for keys in (
        np.tile(subject.data.keys[: N_KEYS // 50], (50, 1)),
        np.tile(subject.data.keys[:1], (400, 1)),
    ):
        found = subject.search(subject.built(keys, keys), K, n=len(keys))
        require((found.ids[:, 0] >= 0).all(), "among duplicates, no key was found")


def zero_rows(subject: Subject) -> None:
    """Keys and queries of zeros are rows like others."""
    keys = subject.data.keys.copy()
    keys[::3] = 0
    queries = subject.data.queries.copy()
    queries[::5] = 0
    subject.search(subject.built(keys, subject.data.values), K, queries)
    subject.search(subject.built(np.zeros_like(keys), subject.data.values), K, queries)


def any_layout(subject: Subject) -> None:
    """Strided, Fortran-ordered and read-only arrays give the answers of contiguous ones."""
    data = subject.data
    expected = subject.search(subject.index, K).ids
    wide = np.zeros((2 * N_KEYS, 2 * DIM), np.float32)
    wide[::2, ::2] = data.keys
    frozen = data.keys.copy()
    frozen.flags.writeable = False
    layouts = {"strided": wide[::2, ::2], "Fortran": np.asfortranarray(data.keys), "read-only": frozen}
    for name, keys in layouts.items():
        index = subject.built(keys, data.values)
        if index.deterministic:
            require_same(subject.search(index, K).ids, expected, f"{name} keys")
    queries = np.zeros((2 * N_QUERIES, 2 * DIM), np.float32)
    queries[::2, ::2] = data.queries
    frozen = data.queries.copy()
    frozen.flags.writeable = False
    layouts = {"strided": queries[::2, ::2], "Fortran": np.asfortranarray(data.queries), "read-only": frozen}
    for name, queries in layouts.items():
        require_same(subject.search(subject.index, K, queries).ids, expected, f"{name} queries")


def half_keys(subject: Subject) -> str:
    """Float16 keys are taken as they are, and give nearly the answers of float32 keys of the same values."""
    half = subject.data.keys.astype(np.float16)
    values = subject.data.values.astype(np.float16)
    from_half = subject.built(half, values)
    ids = subject.search(from_half, K).ids
    same = overlap(
        ids, subject.search(subject.built(half.astype(np.float32), values.astype(np.float32)), K).ids
    )
    require(same >= HALF_OVERLAP, f"{same:.2f} of the ids agree, must be at least {HALF_OVERLAP}")
    from_half.attend(subject.data.queries, K)
    return f"{same:.2f} of the ids agree"


def inputs_unchanged(subject: Subject) -> None:
    """Build, search, attend and insert write to none of the arrays that they are given."""
    given = Data(*(array.copy() for array in subject.data))
    index = subject.create()
    learn = given.learn if index.learn_queries else None
    index.build(given.keys, given.values, learn, about(given.keys, learn, index.learn_neighbors))
    index.search(given.queries, K)
    index.attend(given.queries, K)
    index.observe(given.queries[:GROUP])
    if index.can_insert:
        index.insert(given.more_keys, given.more_values)
    for name, before, after in zip(Data._fields, subject.data, given, strict=True):
        require(np.array_equal(before, after), f"{name} were written to")


def same_seed_same_answer(subject: Subject) -> str | None:
    """The same seed and input give the same ids, unless the method says that it is not deterministic."""
    if not subject.index.deterministic:
        return "says of itself that it is not deterministic"
    require_same(
        subject.search(subject.built(seed=3), K).ids,
        subject.search(subject.built(seed=3), K).ids,
        "seed 3 twice",
    )
    return None


def second_build_replaces(subject: Subject) -> None:
    """A second `build` forgets the first."""
    data = subject.data
    index = subject.built(data.keys[: N_KEYS // 2], data.values[: N_KEYS // 2])
    subject.build(index, data.keys, data.values)
    ids = subject.search(index, K).ids
    if index.deterministic:
        require_same(ids, subject.search(subject.index, K).ids, "second build against a new object")
    subject.build(index, data.keys[:300], None)
    subject.search(index, K, n=300)
    raises(ValueError, lambda: index.attend(data.queries, K), "attend without values")


def save_and_load(subject: Subject) -> str | None:
    """What was saved answers the same after loading, with its rows in memory or mapped."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        if not saved(subject.index, folder):
            return "cannot save"
        expected = subject.search(subject.index, K).ids
        attended = subject.index.attend(subject.data.queries, K).output
        for mmap in (False, True):
            index = registry.load(folder, mmap)
            require_same(subject.search(index, K).ids, expected, f"loaded with mmap={mmap}")
            again = index.attend(subject.data.queries, K).output
            require(np.allclose(again, attended, atol=1e-5), f"attend differs, loaded with mmap={mmap}")
            del index  # before its files go
    return None


def torn_file_refused(subject: Subject) -> str | None:
    """A saved index of which any file is cut or gone raises ValueError on loading."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        if not saved(subject.index, folder):
            return "cannot save"
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            whole = file.read_bytes()
            for part in (whole[: len(whole) // 2], whole[:-1], b""):
                file.write_bytes(part)
                raises(
                    ValueError, lambda: registry.load(folder, mmap=False), f"{file.name} of {len(part)} bytes"
                )
            file.unlink()
            raises(ValueError, lambda: registry.load(folder, mmap=False), f"no {file.name}")
            file.write_bytes(whole)
    return None


def work_counted(subject: Subject) -> str | None:
    """Counts are possible: found keys were touched, at most n were; an exact method touched all."""
    index = subject.index
    found = subject.search(index, K)
    real = (found.ids >= 0).sum(axis=1)
    work = found.work
    if work.keys_read is not None:
        least = np.zeros_like(real) if index.kind == "floor" else real
        require((work.keys_read <= N_KEYS).all(), f"keys_read must be at most n = {N_KEYS}")
        require((work.keys_read >= least).all(), "keys_read must count at least the keys that were found")
    for name, count in vars(work).items():
        require(count is None or (count >= 0).all(), f"work.{name} must not be negative")
    if index.kind == "exact":
        for count, expected in ((work.keys_read, N_KEYS), (work.exact, N_KEYS)):
            require(count is not None and (count == expected).all(), f"an exact scan reads all {N_KEYS} keys")
    attended = index.attend(subject.data.queries, K).work.attended
    require(attended is None or (attended >= 0).all(), "work.attended must not be negative")
    if attended is not None and selects(index):
        require((attended <= K).all(), f"work.attended must be at most k = {K}")
    hidden = [name for name in ("keys_read", "exact", "bytes_read") if getattr(work, name) is None]
    return f"hides {', '.join(hidden)}" if hidden else None


def memory_counted(subject: Subject) -> str:
    """`nbytes` covers what a process grows by in `build`: a hidden copy of the keys would show."""
    if not Path("/proc/self/statm").exists():
        return "not measured: needs Linux's /proc"
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # arrays go back to the system as they are freed
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    program = f"from ra_bench.conformance import print_growth; print_growth({subject.spec!r})"
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    require(child.returncode == 0, f"the measuring process failed: {child.stderr.strip()[-300:]}")
    grown, told = json.loads(child.stdout.splitlines()[-1])
    detail = f"grew by {grown / 2**20:.1f} MiB, nbytes says {told / 2**20:.1f} MiB"
    require(grown <= MEMORY_SHARE * told + MEMORY_SLACK, detail)
    return detail


def print_growth(spec: str) -> None:
    """Prints by how much a build makes this process grow, and `nbytes`; a build before warms up."""
    keys = np.random.default_rng(0).standard_normal((MEMORY_KEYS, MEMORY_DIM)).astype(np.float32)
    statm = Path("/proc/self/statm")

    def resident() -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    first = registry.create(spec)
    first.build(keys)  # of the same size: libraries keep buffers that grow with n
    del first
    before = resident()
    index = registry.create(spec)
    index.build(keys)
    print(json.dumps([resident() - before, index.nbytes.host]))


def attend_is_exact(subject: Subject) -> str | None:
    """`attend` is softmax over what `search` found; with k = n, an exact method gives dense attention."""
    index, data = subject.index, subject.data
    for k in (K, N_KEYS):
        effort = subject.dearest(index, N_KEYS, k)
        part = index.attend(data.queries, k, **effort)
        for name, array, shape in (
            ("output", part.output, (N_QUERIES, DIM)),
            ("lse", part.lse, (N_QUERIES,)),
        ):
            require(
                array.shape == shape and array.dtype == np.float32,
                f"{name} must be {shape} float32, got {array.shape} {array.dtype}",
            )
        if not selects(index):
            require(np.isfinite(part.output).all(), "output must be finite")
            continue
        ids = index.search(data.queries, k, **effort).ids
        output, lse = dense_attention(data.queries, ids, data.keys, data.values)
        require(np.allclose(part.output, output, atol=1e-4), f"output is not that of the ids found, k = {k}")
        require(np.allclose(part.lse, lse, atol=1e-4), f"lse is not that of the ids found, k = {k}")
        if index.kind == "exact" and k == N_KEYS:
            require((ids >= 0).all(), "an exact method must find all n keys")
    return None if selects(index) else "attends by more than what it selects: only its shape was checked"


def insert_then_search(subject: Subject) -> str | None:
    """Inserted keys are found by queries in their direction; their ids go on, their values follow."""
    data = subject.data
    index = subject.built()
    if not index.can_insert:
        raises(NotImplementedError, lambda: index.insert(data.more_keys, data.more_values), "insert")
        return "cannot insert"
    raises(ValueError, lambda: index.insert(data.more_keys, None), "insert without values")
    raises(
        ValueError, lambda: index.insert(data.more_keys[:, 1:], data.more_values[:, 1:]), "insert of other d"
    )
    half = N_INSERTED // 2
    for part in (slice(0, half), slice(half, None)):
        index.insert(data.more_keys[part], data.more_values[part])
    n = N_KEYS + N_INSERTED
    queries = QUERY_NORM * data.more_keys
    found = subject.search(index, K, queries, n)
    first = float((found.ids[:, 0] == N_KEYS + np.arange(N_INSERTED)).mean())
    if index.kind != "floor":
        require(
            first >= INSERTED_FLOOR, f"{first:.2f} of the inserted keys came first, must be {INSERTED_FLOOR}"
        )
    if selects(index):
        all_keys, all_values = (
            np.vstack([data.keys, data.more_keys]),
            np.vstack([data.values, data.more_values]),
        )
        output, _ = dense_attention(queries, found.ids, all_keys, all_values)
        attended = index.attend(queries, K, **subject.dearest(index, n, K))
        require(np.allclose(attended.output, output, atol=1e-3), "attend does not see the inserted values")
    return f"{first:.2f} of the inserted keys came first"


def search_is_pure(subject: Subject) -> None:
    """A search leaves nothing that a later one could see, whatever was asked in between."""
    index, queries = subject.index, subject.data.queries
    before, attended = subject.search(index, K).ids, index.attend(queries, K).output
    for effort in subject.sweep(index, N_KEYS, K)[:3]:
        index.search(-queries[::-1], 3 * K, **effort)
    require_same(subject.search(index, K).ids, before, "asked again")
    require(
        np.array_equal(index.attend(queries, K).output, attended), "attend answers otherwise when asked again"
    )


def learn_queries_accepted(subject: Subject) -> None:
    """Learn queries come in blocks of G with a `Head`, or do not come at all."""
    data = subject.data
    index = subject.create()
    index.build(
        data.keys, data.values, data.learn, about(data.keys, data.learn, max(index.learn_neighbors, 1))
    )
    require(index.group == GROUP, f"group must be {GROUP}, got {index.group}")
    subject.search(index, K)
    index = subject.create()
    index.build(data.keys, data.values)
    require(index.group == 1, f"group must be 1 without about, got {index.group}")
    subject.search(index, K)
    raises(
        ValueError,
        lambda: subject.create().build(data.keys, None, data.learn[:, 1:]),
        "learn queries of other d",
    )


def wrong_rows_refused(subject: Subject) -> None:
    """Keys or values with NaN or infinity, of another type or another shape, raise ValueError."""
    data = subject.data

    def refused(what: str, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        raises(ValueError, lambda: subject.create().build(keys, values), what)

    for value in (np.nan, np.inf, -np.inf):
        for kind in (np.float16, np.float32):
            rows = data.keys.astype(kind)
            rows[-1, -1] = value
            refused(f"{value} among {kind.__name__} keys", rows)
            refused(f"{value} among {kind.__name__} values", data.keys.astype(kind), rows)
    refused("one-dimensional keys", data.keys[0])
    refused("keys of int64", data.keys.astype(np.int64))
    refused("keys of float64", data.keys.astype(np.float64))
    refused("no keys", data.keys[:0])
    refused("values of another length", data.keys, data.values[1:])


def batch_equals_blocks(subject: Subject) -> None:
    """Many queries in one call score what the same queries score block by block."""
    data = subject.data
    together = subject.search(subject.index, K).ids
    blocks = np.split(data.queries, N_QUERIES // GROUP)
    apart = np.concatenate([subject.search(subject.index, K, block).ids for block in blocks])
    scores = [np.einsum("md,mkd->mk", data.queries, data.keys[ids]) for ids in (together, apart)]
    require(((together < 0) == (apart < 0)).all(), "a batch finds another number of keys than blocks")
    require(np.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4), "a batch finds other keys than blocks")


def recall_floor(subject: Subject) -> str | None:
    """At its dearest, a search finds half of the true top 10 of an easy set; floors are let off."""
    found = subject.search(subject.index, K)
    if subject.index.kind == "floor":
        return "is a floor"
    recall = overlap(true_top(subject.data.keys, subject.data.queries, K), found.ids)
    require(recall >= RECALL_FLOOR, f"recall@{K} is {recall:.2f}, must be at least {RECALL_FLOOR}")
    return f"recall@{K} {recall:.2f}"


CHECKS: tuple[Check, ...] = (
    result_shapes,
    own_budget,
    every_effort,
    more_results_than_keys,
    few_keys,
    one_dimension,
    duplicates,
    zero_rows,
    any_layout,
    half_keys,
    inputs_unchanged,
    same_seed_same_answer,
    second_build_replaces,
    save_and_load,
    torn_file_refused,
    work_counted,
    memory_counted,
    attend_is_exact,
    insert_then_search,
    search_is_pure,
    learn_queries_accepted,
    wrong_rows_refused,
    batch_equals_blocks,
    recall_floor,
)


def check(spec: str) -> list[CheckResult]:
    """All checks on the index of one spec string; a crash is a failed check, never a traceback."""
    subject = Subject(spec)
    return [run(subject, one) for one in CHECKS]


def run(subject: Subject, one: Check) -> CheckResult:
    """One check; `detail` tells why it failed, or what it has to remark."""
    name = one.__name__
    try:
        return CheckResult(name, True, one(subject) or "")
    except BrokenContractError as error:
        return CheckResult(name, False, str(error))
    except Exception as error:  # a method's own code: anything can be raised
        return CheckResult(name, False, f"raised {type(error).__name__}: {str(error)[:300]}")


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


def selects(index: Index) -> bool:
    """Whether attention of an index is exact over what its search finds: it keeps the default `attend`."""
    return getattr(type(getattr(index, "inner", index)), "attend", None) is Index.attend


def saved(index: Index, folder: Path) -> bool:
    """Saves `index`; False where its method says that it cannot."""
    try:
        index.save(folder)
    except NotImplementedError:
        return False
    return True
