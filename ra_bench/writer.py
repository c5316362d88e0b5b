"""Writes a dump: the folder of Parquet files and the manifest that `ra_bench.vectors` describes and reads.

    with DumpWriter(Path("dump"), "float16") as dump:
        keys = dump.open(HeadName("doc000", 12, 0), "keys", dim, metadata)
        keys.append(vectors, positions)  # as often as wanted, in order
        dump.finish(settings)            # without it, the context leaves nothing behind

A file has its name only when it is whole (`.partial` before), and the manifest comes last. With `resume`,
what is whole stays when the dump ends early, and the next writer of the same run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.checked_rows import all_finite
from ra_bench.errors import RunError, UsageError
from ra_bench.head_file import ARROW_TYPES, COLUMN_TYPES, METADATA_KEY
from ra_bench.vectors import (
    MANIFEST,
    SCHEMA_VERSION,
    HeadMetadata,
    HeadName,
    Kind,
    file_name,
    is_dump_file,
)

# The journal of a dump that can be resumed: what it is, then a line for each file that is whole.
UNFINISHED = "dump.unfinished.jsonl"

_COLUMN_BYTES = 10  # position, query_head and step of a row
_GROUP_ROWS = 1024  # smaller blocks wait for each other: a row group a decoded token would be all overhead
_ROW_GROUP_ROWS = 1 << 17


def row_bytes(dim: int, dtype: np.dtype) -> int:
    """What a row of `dim` numbers and its columns takes in a file, about."""
    return dim * dtype.itemsize + _COLUMN_BYTES


def refuse_full_disk(out: Path, needed_bytes: int) -> None:
    """Raises UsageError where the disk of `out` has no room for a dump, its files there counted."""
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    free_bytes = shutil.disk_usage(parent).free
    there = sum(path.stat().st_size for path in out.glob("*.parquet")) if out.is_dir() else 0
    if needed_bytes - there > free_bytes:
        raise UsageError(f"--out {out}: needs about {needed_bytes} bytes, {free_bytes} are free")


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
        self._sink = _HashedFile(self._partial)
        # Real vectors shrink by 6 % under zstd, at a third of the speed.
        self._file: pq.ParquetWriter | None = pq.ParquetWriter(
            self._sink, self._schema, compression="none", use_dictionary=False, write_statistics=False
        )

    @property
    def listed(self) -> dict[str, Any]:
        """The closed file as the manifest has it."""
        return {"name": self.path.name, "rows": self.rows, **self._sink.fingerprint}

    def append(
        self,
        vectors: np.ndarray,
        positions: np.ndarray | None,
        query_heads: np.ndarray | None = None,
        steps: np.ndarray | None = None,
    ) -> None:
        """Adds rows: `vectors` (m, d), `positions` (m,), and for queries their heads and decode steps.

        Positions are None, in all blocks, where they are not known.
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
        assert self._file is not None
        self._file.close()
        self._file = None  # a closed writer keeps its buffers: five times the file
        self._sink.sync()
        self._sink.close()
        self._partial.rename(self.path)
        self._closed = True

    def discard(self) -> None:
        """Removes the file, whole or not."""
        try:
            if self._file is not None:
                self._file.close()
            self._sink.close()
        except (OSError, pa.ArrowException):  # a full disk: the footer does not fit either
            pass
        finally:
            self._waiting.clear()
            self._partial.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting and self._file is not None:
            table = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
            self._file.write_table(table, row_group_size=_ROW_GROUP_ROWS)
            self._waiting.clear()


