"""Result folders → runs: the rows that a report shows, the commands that made them, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench import drift_rows
from ra_bench.decode import rows as decode_rows
from ra_bench.errors import UsageError
from ra_bench.results import (
    LONG_COLUMNS,
    SCHEMA_VERSION,
    Row,
    read_commands,
    read_identity,
    refuse_schema,
)

SCHEMAS = {
    "compare": SCHEMA_VERSION,
    "decode": decode_rows.SCHEMA_VERSION,
    "drift": drift_rows.SCHEMA_VERSION,
}
# Every repeat and every query: a page shows what they amount to.
LEFT_OUT = frozenset({*LONG_COLUMNS, *decode_rows.LONG_COLUMNS, *drift_rows.LONG_COLUMNS})
# Where a row lies, for who needs what is left out of it.
FILE, PLACE = "row_file", "row_place"


@dataclass
class Run:
    """One result folder. `rows` are those of every unit that has landed, failures too."""

    path: Path
    verb: str
    identity: dict[str, Any]
    rows: list[Row]
    commands: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def ok(self) -> list[Row]:
        """The rows that were measured."""
        return [row for row in self.rows if row["status"] == "ok"]

    @property
    def machines(self) -> list[str]:
        """The machines of its rows."""
        return sorted({row["machine"] for row in self.rows if row.get("machine")})


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in `paths`. Raises UsageError for a folder that is none, and where no row was measured."""
    runs = [_read_run(path) for path in dict.fromkeys(path.resolve() for path in paths)]
    if not any(run.ok for run in runs):
        where = ", ".join(f"'{path}'" for path in paths)
        failed = sum(len(run.rows) for run in runs)
        why = f"all {failed} of them failed or were skipped" if failed else "there are no rows yet"
        raise UsageError(f"RESULTS: nothing to show in {where}: {why}")
    return runs


def default_folders(root: Path = Path("results")) -> list[Path]:
    """The result folders in `results/`, for a report that names none."""
    found = sorted(path.parent for path in root.glob("*/run.json"))
    if not found:
        raise UsageError(f"RESULTS must name result folders; there are none in '{root}' either")
    return found


def _read_run(path: Path) -> Run:
    identity = _identity(path)
    verb = identity.get("verb")
    if verb not in SCHEMAS:
        raise UsageError(f"RESULTS: '{path}' holds results of {verb!r}; a report shows {', '.join(SCHEMAS)}")
    run = Run(path, verb, identity, [], read_commands(path))
    refuse_schema("RESULTS", path, identity.get("schema"), SCHEMAS[verb])
    damaged = []
    for file in sorted((path / "rows").glob("*.parquet")):
        rows = _rows_of(file)
        if rows is None:
            damaged.append(file.name)
            continue
        for version in {row.get("schema") for row in rows}:
            refuse_schema("RESULTS", file, version, SCHEMAS[verb])
        run.rows += rows
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        run.notes.append(
            f"'{path}': {damaged[0]}{more} damaged and left out; delete and run the same command again"
        )
    if partial := sum(1 for _ in (path / "rows").glob(".*.partial")):
        run.notes.append(f"'{path}': {partial} half-written, left out; the run was killed or still goes on")
    if len(run.machines) > 1:
        run.notes.append(
            f"'{path}': rows of {len(run.machines)} machines ({'; '.join(run.machines)});"
            " the page shows one at a time unless asked"
        )
    return run


def _identity(path: Path) -> dict[str, Any]:
    marker = path / "run.json"
    if not path.is_dir():
        raise UsageError(f"RESULTS must be result folders, no such folder '{path}'")
    if not marker.exists():
        raise UsageError(f"RESULTS: '{path}' is no result folder, or was not finished: it has no run.json")
    return read_identity("RESULTS", marker)


def _rows_of(file: Path) -> list[Row] | None:
    """The rows of a unit without its long columns; None where the file is damaged."""
    try:
        with pq.ParquetFile(file) as opened:
            names = [name for name in opened.schema_arrow.names if name not in LEFT_OUT]
            rows: list[Row] = opened.read(columns=names).to_pylist()
    except (OSError, pa.ArrowException):
        return None
    if rows and not {"status", "index", "schema"} <= rows[0].keys():
        return None
    return [row | {FILE: file, PLACE: place} for place, row in enumerate(rows)]


def missing_columns(rows: Iterable[Row], columns: Iterable[str]) -> list[str]:
    """Which of `columns` no row has a value for."""
    left = list(columns)
    for row in rows:
        left = [name for name in left if row.get(name) is None]
        if not left:
            break
    return left
