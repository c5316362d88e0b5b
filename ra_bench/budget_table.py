"""Tables at equal bytes and at equal time, sorted by output error, with the oracle and the floors.

They serve methods that select nothing or choose their own number of keys. An index may choose its k: all k of
a run are one sweep. The oracle attends to the truly best keys as if it knew them without reading any. A
method that a budget is too small for is not in its block; the last block tells the least that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table

from ra_bench.budgets import BYTE_SHARES, TIME_SHARES, share_text
from ra_bench.matched import HeadKey, Matched, Values, at_budget, by_head, quantities, token_bytes
from ra_bench.results import Row
from ra_bench.table import (
    CEILING,
    FLOORS,
    NOTHING,
    Column,
    by_index,
    new_table,
    recall_tables,
    shown_columns,
    shown_name,
)

TABLES = ("recall", "bytes", "time")  # at equal what indexes stand side by side
EXACT_SCAN, ORACLE = "flat", "oracle"
COMPANY = (EXACT_SCAN, *FLOORS)
REACHED = ("yes", "easily")
COLUMNS = (
    Column("out. error", "output_error", 3, bound="≤"),
    Column("worst head", "worst_output_error", 3, bound="≤"),
    Column("p95", "output_error_p95", 3, bound="≤"),
    Column("oracle", "oracle_error", 3),
    Column("attended", "attended", 0),
    Column("keys read %", "keys_share", 2, factor=100),
    Column("KB read", "attend_bytes", 0, factor=1e-3),
    Column("attend µs", "attend_p50_us", 1),
    Column("floor µs", "floor_us", 1),
    CEILING,
    Column("observe µs", "observe_p50_us", 1),
)
Sweeps = dict[str, list[list[Values]]]


def compared(rows: Sequence[Row], names: Sequence[str] | None = None) -> list[Table]:
    """The tables of a comparison, by their `names`; None: at equal recall, and the others where wanted."""
    if not any(row["status"] == "ok" for row in rows):
        return []
    if names is None:
        names = TABLES if are_wanted(rows) else ("recall",)
    tables = recall_tables(rows) if "recall" in names else []
    tables += [bytes_table(rows)] if "bytes" in names else []
    return tables + ([time_table(rows)] if "time" in names else [])


def are_wanted(rows: Sequence[Row]) -> bool:
    """Whether some method has no recall, or attends to more keys than the k it was given."""
    own = [row for row in rows if row["status"] == "ok" and row["index"] not in COMPANY]
    return any(row["recall"] is None or (row["attended"] or 0) > 1.01 * row["k"] for row in own)


def bytes_table(rows: Sequence[Row]) -> Table:
    """Output error for a share of the bytes of an index's keys and values, read by attend."""
    title = "at equal bytes read a query, as a share of the index's keys and values; all k"
    return _table(
        [row for row in rows if row["status"] == "ok"],
        "bytes_share",
        title,
        [(share, share_text(share)) for share in BYTE_SHARES],
        lambda nearest: f"min {100 * nearest:.1f} %",
    )


def time_table(rows: Sequence[Row]) -> Table:
    """Output error for a time of attend, as shares of that of the exact scan with the smallest k."""
    measured = [row for row in rows if row["status"] == "ok"]
    scans = [row for row in measured if row["index"] == EXACT_SCAN]
    first = [row["attend_p50_us"] for row in scans if row["k"] == min(row["k"] for row in scans)]
    scan_us = float(np.mean(first)) if first else math.nan
    targets = [(share * scan_us, f"{share * scan_us:,.0f} µs, {share_text(share)}") for share in TIME_SHARES]
    title = "at equal time of attend a query, and as a share of the exact scan's; all k"
    return _table(
        measured, "attend_p50_us", title, targets if first else [], lambda nearest: f"min {nearest:,.1f} µs"
    )


def _table(
    rows: Sequence[Row],
    quantity: str,
    title: str,
    targets: Sequence[tuple[float, str]],
    nearest_text: Callable[[float], str],
) -> Table:
    indexes, heads = by_index(rows), len(by_head(rows))
    sweeps = _sweeps(indexes)
    columns = shown_columns(COLUMNS, heads)
    if all(row.get("observe_p50_us") is None for row in rows):
        columns = [column for column in columns if column.quantity != "observe_p50_us"]
    table = new_table(title, ("budget", "index"), [column.title for column in columns], rows)
    missed: dict[str, Matched] = {}
    for target, label in targets:
        matched = [at_budget(index, sweep, quantity, target) for index, sweep in sweeps.items()]
        reached = [one for one in matched if one.reached in REACHED]
        for place, one in enumerate(sorted(reached, key=lambda one: one.values["output_error"] or 0.0)):
            cells = [column.cell(one.values, is_bound=one.reached == "easily") for column in columns]
            name = shown_name(one.index, indexes.get(one.index, indexes.get(EXACT_SCAN, [])), heads)
            end = place == len(reached) - 1
            table.add_row("" if place else label, name, *cells, end_section=end)
        for one in matched:
            if one.reached not in REACHED and one.index != ORACLE:
                missed.setdefault(one.index, one)
    for place, one in enumerate(sorted(missed.values(), key=lambda one: (one.reached != "no", one.nearest))):
        told = nearest_text(one.nearest) if one.reached == "no" else "hidden"
        name = shown_name(one.index, indexes[one.index], heads)
        table.add_row("" if place else "least", name, told, *[NOTHING] * (len(columns) - 1))
    return table


def _sweeps(indexes: dict[str, list[Row]]) -> Sweeps:
    """The settings of each index in each head, what the oracle does with as many keys beside; the oracle."""
    exact = by_head(indexes.get(EXACT_SCAN, []))
    curves = {head: _oracle_curve(rows) for head, rows in exact.items()}
    sweeps: Sweeps = {}
    for index, rows in indexes.items():
        sweeps[index] = [
            [quantities(row) | {"oracle_error": _oracle_error(curves, head, row)} for row in sweep]
            for head, sweep in by_head(rows).items()
        ]
    if exact:
        sweeps[ORACLE] = [[_as_oracle(row) for row in rows] for rows in exact.values()]
    return sweeps


def _as_oracle(row: Row) -> Values:
    """A setting of the exact scan, as if nothing were read to find the keys: it has no time."""
    return dict.fromkeys(quantities(row)) | {
        **{name: row[name] for name in ("output_error", "output_error_p95", "attended")},
        "attend_bytes": row["attended"] * token_bytes(row),
        "bytes_share": row["attended"] / row["n"],
        "oracle_error": row["output_error"],
    }


def _oracle_curve(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens attended, in their logarithm, and the output error of the truly best; 0 for all keys."""
    points = {row["attended"]: row["output_error"] for row in rows} | {rows[0]["n"]: 0.0}
    tokens = np.array(sorted(points))
    return np.log(tokens), np.array([points[count] for count in tokens])


def _oracle_error(
    curves: dict[HeadKey, tuple[np.ndarray, np.ndarray]], head: HeadKey, row: Row
) -> float | None:
    if head not in curves or not row["attended"]:
        return None
    tokens, errors = curves[head]
    place = math.log(row["attended"])
    return float(np.interp(place, tokens, errors)) if place >= tokens[0] - 1e-9 else None
