"""Data sets that others publish, read as heads: what they lack is None, and never invented.

A family's file (datasets/) says where the arrays lie, as `Parts`; here they become the `HeadVectors` that
every verb takes. ra-bench compares by inner product, so other distances are kept by an exact change of
geometry: cosine by unit keys, Euclidean by one more dimension, since |q-k|² = |q|² - 2 (q·k - |k|²/2).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench.checked_rows import all_finite
from ra_bench.errors import UsageError, one_line
from ra_bench.vectors import Allocate, HeadMetadata, HeadName, HeadVectors, scaled, select_heads

INNER_PRODUCT = ("ip", "dot", "inner_product", "normalized")
COSINE = ("cosine", "angular")
EUCLIDEAN = ("euclidean", "l2")
_BLOCK_ROWS = 1 << 15
_CENTRE_ROWS = 100_000


@dataclass(frozen=True)
class Parts:
    """The arrays of one head, (rows, d) each, sliceable and not yet read; `neighbors` (m, k) of `test`.

    `softmax_scale` is None where there is no softmax, or its scale is not known. `group` query rows in a row
    share the KV head. `origin` tells where the vectors come from.
    """

    keys: Any
    test: Any
    learn: Any = None
    values: Any = None
    neighbors: Any = None
    distance: str = "ip"
    softmax_scale: float | None = None
    group: int = 1
    model: str = ""
    origin: str = ""


@dataclass(frozen=True)
class VectorSet:
    """A published data set. `parts` opens the arrays of one head; `files` are what they lie in."""

    path: Path
    heads: list[HeadName]
    files: list[Path]
    parts: Callable[[HeadName], Parts] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_layers: bool = False  # whether the names of heads tell their layer and KV head

    @property
    def name(self) -> str:
        """The last part of its path, for rows and folders."""
        return self.path.resolve().name

    @property
    def source(self) -> str:
        """Where it can be opened again from any folder."""
        return str(self.path.resolve())

    @property
    def hash(self) -> str:
        """Names the content, for result rows."""
        lines = [f"{file.name} {content_hash(file)}\n" for file in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def select(
        self,
        documents: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        kv_heads: Sequence[int] | None = None,
    ) -> list[HeadName]:
        """The heads in these documents, layers and KV heads (None: all); UsageError for an absent one."""
        return select_heads(self.path, self.heads, documents, layers, kv_heads)

    def load(self, name: HeadName | tuple[str, int, int], allocate: Allocate = np.empty) -> HeadVectors:
        """All vectors of one head, checked; UsageError where a file is not what it should be."""
        name = HeadName(*name)
        if name not in self.heads:
            raise UsageError(f"data set '{self.path}' has no {name}")
        return _head_vectors(f"data set '{self.path}'", name, self._opened(name), allocate)

    def _opened(self, name: HeadName) -> Parts:
        try:
            return self.parts(name)
        except UsageError:
            raise
        except Exception as error:  # a reader of foreign files may raise anything
            raise UsageError(f"data set '{self.path}' cannot be read: {one_line(error)[:300]}") from error

    def verify(self, progress: Callable[[str], None] = lambda _: None) -> list[str]:
        """Reads everything; checks checksums where there are any, and the neighbours that a file brings."""
        lines = []
        for file in self.files:
            progress(str(file))
            lines.append(_checked_sum(file))
        for name in self.heads:
            progress(str(name))
            parts = self._opened(name)
            head = self.load(name)
            counts = (
                f"{len(head.keys)} keys, {len(head.decode_queries)} test, {len(head.prefill_queries)} learn"
            )
            lines.append(f"{name}: {counts} queries: whole and finite")
            if parts.neighbors is not None:
                lines.append(f"{name}: {_checked_neighbors(f'{self.path}', head, parts)}")
        return lines


def _head_vectors(where: str, name: HeadName, parts: Parts, allocate: Allocate) -> HeadVectors:
    for part in ("keys", "test"):
        if getattr(parts, part) is None or not len(getattr(parts, part)):
            raise UsageError(f"{where} has no {part}")
    if parts.group < 1 or not (parts.softmax_scale is None or np.isfinite(parts.softmax_scale)):
        raise UsageError(f"{where}: group {parts.group}, softmax scale {parts.softmax_scale}")
    change = _geometry(where, parts)
    keys = _rows(where, "keys", parts.keys, allocate, change.keys, change.dim_more)
    values = None if parts.values is None else _rows(where, "values", parts.values, allocate)
    dim = keys.shape[1]
    if values is not None and values.shape != keys.shape:
        raise UsageError(f"{where}: values {values.shape} must have the shape of keys {keys.shape}")
    queries = {}
    for part, rows in (("test", parts.test), ("learn", parts.learn)):
        if rows is None or not len(rows):
            queries[part] = np.empty((0, dim), np.float32)
            continue
        read = _rows(where, part, rows, allocate, change.queries, change.dim_more)
        if read.shape[1] != dim:
            raise UsageError(f"{where}: {part} queries have {read.shape[1]} dimensions, keys {dim}")
        if len(read) % parts.group:
            raise UsageError(f"{where}: {part} must come in blocks of {parts.group}, there are {len(read)}")
        queries[part] = scaled(read, parts.softmax_scale, allocate)
    metadata = HeadMetadata(
        model=parts.model,
        revision="",
        group=parts.group,
        softmax_scale=parts.softmax_scale,
        layer_kind="full_attention",
        window=None,
        rope=None,
        rope_note="not told by the data set",
        context_tokens=len(keys),
        token_hash="",
        prompt=parts.origin,
        random_weights=False,
        versions={},
    )
    none = np.empty(0, np.int32)
    first_head = name.kv_head * parts.group
    heads = {part: first_head + np.arange(len(rows)) % parts.group for part, rows in queries.items()}
    return HeadVectors(
        name=name,
        keys=keys,
        values=values,
        key_positions=None,
        prefill_queries=queries["learn"],
        prefill_query_positions=none,
        prefill_query_heads=heads["learn"].astype(np.int16),
        decode_queries=queries["test"],
        decode_query_positions=none,
        decode_query_heads=heads["test"].astype(np.int16),
        decode_steps=(np.arange(len(queries["test"])) // parts.group).astype(np.int32),
        about=metadata.head(name, None),
        metadata=metadata,
    )


@dataclass(frozen=True)
class _Geometry:
    """How rows change so that inner products order keys as the data set's own distance does."""

    keys: Callable[[np.ndarray], np.ndarray] | None = None
    queries: Callable[[np.ndarray], np.ndarray] | None = None
    dim_more: int = 0


