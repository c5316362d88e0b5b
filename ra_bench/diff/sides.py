"""A result folder as one side of a difference: its newest rows, samples as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.errors import RunError, UsageError
from ra_bench.results import LONG_COLUMNS, Row, read_identity, refuse_schema


@dataclass(frozen=True)
class Side:
    """The rows of one folder; long columns are NumPy arrays. `outdated` units were measured again since."""

    name: str  # A or B
    path: Path
    identity: dict[str, Any]
    rows: list[Row]
    outdated: int

    @property
    def measured(self) -> list[Row]:
        """The rows that hold a measurement."""
        return [row for row in self.rows if row["status"] == "ok"]

    @property
    def machines(self) -> list[str]:
        """The machines that measured."""
        return sorted({row["machine"] for row in self.measured})


def read_side(name: str, path: Path) -> Side:
    """Reads one folder. Raises UsageError where it is none of `compare`, or of another schema version.

    A folder keeps the rows of code that has changed since; of the units of one index on one head the file
    written last counts.
    """
    identity = _identity(name, path)
    newest: dict[tuple, list[Row]] = {}
    files = sorted((path / "rows").glob("*.parquet"), key=lambda file: file.stat().st_mtime)
    for file in files:
        rows = _rows(name, file)
        if rows:
            newest[tuple(rows[0][column] for column in ("document", "layer", "kv_head", "index"))] = rows
    if not newest:
        half = any((path / "rows").glob(".*.partial"))
        why = "; its run was stopped before the first unit ended" if half else ""
        raise UsageError(f"{name}: '{path}' holds no rows{why}")
    kept = [row for rows in newest.values() for row in rows]
    return Side(name, path, identity, kept, len(files) - len(newest))


def refuse_unlike(a: Side, b: Side) -> None:
    """Raises UsageError where the two did not ask the same queries of the same data."""
    if a.identity.get("data_hash") != b.identity.get("data_hash"):
        names = [f"{side.rows[0]['data']} ({str(side.identity.get('data_hash'))[:8]})" for side in (a, b)]
        raise UsageError(f"A and B must be of the same data, got {names[0]} and {names[1]}")
    asked = ["split", "max_queries"]
    if "random" in (a.identity.get("split"), b.identity.get("split")):
        asked.append("seed")  # it draws the test queries
    for what in asked:
        if a.identity.get(what) != b.identity.get(what):
            raise UsageError(
                f"A and B must have tested the same queries, got --{what.replace('_', '-')}"
                f" {a.identity.get(what)} and {b.identity.get(what)}"
            )


def _identity(name: str, path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UsageError(f"{name} must be a result folder, no such folder '{path}'")
    marker = path / "run.json"
    if not marker.is_file():
        raise UsageError(f"{name} must be a result folder, '{path}' has no run.json")
    identity = read_identity(name, marker)
    if identity["verb"] != "compare":
        raise UsageError(f"{name} must hold results of compare, '{path}' holds those of {identity['verb']}")
    refuse_schema(name, path, identity.get("schema"))
    return identity


def _rows(name: str, file: Path) -> list[Row]:
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{name}: '{file}' is damaged ({error}); delete it and run compare again") from error
    if "schema" not in table.column_names:
        raise UsageError(f"{name}: '{file}' does not hold rows of compare")
    for version in table["schema"].unique().to_pylist():
        refuse_schema(name, file, version)
    samples = [column for column in LONG_COLUMNS if column in table.column_names]
    rows: list[Row] = table.drop_columns(samples).to_pylist()
    for column in samples:
        for row, values in zip(rows, _lists(table[column].combine_chunks()), strict=True):
            row[column] = values
    return rows


def _lists(column: Any) -> Sequence[np.ndarray | None]:
    """The lists of an Arrow column as arrays; as Python numbers they would take eight times the memory."""
    return [None if one.values is None else one.values.to_numpy() for one in column]
