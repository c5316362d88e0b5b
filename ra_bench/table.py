"""The tables that `compare` prints: each index at equal recall, and the oracle and the floors beside them.

What stands at equal bytes and at equal time is in budget_table.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ra_bench.matched import Matched, at_recall, by_head, mean_of, sweep_points
from ra_bench.results import DONE, Row

TARGETS = (0.90, 0.95, 0.99)
FLOORS = ("window", "random")
NOTHING = "–"
FAR_ABOVE_FLOOR = 5.0  # a time more than this many times its floor is flagged


@dataclass(frozen=True)
class Column:
    """A column of numbers: its quantity at a match, and what to print before it where that is a bound."""

    title: str
    quantity: str
    digits: int
    factor: float = 1.0
    bound: str = ""
    of_floors: bool = False

    def cell(self, values: Mapping[str, float | None], is_bound: bool = False) -> str:
        """The quantity as text, or a dash where it is not known."""
        value = values.get(self.quantity)
        if value is None:
            return NOTHING
        if self.quantity == "times_floor":  # as what share of the ceiling is reached
            return f"{100 / value:,.{self.digits}f}" + ("!" if value > FAR_ABOVE_FLOOR else "")
        return number(value * self.factor, self.digits, self.bound if is_bound else "")


CEILING = Column("of ceiling %", "times_floor", 0)
COLUMNS = (
    Column("p50 µs", "search_p50_us", 1, bound="≤"),
    Column("worst head", "worst_search_p50_us", 1, bound="≤"),
    Column("queries/s", "queries_per_s", 0, bound="≥"),
    Column("attend µs", "attend_p50_us", 1, bound="≤"),
    CEILING,
    Column("keys read %", "keys_share", 2, factor=100, bound="≤"),
    Column("KB read", "search_bytes", 0, factor=1e-3, bound="≤"),
    Column("mass", "mass_total", 3, of_floors=True),
    Column("out. error", "output_error", 3, of_floors=True),
    Column("worst head", "worst_output_error", 3, of_floors=True),
    Column("p5 recall", "recall_p05", 2, of_floors=True),
)


def recall_tables(rows: Sequence[Row]) -> list[Table]:
    """One table for each k that was asked for: a block for each matched recall, sorted by search time."""
    searched = [
        row for row in rows if row["status"] == "ok" and row["recall"] is not None and not row["for_budgets"]
    ]
    ks = sorted({row["k"] for row in searched})
    return [_table([row for row in searched if row["k"] == k], k) for k in ks]


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each unit that failed."""
    return _ended(rows, lambda status: status not in DONE)


def skipped(rows: Sequence[Row]) -> list[str]:
    """A line for each unit that does not apply to its head."""
    return _ended(rows, lambda status: status == "skipped")


def new_table(title: str, names: Sequence[str], columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """An empty table of names and numbers, with what its ceiling is below it."""
    rates = sorted({row["read_gb_per_s"] for row in rows if row.get("read_gb_per_s")})
    caption = (
        f"of ceiling: floor over time of attend; the floor is its bytes at {_span(rates)} GB/s, at which one"
        f" thread reads random rows here. !: time above {FAR_ABOVE_FLOOR:.0f} floors. Above 100: it reads in"
        " sequence, or a group's queries share reads."
    )
    return plain_table(title, names, columns, caption if rates else None)


def plain_table(
    title: str, names: Sequence[str], columns: Sequence[str], caption: str | None = None
) -> Table:
    """An empty table: columns of `names` to the left, `columns` of numbers to the right."""
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in names:
        table.add_column(name)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def by_index(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each index, in the order of the plan."""
    indexes: dict[str, list[Row]] = {}
    for row in rows:
        indexes.setdefault(row["index"], []).append(row)
    return indexes


def shown_name(index: str, rows: Sequence[Row], heads: int) -> str:
    """The index, and on how many of the heads it was measured, where not on all."""
    measured = len(by_head(rows))
    name = f"{index} (floor)" if index in FLOORS else index
    return name if measured == heads else f"{name} ({measured} of {heads} heads)"


def number(value: float | None, digits: int, bound: str = "") -> str:
    """A number with thousands apart, or a dash."""
    return NOTHING if value is None else f"{bound}{value:,.{digits}f}"


def shown_columns(columns: Sequence[Column], heads: int) -> list[Column]:
    """The columns that tell something: those of the worst head only where there are several."""
    return [column for column in columns if heads > 1 or not column.quantity.startswith("worst_")]


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
    indexes = by_index(rows)
    sweeps = {index: sweep_points(sweep) for index, sweep in indexes.items()}
    heads = len(by_head(rows))
    columns = shown_columns(COLUMNS, heads)
    titles = [*(column.title for column in columns), "build s", "KNN s", "B/key"]
    table = new_table(f"k={k}, at equal recall@{k}", ("recall", "index"), titles, rows)
    for target in TARGETS:
        matched = [at_recall(index, sweeps[index], target) for index in indexes if index not in FLOORS]
        matched.sort(key=lambda m: (m.reached == "no", m.values.get("search_p50_us") or 0.0, -m.nearest))
        for place, one in enumerate(matched):
            label = f"{target:.2f}" if place == 0 else ""
            cells = [*_cells(one, columns), *_build_cells(indexes[one.index])]
            name = shown_name(one.index, indexes[one.index], heads)
            table.add_row(label, name, *cells, end_section=one is matched[-1])
    for floor in FLOORS:
        if floor in sweeps:
            values = mean_of([sweep[-1] for sweep in sweeps[floor]])
            shown = [column.cell(values) if column.of_floors else NOTHING for column in columns]
            name = shown_name(floor, indexes[floor], heads)
            table.add_row(number(values["recall"], 2), name, *shown, *[NOTHING] * 3)
    return table


def _cells(one: Matched, columns: Sequence[Column]) -> list[str]:
    if one.reached == "no":
        return [f"max {one.nearest:.3f}", *[NOTHING] * (len(columns) - 1)]
    return [column.cell(one.values, is_bound=one.reached == "easily") for column in columns]


def _build_cells(sweep: Sequence[Row]) -> list[str]:
    """Build time, the neighbours of learn queries apart, and memory: the same for the whole sweep."""
    firsts = [rows[0] for rows in by_head(sweep).values()]
    size = sum(row["host_bytes"] + row["device_bytes"] for row in firsts) / sum(row["n"] for row in firsts)
    return [number(_mean(firsts, "build_s"), 2), number(_mean(firsts, "knn_s"), 2), number(size, 0)]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values: list[Any] = [row[name] for row in rows if row[name] is not None]
    return sum(values) / len(values) if len(values) == len(rows) else None


def _span(rates: Sequence[float]) -> str:
    low, high = f"{rates[0]:.1f}", f"{rates[-1]:.1f}"
    return low if low == high else f"{low} to {high}"
