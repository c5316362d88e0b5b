"""One row a measurement: the schema, and the folder in which rows land as each unit ends.

    OUT/run.json            what the run measures; a folder of another run is refused
    OUT/commands.txt        the commands that measured it, one a line
    OUT/rows/UNIT.parquet   the rows of one unit, written whole or not at all
    OUT/log/UNIT.log        what the unit's process printed

A unit is addressed by the content of what was run, so the same command continues where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.errors import RunError, UsageError, one_line

SCHEMA_VERSION = 3
DONE = ("ok", "skipped")  # a unit that ended so is not run again
ABANDONED_S = 3600.0  # a half-written file this old belongs to no run that lives

COMMANDS = "commands.txt"

_SAMPLES = pa.list_(pa.float32())
_TEXT, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

# Which head of which data set a row is about: the same in every verb that measures heads.
HEAD_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "data": (_TEXT, "name of the data set"),
    "data_hash": (_TEXT, "content hash of the data set"),
    "model": (_TEXT, "model that made the vectors"),
    "document": (_TEXT, "document of the data set"),
    "layer": (_COUNT, "decoder layer"),
    "kv_head": (_COUNT, "KV head"),
    "group": (_COUNT, "query heads per KV head (G)"),
}
# Column → type and meaning. Per-query quantities are means over test queries unless their name says more;
# `_by_query` and `_samples` keep every value. None where a quantity is not defined or a library hides it.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "unit": (_TEXT, "content address of the unit"),
    "status": (_TEXT, "ok, failed, timeout, oom or skipped"),
    "reason": (_TEXT, "why it is not ok, in one line"),
    **HEAD_COLUMNS,
    "n": (_COUNT, "keys in the index"),
    "d": (_COUNT, "head dimension"),
    "key_type": (_TEXT, "type of the stored keys"),
    "split": (_TEXT, "honest or random"),
    "test_queries": (_COUNT, "test query rows"),
    "index": (_TEXT, "spec string, without effort"),
    "transform": (_TEXT, "none, normalize or lift"),
    "settings": (_TEXT, "build settings, JSON"),
    "effort": (_TEXT, "search settings, JSON"),
    "effort_rank": (_COUNT, "place in the method's sweep, cheap to dear"),
    "k": (_COUNT, "results asked for"),
    "for_budgets": (_FLAG, "its k was not asked for: the oracle or a floor at the tokens that a budget buys"),
    "threads": (_COUNT, "threads of build and of the throughput call; latency is one thread"),
    "seed": (_COUNT, "seed of split and index"),
    "repeats": (_COUNT, "timed passes over the test queries; fewer than asked for where a pass is slow"),
    "repeatable": (_FLAG, "all passes found the same ids; None after a single pass"),
    "learn_queries": (_COUNT, "learn query rows given to build"),
    "learn_source": (_TEXT, "queries, or keys that stand in for them where a data set has none; else None"),
    "recall": (_REAL, "share of the exact top-k found; None where a method has no search"),
    "recall_p05": (_REAL, "recall of the 5th-percentile query"),
    "no_hit_share": (_REAL, "share of queries with none of the exact top-k"),
    "mass_of_indexed": (_REAL, "softmax mass of the found keys over that of the index"),
    "mass_total": (_REAL, "softmax mass of found and static keys over that of all"),
    "static_mass": (_REAL, "softmax mass of sinks and recent tokens over that of all"),
    "output_error": (_REAL, "|o'-o|/|o|, static part merged"),
    "output_error_p95": (_REAL, "output_error of the 95th-percentile query"),
    "output_error_index": (_REAL, "|o'-o|/|o| of the index's part alone"),
    "attended": (_REAL, "indexed keys in the softmax"),
    "keys_read": (_REAL, "distinct keys touched in any form by search, or by attend where there is none"),
    "exact": (_REAL, "full dot products"),
    "search_bytes": (_REAL, "bytes read by search"),
    "attend_bytes": (_REAL, "bytes read by attend, search included"),
    "search_p50_us": (_REAL, "search time per query of one-token calls, median"),
    "search_p95_us": (_REAL, "the same, 95th percentile"),
    "search_p99_us": (_REAL, "the same, 99th percentile"),
    "attend_p50_us": (_REAL, "attend time per query of one-token calls, median"),
    "attend_p95_us": (_REAL, "the same, 95th percentile"),
    "attend_p99_us": (_REAL, "the same, 99th percentile"),
    "observe_p50_us": (_REAL, "time per query of what a stateful method does after each token, median"),
    "observe_p95_us": (_REAL, "the same, 95th percentile"),
    "observe_p99_us": (_REAL, "the same, 99th percentile"),
    "read_gb_per_s": (_REAL, "10^9 bytes a second that one thread reads from random rows of keys and values"),
    "floor_us": (_REAL, "attend_bytes over read_gb_per_s: no attend that reads them at random is faster"),
    "times_floor": (_REAL, "attend_p50_us over floor_us; the inverse is the share of the ceiling reached"),
    "queries_per_s": (
        _REAL,
        "throughput of many test queries in one call, on `threads`: of search, or of attend without one",
    ),
    "build_s": (_REAL, "build time, without the neighbours of the learn queries"),
    "knn_s": (
        _REAL,
        "exact neighbours of the learn queries, on all cores, shared by the indexes that want them",
    ),
    "insert_us_per_key": (_REAL, "time per inserted key, in blocks of 64"),
    "host_bytes": (_COUNT, "index memory beyond the key and value rows"),
    "device_bytes": (_COUNT, "the same on the device"),
    "peak_bytes": (_COUNT, "largest resident set of the unit's process"),
    "recall_by_query": (_SAMPLES, "recall of each test query"),
    "mass_total_by_query": (_SAMPLES, "mass_total of each test query"),
    "output_error_by_query": (_SAMPLES, "output_error of each test query"),
    "search_us_samples": (_SAMPLES, "search time per query of each call of each pass"),
    "attend_us_samples": (_SAMPLES, "attend time per query of each call of each pass"),
    "observe_us_samples": (_SAMPLES, "observe time per query of each call of each pass of search and attend"),
    "difficulty_not_own_nearest": (
        _REAL,
        "share of keys with another key of larger inner product than itself",
    ),
    "difficulty_norm_cv": (_REAL, "standard deviation of key norms over their mean"),
    "difficulty_effective_keys": (_REAL, "exp of the entropy of attention over the index, median of queries"),
    "difficulty_keys_for_mass": (_REAL, "fewest keys that hold 90 % of that attention, median of queries"),
    "difficulty_mahalanobis_keys": (_REAL, "mean distance of keys to the distribution of keys"),
    "difficulty_mahalanobis_queries": (
        _REAL,
        "mean distance of unscaled queries to the distribution of keys",
    ),
    "difficulty_hubness": (_REAL, "skewness of how often a key is among a query's 100 best"),
    "environment": (_TEXT, "machine and versions, JSON"),
    "machine": (_TEXT, "what decides latency: CPU, cores, GPU"),
    "schema": (_COUNT, "schema version of the row"),
}
LONG_COLUMNS = [name for name, (kind, _) in COLUMNS.items() if kind == _SAMPLES]

Row = dict[str, Any]
Columns = Mapping[str, tuple[pa.DataType, str]]


def content_address(content: Mapping[str, Any]) -> str:
    """A short stable name for what is run: equal content, equal name."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class ResultFolder:
    """The folder of one run. Raises UsageError where it holds something else, RunError where disk fails."""

    def __init__(self, path: Path, identity: Mapping[str, Any], columns: Columns = COLUMNS) -> None:
        self.path = path
        self._schema = pa.schema([pa.field(name, kind) for name, (kind, _) in columns.items()])
        marker = path / "run.json"
        if path.exists() and not path.is_dir():
            raise UsageError(f"--out must be a folder, got the file '{path}'")
        if marker.exists():
            _refuse_another_run(marker, identity)
        elif path.exists() and any(_is_foreign(entry.name) for entry in path.iterdir()):
            raise UsageError(
                f"--out must be a new folder or one of the same run, got '{path}' with other files"
            )
        try:
            for folder in ("rows", "log"):
                (path / folder).mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                _write_marker(marker, identity)
        except OSError as error:
            raise RunError(f"--out '{path}' cannot be written: {error.strerror}") from error

    def note_command(self, command: str) -> None:
        """Keeps a command that measured into the folder, once."""
        if command in read_commands(self.path):
            return
        try:
            # One write at the file's end: of commands that start together, none takes away another's line.
            with (self.path / COMMANDS).open("ab", buffering=0) as file:
                file.write(f"{command}\n".encode())
        except OSError as error:
            raise RunError(f"--out '{self.path}' cannot be written: {error.strerror}") from error

    def check_writable(self) -> None:
        """Raises RunError where rows could not land: before anything is measured, not after."""
        try:
            probe = self.path / "rows" / f".{uuid.uuid4().hex}.partial"
            probe.write_bytes(b"")
            probe.unlink()
            for left in (self.path / "rows").glob(".*.partial"):
                if time.time() - left.stat().st_mtime > ABANDONED_S:
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"--out '{self.path}' cannot be written: {error.strerror}") from error

    def log_file(self, unit: str) -> Path:
        """Where the unit's process may print."""
        return self.path / "log" / f"{unit}.log"

    def has(self, unit: str) -> bool:
        """Whether the unit's rows have landed and it did not fail: what failed is tried again.

        A damaged file, or one of another unit or schema, is no result: it is measured again and replaced.
        """
        path = self._file(unit)
        if not path.exists():
            return False
        try:
            table = read_row_file(path)
        except RunError:
            return False
        facts = table.select(["unit", "status"]).to_pylist() if table.schema == self._schema else []
        return bool(facts) and all(row["unit"] == unit and row["status"] in DONE for row in facts)

    def write(self, unit: str, rows: Iterable[Row]) -> None:
        """Lands the rows of one unit, whole or not at all."""
        names = self._schema.names
        table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], self._schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        try:
            write_whole(self._file(unit), sink.getvalue().to_pybytes())
        except OSError as error:
            raise RunError(
                f"--out '{self.path}' cannot be written: {error.strerror}; rows so far are kept"
            ) from error

    def read(self, units: Iterable[str]) -> list[Row]:
        """The rows of those of `units` that have landed. Raises RunError naming a damaged file."""
        rows: list[Row] = []
        for unit in units:
            if self._file(unit).exists():
                rows += self._checked_rows(self._file(unit))
        return rows

    def _checked_rows(self, path: Path) -> list[Row]:
        table = read_row_file(path)
        if table.schema != self._schema:
            raise RunError(f"'{path}' holds rows of another schema; delete it and run the same command again")
        rows: list[Row] = table.to_pylist()
        return rows

    def _file(self, unit: str) -> Path:
        return self.path / "rows" / f"{unit}.parquet"


