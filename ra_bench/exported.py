"""What result folders hold, read from outside: a line a folder, and all rows as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ra_bench.errors import RunError, UsageError
from ra_bench.results import DONE, Row, read_identity, read_row_file


@dataclass(frozen=True)
class Summary:
    """One result folder: `units` have landed, `failed` of them badly; `damaged` files do not read."""

    folder: str
    verb: str
    units: int
    rows: int
    failed: int
    damaged: int
    bytes: int
    last: str
    indexes: list[str]


def result_folders(places: Sequence[Path]) -> list[Path]:
    """The result folders among `places` and directly inside them. Raises UsageError for one with none."""
    found: list[Path] = []
    for place in places:
        here = [place, *sorted(place.iterdir())] if place.is_dir() else []
        folders = [folder for folder in here if (folder / "run.json").is_file()]
        if not folders:
            raise UsageError(f"'{place}' must be a result folder, or hold some: it has no run.json")
        found += folders
    return list(dict.fromkeys(found))


def summary(folder: Path) -> Summary:
    """What a result folder holds; a damaged file is counted, not an error."""
    try:
        verb = read_identity("RESULTS", folder / "run.json")["verb"]
    except UsageError:
        verb = "?"
    rows = failed = damaged = size = 0
    last = 0.0
    indexes: set[str] = set()
    files = _row_files(folder)
    for file in files:
        about_file = file.stat()
        size, last = size + about_file.st_size, max(last, about_file.st_mtime)
        try:
            found = read_row_file(file, ["status", "index"]).to_pylist()
        except RunError:
            damaged += 1
            continue
        rows += len(found)
        failed += any(row["status"] not in DONE for row in found)
        indexes |= {row["index"] for row in found}
    when = datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds") if files else ""
    return Summary(str(folder), verb, len(files), rows, failed, damaged, size, when, sorted(indexes))


def rows_of(folder: Path, samples: bool) -> Iterator[Row]:
    """All rows of a folder, unit by unit; columns of many values only with `samples`. Raises RunError."""
    for file in _row_files(folder):
        table = read_row_file(file)
        if not samples:
            table = table.select([field.name for field in table.schema if not pa.types.is_list(field.type)])
        yield from table.to_pylist()


def write_json(rows: Iterator[Row], sink: IO[str]) -> int:
    """One JSON object a line; returns how many."""
    count = 0
    for row in rows:
        sink.write(json.dumps(row) + "\n")
        count += 1
    return count


def write_csv(rows: Iterator[Row], sink: IO[str]) -> int:
    """A header, then a line a row; empty where a quantity is not defined; lists as JSON. Returns how many."""
    writer: Any = None
    count = 0
    for row in rows:
        cells = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
        if writer is None:
            writer = csv.DictWriter(sink, list(cells), extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
        writer.writerow(cells)
        count += 1
    return count


def _row_files(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / "rows").glob("*.parquet") if not file.name.startswith("."))
