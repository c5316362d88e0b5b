"""Checks of what an object keeps: seeds, rebuilding, saving, inserting, purity."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ra_bench import registry
from ra_bench.conformance.subject import (
    ERROR_CEILING,
    INSERTED_FLOOR,
    N_INSERTED,
    N_KEYS,
    QUERY_NORM,
    K,
    Subject,
    dense_attention,
    raises,
    require,
    require_same,
    saved,
)
from ra_bench.index import Index


def same_seed_same_answer(subject: Subject) -> str | None:
    """The same seed and input give the same ids, unless the method says that it is not deterministic."""
    if not subject.index.deterministic:
        return "says of itself that it is not deterministic"
    require_same(
        subject.answer(subject.built(seed=3), K),
        subject.answer(subject.built(seed=3), K),
        "seed 3 twice",
    )
    return None


def second_build_replaces(subject: Subject) -> None:
    """A second `build` forgets the first."""
    data = subject.data
    index = subject.built(data.keys[: N_KEYS // 2], data.values[: N_KEYS // 2])
    subject.build(index, data.keys, data.values)
    ids = subject.answer(index, K)
    if index.deterministic:
        require_same(ids, subject.answer(subject.index, K), "second build against a new object")
    subject.build(index, data.keys[:300], None)
    if index.has_search:
        subject.search(index, K, n=300)
    raises(ValueError, lambda: index.attend(data.queries, K), "attend without values")


def search_is_pure(subject: Subject) -> None:
    """A search leaves nothing that a later one could see, whatever was asked in between."""
    index, queries = subject.index, subject.data.queries
    before, attended = subject.answer(index, K), index.attend(queries, K).output
    for effort in subject.sweep(index, N_KEYS, K)[:3]:
        if index.has_search:
            index.search(-queries[::-1], 3 * K, **effort)
        index.attend(-queries[::-1], 3 * K, **effort)
    require_same(subject.answer(index, K), before, "asked again")
    require(
        np.array_equal(index.attend(queries, K).output, attended), "attend answers otherwise when asked again"
    )


def save_and_load(subject: Subject) -> str | None:
    """What was saved answers the same after loading, with its rows in memory or mapped."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        if not saved(subject.index, folder):
            return "cannot save"
        expected = subject.answer(subject.index, K)
        attended = subject.index.attend(subject.data.queries, K).output
        for mmap in (False, True):
            index = registry.load(folder, mmap)
            require_same(subject.answer(index, K), expected, f"loaded with mmap={mmap}")
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

    def insert(index: Index) -> None:
        half = N_INSERTED // 2
        for part in (slice(0, half), slice(half, None)):
            index.insert(data.more_keys[part], data.more_values[part])

    insert(index)
    n = N_KEYS + N_INSERTED
    queries = QUERY_NORM * data.more_keys
    if index.kind in ("sampling", "compressor"):
        error = subject.attention_error(queries, insert)
        require(error <= ERROR_CEILING, f"attention error is {error:.2f}, must be at most {ERROR_CEILING}")
        return f"attention error {error:.2f}"
    found = subject.search(index, K, queries, n)
    first = float((found.ids[:, 0] == N_KEYS + np.arange(N_INSERTED)).mean())
    if index.kind not in ("floor", "policy"):
        require(
            first >= INSERTED_FLOOR, f"{first:.2f} of the inserted keys came first, must be {INSERTED_FLOOR}"
        )
    effort = subject.dearest(index, n, K)
    ids = index.attended_ids(queries, K, **effort)
    if ids is not None:
        all_keys, all_values = (
            np.vstack([data.keys, data.more_keys]),
            np.vstack([data.values, data.more_values]),
        )
        output, _ = dense_attention(queries, ids, all_keys, all_values)
        attended = index.attend(queries, K, **effort)
        require(np.allclose(attended.output, output, atol=1e-3), "attend does not see the inserted values")
    return f"{first:.2f} of the inserted keys came first"
