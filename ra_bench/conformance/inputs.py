"""Checks of what goes into `build` and `search`."""

from __future__ import annotations

import numpy as np

from ra_bench.conformance.subject import (
    DIM,
    GROUP,
    HALF_OVERLAP,
    N_KEYS,
    N_QUERIES,
    Data,
    K,
    Subject,
    about,
    overlap,
    raises,
    require,
    require_same,
)


def any_layout(subject: Subject) -> None:
    """Strided, Fortran-ordered and read-only arrays give the answers of contiguous ones."""
    data = subject.data
    expected = subject.answer(subject.index, K)
    wide = np.zeros((2 * N_KEYS, 2 * DIM), np.float32)
    wide[::2, ::2] = data.keys
    frozen = data.keys.copy()
    frozen.flags.writeable = False
    layouts = {"strided": wide[::2, ::2], "Fortran": np.asfortranarray(data.keys), "read-only": frozen}
    for name, keys in layouts.items():
        index = subject.built(keys, data.values)
        if index.deterministic:
            require_same(subject.answer(index, K), expected, f"{name} keys")
    queries = np.zeros((2 * N_QUERIES, 2 * DIM), np.float32)
    queries[::2, ::2] = data.queries
    frozen = data.queries.copy()
    frozen.flags.writeable = False
    layouts = {"strided": queries[::2, ::2], "Fortran": np.asfortranarray(data.queries), "read-only": frozen}
    for name, queries in layouts.items():
        require_same(subject.answer(subject.index, K, queries), expected, f"{name} queries")


def half_keys(subject: Subject) -> str:
    """Float16 keys are taken as they are, and give nearly the answers of float32 keys of the same values."""
    half = subject.data.keys.astype(np.float16)
    values = subject.data.values.astype(np.float16)
    from_half = subject.built(half, values)
    from_float = subject.built(half.astype(np.float32), values.astype(np.float32))
    if not from_half.has_search:
        one, two = subject.answer(from_half, K), subject.answer(from_float, K)
        error = float(np.linalg.norm(one - two) / np.linalg.norm(two))
        require(error <= 1 - HALF_OVERLAP, f"attention differs by {error:.2f}")
        return f"attention differs by {error:.3f}"
    ids = subject.search(from_half, K).ids
    same = overlap(ids, subject.search(from_float, K).ids)
    require(same >= HALF_OVERLAP, f"{same:.2f} of the ids agree, must be at least {HALF_OVERLAP}")
    from_half.attend(subject.data.queries, K)
    return f"{same:.2f} of the ids agree"


def inputs_unchanged(subject: Subject) -> None:
    """Build, search, attend and insert write to none of the arrays that they are given."""
    given = Data(*(array.copy() for array in subject.data))
    index = subject.create()
    learn = given.learn if index.learn_queries else None
    index.build(given.keys, given.values, learn, about(given.keys, learn, index.learn_neighbors))
    if index.has_search:
        index.search(given.queries, K)
    index.attend(given.queries, K)
    index.observe(given.queries[:GROUP])
    if index.can_insert:
        index.insert(given.more_keys, given.more_values)
    for name, before, after in zip(Data._fields, subject.data, given, strict=True):
        require(np.array_equal(before, after), f"{name} were written to")


def learn_queries_accepted(subject: Subject) -> None:
    """Learn queries come in blocks of G with a `Head`, or do not come at all."""
    data = subject.data
    index = subject.create()
    index.build(
        data.keys, data.values, data.learn, about(data.keys, data.learn, max(index.learn_neighbors, 1))
    )
    require(index.group == GROUP, f"group must be {GROUP}, got {index.group}")
    subject.answer(index, K)
    index = subject.create()
    index.build(data.keys, data.values)
    require(index.group == 1, f"group must be 1 without about, got {index.group}")
    subject.answer(index, K)
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