def _geometry(where: str, parts: Parts) -> _Geometry:
    distance = parts.distance.lower()
    if distance in INNER_PRODUCT:
        return _Geometry()
    if distance in COSINE:
        return _Geometry(keys=_unit)
    if distance in EUCLIDEAN:
        centre = np.asarray(parts.keys[:_CENTRE_ROWS], np.float32).mean(axis=0)

        def lowered(rows: np.ndarray) -> np.ndarray:
            moved = rows - centre  # distances stay, and float32 keeps more of them
            return np.column_stack([moved, -np.einsum("nd,nd->n", moved, moved) / 2])

        def raised(rows: np.ndarray) -> np.ndarray:
            return np.column_stack([rows - centre, np.ones(len(rows), np.float32)])

        return _Geometry(lowered, raised, 1)
    known = ", ".join((*INNER_PRODUCT, *COSINE, *EUCLIDEAN))
    raise UsageError(f"{where}: distance must be one of {known}, got {parts.distance!r}")


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _rows(
    where: str,
    part: str,
    source: Any,
    allocate: Allocate,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
    dim_more: int = 0,
) -> np.ndarray:
    """`source` (rows, d) of any number type as finite float16 or float32, block by block, read-only."""
    shape: tuple[int, ...] = tuple(getattr(source, "shape", ()))
    dtype = np.dtype(source.dtype)
    if len(shape) != 2 or shape[1] < 1 or dtype.kind not in "fiu":
        raise UsageError(f"{where}: {part} must be (rows, d) numbers, got {shape} {dtype}")
    exact = dtype in (np.float16, np.int8, np.uint8)  # float16 holds them all
    kept = np.dtype(np.float16 if exact and change is None else np.float32)
    if change is None and isinstance(source, np.memmap) and dtype == kept:
        rows: np.ndarray = source.view(np.ndarray)  # stays in the file
    else:
        try:
            rows = allocate((shape[0], shape[1] + dim_more), kept)
        except (MemoryError, ValueError) as error:
            raise UsageError(f"{where}: {part} {shape} do not fit in memory") from error
        for start in range(0, shape[0], _BLOCK_ROWS):
            with np.errstate(over="ignore"):
                block = np.asarray(source[start : start + _BLOCK_ROWS])
                block = block.astype(np.float32) if change is not None else block
                rows[start : start + len(block)] = block if change is None else change(block)
        rows.flags.writeable = False
    if not all_finite(rows):
        raise UsageError(f"{where}: {part} hold a vector that is not finite")
    return rows


def _checked_neighbors(where: str, head: HeadVectors, parts: Parts, most: int = 100) -> str:
    """Compares the neighbours that a file brings with the exact ones of its first test queries."""
    from ra_bench.metrics import recall
    from ra_bench.truth import exact_topk, scores_of

    queries = head.decode_queries[:most]
    given = np.asarray(parts.neighbors[: len(queries)]).astype(np.int64)
    k = min(given.shape[1], len(head.keys), 100)
    given = given[:, :k]
    if len(given) != len(queries) or (given < 0).any() or (given >= len(head.keys)).any():
        raise UsageError(
            f"{where}: neighbors must be {len(queries)} rows of key numbers below {len(head.keys)}"
        )
    _, true = exact_topk(queries, head.keys, k)
    found = recall(scores_of(queries, head.keys, given.astype(np.int32)), true)
    if found.mean() < 0.999:
        raise UsageError(
            f"{where}: its neighbors are {found.mean():.3f} of the exact top-{k} of its first test queries"
        )
    return f"its neighbors are the exact top-{k} of {len(queries)} test queries"


def _checked_sum(file: Path) -> str:
    """Checks FILE against FILE.sha256 (as sha256sum writes it); writes that where it is not there."""
    sums = file.with_name(file.name + ".sha256")
    actual = content_hash(file, fresh=True)
    if sums.exists():
        expected = sums.read_text(encoding="utf-8", errors="replace").split()[:1]
        if expected != [actual]:
            raise UsageError(f"{file} is not the file that {sums.name} names: its SHA-256 is {actual}")
        return f"{file.name}: as {sums.name} says"
    try:
        sums.write_text(f"{actual}  {file.name}\n")
    except OSError:
        return f"{file.name}: SHA-256 {actual}; no {sums.name} to compare with"
    return f"{file.name}: SHA-256 {actual}, now kept in {sums.name}: later checks compare with it"


def content_hash(file: Path, fresh: bool = False) -> str:
    """The SHA-256 of a file; remembered by its size and time, since a large one takes minutes."""
    stat = file.stat()
    cache = cache_folder() / "hashes"
    place = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    if not fresh:
        try:
            return json.loads((cache / place).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / place).write_text(json.dumps({"file": str(file), "sha256": digest}))
    except OSError:  # nowhere to remember it
        pass
    return digest


def cache_folder() -> Path:
    """Where ra-bench keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ra-bench"
