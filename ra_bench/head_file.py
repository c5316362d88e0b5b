"""Reads the Parquet files of one head of a dump, and checks them: `ra_bench.vectors` tells what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.checked_rows import all_finite
from ra_bench.errors import UsageError, one_line
from ra_bench.vectors import (
    MANIFEST,
    Allocate,
    HeadMetadata,
    HeadName,
    HeadVectors,
    Kind,
    Listed,
    check_size,
    fingerprint,
    place_of,
    scaled,
)

METADATA_KEY = b"ra_bench"
ARROW_TYPES = {np.dtype(np.float16): pa.float16(), np.dtype(np.float32): pa.float32()}
COLUMN_TYPES = {"position": pa.int32(), "query_head": pa.int16(), "step": pa.int32()}

# Columns that have no cell but null, and columns that may have none or only null.
_EMPTY = {
    **dict.fromkeys(("keys", "values", "decoded_keys", "decoded_values"), ("query_head", "step")),
    "prefill_queries": ("step",),
}
_BATCH_ROWS = 1 << 15


class Rows(NamedTuple):
    """The columns of one kind; those that are null are empty."""

    vectors: np.ndarray
    positions: np.ndarray
    query_heads: np.ndarray
    steps: np.ndarray
    metadata: HeadMetadata


class HeadFiles:
    """The files of one head, as the manifest lists them. Vectors lie in arrays that `allocate` makes."""

    def __init__(
        self, folder: Path, name: HeadName, listed: Mapping[Kind, Listed], allocate: Allocate
    ) -> None:
        self._folder, self._name, self._listed, self._allocate = folder, name, listed, allocate
        self._where = f"data set '{folder}', {name}"

    def load(self) -> HeadVectors:
        """All vectors of the head; UsageError where a file is not what it should be."""
        keys = self._read("keys", "decoded_keys")
        if keys is None:
            raise UsageError(f"data set '{self._folder}' has no keys of {self._name}")
        values = self._read("values", "decoded_values")
        metadata, where = keys.metadata, self._where
        if values is not None:
            same = np.array_equal(keys.positions, values.positions)
            if keys.vectors.shape != values.vectors.shape or not same:
                raise UsageError(
                    f"{where}: keys {keys.vectors.shape} and values {values.vectors.shape} must agree"
                )
        if (np.diff(keys.positions) <= 0).any():
            raise UsageError(f"{where}: key positions must rise")
        nothing = np.empty(0, np.int32)
        empty = Rows(keys.vectors[:0], nothing, nothing.astype(np.int16), nothing, metadata)
        prefill = self._read("prefill_queries") or empty
        decode = self._read("decode_queries") or empty
        placed = len(keys.positions) > 0
        for rows in (prefill, decode):
            _check_queries(where, rows, keys.vectors.shape[1], self._name.kv_head, metadata.group, placed)
        positions = keys.positions if placed else None
        return HeadVectors(
            name=self._name,
            keys=keys.vectors,
            values=None if values is None else values.vectors,
            key_positions=positions,
            prefill_queries=scaled(prefill.vectors, metadata.softmax_scale, self._allocate),
            prefill_query_positions=prefill.positions,
            prefill_query_heads=prefill.query_heads,
            decode_queries=scaled(decode.vectors, metadata.softmax_scale, self._allocate),
            decode_query_positions=decode.positions,
            decode_query_heads=decode.query_heads,
            decode_steps=decode.steps,
            about=metadata.head(self._name, positions),
            metadata=metadata,
        )

    def _read(self, *kinds: Kind) -> Rows | None:
        """The rows of these kinds, one after the other; None where the first is not there."""
        if kinds[0] not in self._listed:
            return None
        files = [self._checked_file(self._listed[kind]) for kind in kinds if kind in self._listed]
        try:
            rows = _read_rows(files, self._allocate)
        except (pa.ArrowException, OSError, MemoryError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{files[0]} is not a file of a dump: {one_line(error)}") from error
        expected = sum(self._listed[kind].rows for kind in kinds if kind in self._listed)
        if len(rows.vectors) != expected:
            raise UsageError(f"{files[0]} holds {len(rows.vectors)} rows, {MANIFEST} lists {expected}")
        if not all_finite(rows.vectors):
            raise UsageError(f"{files[0]} holds a vector that is not finite")
        return rows

    def _checked_file(self, listed: Listed) -> Path:
        path = self._folder / listed.name
        check_size(path, listed)
        if fingerprint(path)["sha256"] != listed.sha256:
            raise UsageError(f"{path} is not the file that {MANIFEST} lists: its SHA-256 differs")
        return path


def _read_rows(paths: list[Path], allocate: Allocate) -> Rows:
    opened = [pq.ParquetFile(path) for path in paths]
    try:
        schemas = [_checked_schema(path, file) for path, file in zip(paths, opened, strict=True)]
        metadata, vector = schemas[0]
        kinds = {(other.value_type, other.list_size) for _, other in schemas}
        if len(kinds) > 1:
            raise ValueError("its decoded vectors are of another type or dimension")
        dtype = np.dtype(vector.value_type.to_pandas_dtype())
        total = sum(file.metadata.num_rows for file in opened)
        rows = allocate((total, vector.list_size), dtype)
        columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMN_TYPES}
        filled = 0
        for path, file in zip(paths, opened, strict=True):
            empty = _EMPTY.get(place_of(path.name)[1], ())
            for batch in file.iter_batches(_BATCH_ROWS):
                for name in COLUMN_TYPES:
                    columns[name].append(_numbers(name, batch.column(name), name in empty))
                flat = _whole_vectors(batch.column("vector"))
                rows[filled : filled + len(batch)] = flat.reshape(len(batch), vector.list_size)
                filled += len(batch)
    finally:
        for file in opened:
            file.close()
    if filled != total:
        raise ValueError(f"it holds {filled} rows, its footer says {total}")
    parts = {
        name: np.concatenate(parts or [np.empty(0, COLUMN_TYPES[name].to_pandas_dtype())])
        for name, parts in columns.items()
    }
    if len(parts["position"]) not in (0, total):
        raise ValueError(f"column position must have no or {total} empty cells")
    for array in (rows, *parts.values()):
        array.flags.writeable = False
    return Rows(rows, parts["position"], parts["query_head"], parts["step"], metadata)


def _whole_vectors(column: pa.FixedSizeListArray) -> np.ndarray:
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise ValueError("column vector has empty cells")
    return flat.to_numpy(zero_copy_only=True)


def _numbers(name: str, column: pa.Array, is_empty: bool) -> np.ndarray:
    """The cells of a column; positions may all be null."""
    expected = len(column) if is_empty or (name == "position" and column.null_count) else 0
    if column.null_count != expected:
        raise ValueError(f"column {name} must have {expected} empty cells, it has {column.null_count}")
    return column.drop_null().to_numpy(zero_copy_only=True)


def _checked_schema(path: Path, file: pq.ParquetFile) -> tuple[HeadMetadata, pa.FixedSizeListType]:
    schema = file.schema_arrow
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError("it has no ra_bench metadata")
    metadata, about = HeadMetadata.from_json(text)
    if (HeadName(about["document"], about["layer"], about["kv_head"]), about["kind"]) != place_of(path.name):
        raise ValueError(f"its metadata speaks of {about['kind']} of {about['document']}")
    found = {name: schema.field(name).type for name in schema.names}
    vector = found.pop("vector", None)
    if found != COLUMN_TYPES:
        raise ValueError(f"its columns beside vector must be {_types(COLUMN_TYPES)}, not {_types(found)}")
    whole = vector is not None and pa.types.is_fixed_size_list(vector) and vector.list_size > 0
    if not whole or vector.value_type not in ARROW_TYPES.values():
        raise ValueError(f"column vector must be fixed_size_list<float16 or float32>, not {vector}")
    return metadata, vector


def _check_queries(where: str, rows: Rows, dim: int, kv_head: int, group: int, placed: bool) -> None:
    if rows.vectors.shape[1] != dim:
        raise UsageError(f"{where}: queries have {rows.vectors.shape[1]} dimensions, keys {dim}")
    if len(rows.vectors) % group:
        raise UsageError(f"{where}: queries must come in blocks of {group}, there are {len(rows.vectors)}")
    if len(rows.vectors) and placed != (len(rows.positions) > 0):
        raise UsageError(f"{where}: keys and queries must both have positions, or neither")
    heads = rows.query_heads.reshape(-1, group)
    in_order = bool((heads == kv_head * group + np.arange(group)).all())
    if placed:
        positions = rows.positions.reshape(-1, group)
        rises = (np.diff(positions[:, 0]) > 0).all() and (positions == positions[:, :1]).all()
        in_order = in_order and bool(rises)
    if not in_order:
        raise UsageError(f"{where}: query rows must be ordered by token, then by query head")


def _types(columns: dict[str, Any]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items()) or "none"