class _HashedFile:
    """A file to write to, which keeps the size and the SHA-256 of what was written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._bytes = 0

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: Any) -> int:
        self._hash.update(content)
        self._bytes += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._bytes

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


class DumpWriter:
    """Writes a dump into `folder`, which it makes. A context: left without `finish`, it removes its files.

    With `resume`, which says what is dumped (JSON), files that are whole stay, and so does the journal; a
    later writer with the same `resume` has them. UsageError where the folder holds the journal of another
    dump.
    """

    def __init__(
        self, folder: Path, dtype: str | np.dtype = "float16", resume: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.dtype = np.dtype(dtype)
        self._resume = None if resume is None else json.dumps(resume, sort_keys=True)
        self._files: dict[str, HeadWriter] = {}
        self._listed: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._finished = False
        self._made_folder = not folder.exists()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._resume is not None:
            self._take_up(self._resume)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._finished:
            self.discard()

    def has(self, name: HeadName, kind: Kind) -> bool:
        """Whether the file for `kind` of head `name` is whole, from this run or an earlier one."""
        return file_name(name, kind) in self._listed

    def open(self, name: HeadName, kind: Kind, dim: int, metadata: HeadMetadata) -> HeadWriter:
        """The file for `kind` of head `name`; `close` it here when it is whole, or leave that to `finish`."""
        file = file_name(name, kind)
        writer = HeadWriter(self.folder / file, dim, self.dtype, metadata.to_json(name, kind))
        with self._lock:
            self._files[file] = writer
        return writer

    def close(self, writer: HeadWriter) -> None:
        """Finishes a file; with `resume` it now stays whatever happens. A second call does nothing."""
        writer.close()
        with self._lock:
            if writer.path.name not in self._listed:
                self._listed[writer.path.name] = writer.listed
                if self._resume is not None:
                    self._note(writer.listed)

    def finish(self, settings: dict[str, Any]) -> None:
        """Closes the files still open and writes the manifest, with the run's `settings`."""
        for writer in self._files.values():
            self.close(writer)
        listed = [self._listed[name] for name in sorted(self._listed)]
        manifest = {"schema_version": SCHEMA_VERSION, "settings": settings, "files": listed}
        partial = self.folder / (MANIFEST + ".partial")
        with partial.open("w", encoding="utf-8") as out:
            json.dump(manifest, out, indent=1)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        partial.rename(self.folder / MANIFEST)
        self._finished = True
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the files so far (with `resume`: those not whole), and the folder if this made it."""
        (self.folder / MANIFEST).unlink(
            missing_ok=True
        )  # first: an interruption may come just after its rename
        for name, writer in self._files.items():
            if self._resume is None or name not in self._listed:
                writer.discard()
        (self.folder / (MANIFEST + ".partial")).unlink(missing_ok=True)
        if self._resume is not None and self._listed:
            return
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        if self._made_folder and self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _take_up(self, resume: str) -> None:
        """Reads the journal of an earlier run of the same dump, or begins one; removes what is not whole."""
        journal = self.folder / UNFINISHED
        if journal.exists():
            self._listed = {line["name"]: line for line in _whole_files(journal, resume)}
        else:
            journal.write_text(resume + "\n", encoding="utf-8")
        for path in self.folder.iterdir():
            if is_dump_file(path.name.removesuffix(".partial")) and path.name not in self._listed:
                path.unlink()

    def _note(self, listed: Mapping[str, Any]) -> None:
        with (self.folder / UNFINISHED).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(listed) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


def _whole_files(journal: Path, resume: str) -> list[dict[str, Any]]:
    """The files that a journal names and that are there, if it is that of the same dump; else UsageError."""
    first, *lines = journal.read_text(encoding="utf-8").splitlines() or [""]
    try:
        there, asked = json.loads(first), json.loads(resume)
    except ValueError:
        raise UsageError(f"--out: '{journal}' cannot be read; --force replaces the unfinished dump") from None
    for name in asked:
        if there.get(name) != asked[name]:
            raise UsageError(
                f"--out {journal.parent} holds an unfinished dump of another kind: its {name} is "
                f"{there.get(name)!r}, not {asked[name]!r}; --force replaces it"
            )
    whole = []
    for line in lines:
        try:
            listed = json.loads(line)
            size_bytes = (journal.parent / listed["name"]).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):  # a line or a file that a crash cut off
            continue
        if is_dump_file(listed["name"]) and size_bytes == listed["bytes"]:
            whole.append(listed)
    return whole