def read_commands(path: Path) -> list[str]:
    """The commands that measured into a result folder, oldest first, each once."""
    try:
        return list(dict.fromkeys((path / COMMANDS).read_text().splitlines()))
    except (OSError, ValueError):
        return []


def read_identity(argument: str, marker: Path) -> dict[str, Any]:
    """What the run.json of a result folder, which `argument` names, says of its run: its `verb` at least.

    Raises UsageError where it does not read or does not describe a run.
    """
    try:
        identity: Any = json.loads(marker.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{argument}: '{marker}' cannot be read: {one_line(error)}") from error
    if not isinstance(identity, dict) or not isinstance(identity.get("verb"), str):
        raise UsageError(f"{argument}: '{marker}' does not describe a run: it has no verb")
    return identity


def write_whole(path: Path, content: bytes, replace: bool = True) -> None:
    """Writes a file so that it is there whole or not at all, also after a crash or a full disk.

    Without `replace`, FileExistsError where somebody else has written it meanwhile.
    """
    write_stream(path, io.BytesIO(content), replace)


def write_stream(path: Path, content: BinaryIO, replace: bool = True) -> None:
    """The same of what `content` holds."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # two runs never share one
    try:
        with partial.open("wb") as file:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            partial.replace(path)
        else:
            os.link(partial, path)  # the one step that fails where the name is taken
            partial.unlink()
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a file's new name durable, where the file system lets folders be synced."""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(file)
    finally:
        os.close(file)


def read_row_file(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The rows of one unit's file. Raises RunError naming a damaged one."""
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise RunError(
            f"'{path}' is damaged ({' '.join(str(error).split())}); delete it and run the same command again"
        ) from error


def refuse_schema(argument: str, path: Path, version: Any, known: int = SCHEMA_VERSION) -> None:
    """Raises UsageError where `path`, which `argument` names, holds rows of a `version` but `known`."""
    if version != known:
        raise UsageError(
            f"{argument}: '{path}' holds rows of schema version {version}, this ra-bench reads {known};"
            " measure them again"
        )


def _is_foreign(name: str) -> bool:
    """Whether a file has no place in a folder whose run began just now."""
    return name not in ("rows", "log", "run.json") and not name.startswith(".run.json.")


def _write_marker(marker: Path, identity: Mapping[str, Any]) -> None:
    try:
        write_whole(marker, json.dumps(identity, indent=1).encode(), replace=False)
    except FileExistsError:  # by a run that began at the same moment
        _refuse_another_run(marker, identity)


def _refuse_another_run(marker: Path, identity: Mapping[str, Any]) -> None:
    there = read_identity("--out", marker)
    for name, value in identity.items():
        if there.get(name) != value:
            raise UsageError(
                f"--out '{marker.parent}' holds another run: its {name} is {there.get(name)!r},"
                f" not {value!r}; name another folder"
            )
