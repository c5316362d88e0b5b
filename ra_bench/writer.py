"""Writes a dump: the folder of Parquet files and the manifest that `ra_bench.vectors` describes and reads.

    with DumpWriter(Path("dump"), "float16") as dump:
        keys = dump.open(HeadName("doc000", 12, 0), "keys", dim, metadata)
        keys.append(vectors, positions)  # as often as wanted, in order
        dump.finish(settings)            # without it, the context leaves nothing behind

A file has its name only when it is whole (`.partial` before), and the manifest comes last.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.errors import RunError
from ra_bench.index import all_finite
from ra_bench.vectors import (
    ARROW_TYPES,
    COLUMN_TYPES,
    MANIFEST,
    METADATA_KEY,
    SCHEMA_VERSION,
    HeadMetadata,
    HeadName,
    Kind,
    file_name,
    fingerprint,
)

_GROUP_ROWS = 1024  # smaller blocks wait for each other: a row group a decoded token would be all overhead
_ROW_GROUP_ROWS = 1 << 17


class HeadWriter:
    """Writes one file of a dump, block by block. Use `DumpWriter.open`."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype, metadata: str) -> None:
        self.path = path
        self.rows = 0
        self._closed = False
        self._partial = path.with_name(path.name + ".partial")
        self._dtype = np.dtype(dtype)
        self._dim = dim
        self._waiting: list[pa.RecordBatch] = []
        vector = pa.list_(pa.field("element", ARROW_TYPES[self._dtype], nullable=False), dim)
        self._schema = pa.schema(
            [pa.field(name, kind) for name, kind in COLUMN_TYPES.items()] + [pa.field("vector", vector)],
            {METADATA_KEY: metadata.encode()},
        )
        self._file = pq.ParquetWriter(
            self._partial, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )

    def append(
        self,
        vectors: np.ndarray,
        positions: np.ndarray,
        query_heads: np.ndarray | None = None,
        steps: np.ndarray | None = None,
    ) -> None:
        """Adds rows: `vectors` (m, d), `positions` (m,), and for queries their heads and decode steps.

        Raises RunError where a vector is not finite, in the stored type.
        """
        with np.errstate(over="ignore"):
            vectors = np.ascontiguousarray(vectors, self._dtype)
        if not all_finite(vectors):
            wider = "; dump as float32" if self._dtype == np.float16 else ""
            raise RunError(
                f"{self.path.name}: the model made a value that is not finite as {self._dtype.name}{wider}"
            )
        columns = (positions, query_heads, steps)
        arrays: list[pa.Array] = [
            pa.nulls(len(vectors), kind) if column is None else pa.array(np.asarray(column), kind)
            for column, kind in zip(columns, COLUMN_TYPES.values(), strict=True)
        ]
        flat = pa.array(vectors.reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field("vector").type))
        self._waiting.append(pa.record_batch(arrays, schema=self._schema))
        self.rows += len(vectors)
        if sum(len(batch) for batch in self._waiting) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Finishes the file and gives it its name; a second call does nothing."""
        if self._closed:
            return
        self._flush()
        self._file.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.rename(self.path)
        self._closed = True

    def discard(self) -> None:
        """Removes the file, whole or not."""
        try:
            self._file.close()
        except (OSError, pa.ArrowException):  # a full disk: the footer does not fit either
            pass
        finally:
            self._waiting.clear()
            self._partial.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
            self._file.write_table(table, row_group_size=_ROW_GROUP_ROWS)
            self._waiting.clear()


class DumpWriter:
    """Writes a dump into `folder`, which it makes. A context: left without `finish`, it removes its files."""

    def __init__(self, folder: Path, dtype: str | np.dtype = "float16") -> None:
        self.folder = folder
        self.dtype = np.dtype(dtype)
        self._files: dict[str, HeadWriter] = {}
        self._finished = False
        self._made_folder = not folder.exists()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._finished:
            self.discard()

    def open(self, name: HeadName, kind: Kind, dim: int, metadata: HeadMetadata) -> HeadWriter:
        """The file for `kind` of head `name`; `close` it when it is whole, or leave that to `finish`."""
        file = file_name(name, kind)
        writer = HeadWriter(self.folder / file, dim, self.dtype, metadata.to_json(name, kind))
        self._files[file] = writer
        return writer

    def finish(self, settings: dict[str, Any]) -> None:
        """Closes the files still open and writes the manifest, with the run's `settings`."""
        listed = []
        for file, writer in sorted(self._files.items()):
            writer.close()
            listed.append({"name": file, "rows": writer.rows} | fingerprint(writer.path))
        manifest = {"schema_version": SCHEMA_VERSION, "settings": settings, "files": listed}
        partial = self.folder / (MANIFEST + ".partial")
        with partial.open("w", encoding="utf-8") as out:
            json.dump(manifest, out, indent=1)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        partial.rename(self.folder / MANIFEST)
        self._finished = True

    def discard(self) -> None:
        """Removes every file written so far, and the folder if this made it."""
        (self.folder / MANIFEST).unlink(
            missing_ok=True
        )  # first: an interruption may come just after its rename
        for writer in self._files.values():
            writer.discard()
        (self.folder / (MANIFEST + ".partial")).unlink(missing_ok=True)
        if self._made_folder and self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()
