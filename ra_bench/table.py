"""The tables that `compare` prints: each index at equal recall, and the oracle and the floors beside them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ra_bench.matched import Matched, Point, at_recall, sweep_points
from ra_bench.results import Row

TARGETS = (0.90, 0.95, 0.99)
FLOORS = ("window", "random")
NOTHING = "–"


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table a k: a block for each matched recall, sorted by search time."""
    measured = [row for row in rows if row["status"] == "ok"]
    return [
        _table([row for row in measured if row["k"] == k], k) for k in sorted({row["k"] for row in measured})
    ]


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each unit that did not end well."""
    lines = []
    for row in rows:
        if row["status"] != "ok":
            head = f"{row['document']}/layer{row['layer']}/head{row['kv_head']}"
            lines.append(f"{row['index']} on {head}: {row['status']}: {row['reason']}")
    return lines


def _table(rows: Sequence[Row], k: int) -> Table:
    indexes = list(dict.fromkeys(row["index"] for row in rows))
    sweeps = {index: [row for row in rows if row["index"] == index] for index in indexes}
    points = {index: sweep_points(sweep) for index, sweep in sweeps.items()}
    table = Table(title=f"k={k}, at equal recall@{k}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("recall", "index"):
        table.add_column(name)
    columns = ("p50 µs", "queries/s", "keys read %", "KB read", "mass", "out. error", "p5 recall")
    for name in (*columns, "build s", "B/key"):
        table.add_column(name, justify="right")
    for target in TARGETS:
        matched = [at_recall(index, points[index], target) for index in indexes if index not in FLOORS]
        matched.sort(key=lambda m: (m.reached == "no", m.values.get("search_p50_us") or 0.0, -m.best_recall))
        for place, one in enumerate(matched):
            label = f"{target:.2f}" if place == 0 else ""
            table.add_row(label, *_cells(one, sweeps[one.index]), end_section=one is matched[-1])
    for floor in FLOORS:
        if floor in points:
            point = points[floor][-1]
            table.add_row(_number(point.recall, 2), f"{floor} (floor)", *_floor_cells(point))
    return table


def _cells(one: Matched, sweep: Sequence[Row]) -> list[str]:
    build = [_number(_mean(sweep, "build_s"), 2), _number(_bytes_per_key(sweep), 0)]
    if one.reached == "no":
        stalls = f"max {one.best_recall:.3f}"
        return [one.index, stalls, *[NOTHING] * 6, *build]
    below, above = ("≤", "≥") if one.reached == "easily" else ("", "")
    values = one.values
    return [
        one.index,
        _number(values["search_p50_us"], 1, below),
        _number(values["queries_per_s"], 0, above),
        _number(_times(values["keys_share"], 100), 2, below),
        _number(_times(values["search_bytes"], 1e-3), 0, below),
        _number(values["mass_total"], 3),
        _number(values["output_error"], 3),
        _number(values["recall_p05"], 2),
        *build,
    ]


def _floor_cells(point: Point) -> list[str]:
    values = point.values
    quality = [
        _number(values["mass_total"], 3),
        _number(values["output_error"], 3),
        _number(values["recall_p05"], 2),
    ]
    return [*[NOTHING] * 4, *quality, NOTHING, NOTHING]


def _mean(rows: Sequence[Row], name: str) -> float:
    """Mean over heads of a quantity that is the same in all rows of a head."""
    by_head = {(row["document"], row["layer"], row["kv_head"]): row[name] for row in rows}
    return sum(by_head.values()) / len(by_head)


def _bytes_per_key(rows: Sequence[Row]) -> float:
    return sum(row["host_bytes"] + row["device_bytes"] for row in rows) / sum(row["n"] for row in rows)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _number(value: float | None, digits: int, bound: str = "") -> str:
    return NOTHING if value is None else f"{bound}{value:,.{digits}f}"
