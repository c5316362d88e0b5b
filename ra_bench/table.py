"""The tables that `compare` prints: each index at equal recall, and the oracle and the floors beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ra_bench.matched import Matched, at_recall, sweep_points
from ra_bench.results import DONE, Row

TARGETS = (0.90, 0.95, 0.99)
FLOORS = ("window", "random")
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column of numbers: its quantity at a recall, and what to print before it where that is a bound."""

    title: str
    quantity: str
    digits: int
    factor: float = 1.0
    bound: str = ""
    of_floors: bool = False

    def cell(self, values: Mapping[str, float | None], is_bound: bool = False) -> str:
        """The quantity as text, or a dash where it is not known."""
        value = values[self.quantity]
        shown = None if value is None else value * self.factor
        return _number(shown, self.digits, self.bound if is_bound else "")


COLUMNS = (
    Column("p50 µs", "search_p50_us", 1, bound="≤"),
    Column("queries/s", "queries_per_s", 0, bound="≥"),
    Column("attend µs", "attend_p50_us", 1, bound="≤"),
    Column("keys read %", "keys_share", 2, factor=100, bound="≤"),
    Column("KB read", "search_bytes", 0, factor=1e-3, bound="≤"),
    Column("mass", "mass_total", 3, of_floors=True),
    Column("out. error", "output_error", 3, of_floors=True),
    Column("p5 recall", "recall_p05", 2, of_floors=True),
    Column("worst head", "worst_head_recall", 2, of_floors=True),
)


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table a k: a block for each matched recall, sorted by search time."""
    measured = [row for row in rows if row["status"] == "ok"]
    return [
        _table([row for row in measured if row["k"] == k], k) for k in sorted({row["k"] for row in measured})
    ]


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each unit that failed."""
    return _ended(rows, lambda status: status not in DONE)


def skipped(rows: Sequence[Row]) -> list[str]:
    """A line for each unit that does not apply to its head."""
    return _ended(rows, lambda status: status == "skipped")


def _ended(rows: Sequence[Row], how: Callable[[str], bool]) -> list[str]:
    lines = []
    for row in rows:
        if how(row["status"]):
            head = row["document"]
            if row["layer"] is not None:  # a published data set may not tell it
                head += f"/layer{row['layer']}/head{row['kv_head']}"
            lines.append(f"{row['index']} on {head}: {row['status']}: {row['reason']}")
    return lines


def _table(rows: Sequence[Row], k: int) -> Table:
    indexes = list(dict.fromkeys(row["index"] for row in rows))
    sweeps = {index: [row for row in rows if row["index"] == index] for index in indexes}
    points = {index: sweep_points(sweep) for index, sweep in sweeps.items()}
    heads = len(_heads(rows))
    columns = [column for column in COLUMNS if heads > 1 or column.quantity != "worst_head_recall"]
    table = Table(title=f"k={k}, at equal recall@{k}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("recall", "index"):
        table.add_column(name)
    for name in (*(column.title for column in columns), "build s", "KNN s", "B/key"):
        table.add_column(name, justify="right")
    for target in TARGETS:
        matched = [at_recall(index, points[index], target) for index in indexes if index not in FLOORS]
        matched.sort(key=lambda m: (m.reached == "no", m.values.get("search_p50_us") or 0.0, -m.best_recall))
        for place, one in enumerate(matched):
            label = f"{target:.2f}" if place == 0 else ""
            sweep = sweeps[one.index]
            measured = len(_heads(sweep))
            name = one.index if measured == heads else f"{one.index} ({measured} of {heads} heads)"
            cells = [*_cells(one, columns), *_build_cells(sweep)]
            table.add_row(label, name, *cells, end_section=one is matched[-1])
    for floor in FLOORS:
        if floor in points:
            point = points[floor][-1]
            shown = [column.cell(point.values) if column.of_floors else NOTHING for column in columns]
            table.add_row(_number(point.recall, 2), f"{floor} (floor)", *shown, *[NOTHING] * 3)
    return table


def _cells(one: Matched, columns: Sequence[Column]) -> list[str]:
    if one.reached == "no":
        return [f"max {one.best_recall:.3f}", *[NOTHING] * (len(columns) - 1)]
    return [column.cell(one.values, is_bound=one.reached == "easily") for column in columns]


def _build_cells(sweep: Sequence[Row]) -> list[str]:
    """Build time, the neighbours of learn queries apart, and memory: the same for the whole sweep."""
    knn = _mean(sweep, "knn_s") if sweep[0]["knn_s"] is not None else None
    size = sum(row["host_bytes"] + row["device_bytes"] for row in sweep) / sum(row["n"] for row in sweep)
    return [_number(_mean(sweep, "build_s"), 2), _number(knn, 2), _number(size, 0)]


def _heads(rows: Sequence[Row]) -> dict[tuple, Row]:
    return {(row["document"], row["layer"], row["kv_head"]): row for row in rows}


def _mean(rows: Sequence[Row], name: str) -> float:
    """Mean over heads of a quantity that is the same in all rows of a head."""
    values = [row[name] for row in _heads(rows).values()]
    return sum(values) / len(values)


def _number(value: float | None, digits: int, bound: str = "") -> str:
    return NOTHING if value is None else f"{bound}{value:,.{digits}f}"
