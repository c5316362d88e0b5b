"""How sure a page's numbers are: 95 % intervals by query and by head, of settings and at equal recall.

The samples of rows are read here, an index at a time, and let go; what stays is the ends of intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.diff.quantities import QUANTITIES
from ra_bench.matched import Values, at_recall, quantities
from ra_bench.report.compared import COSTS, QUALITIES, SCOPE, by, carried_over_heads
from ra_bench.report.rows import FILE, PLACE
from ra_bench.results import Row
from ra_bench.statistics import Interval, Resampled, by_head, over_heads, resampled
from ra_bench.table import TARGETS

# Of these a row keeps its samples, all queries and all repeats.
SAMPLED = ("recall", "mass_total", "output_error", "search_p50_us", "attend_p50_us")
SHOWN = tuple(dict.fromkeys((*SAMPLED, *QUALITIES, *COSTS)))
COST, MATCHED = "search_p50_us", ("search_p50_us", "attend_p50_us", "mass_total", "output_error")
# Beyond so many rows the page is content with intervals by head: a row takes 2 ms and its samples 20 KB.
MOST_SAMPLED_ROWS = 5000

Draws = dict[str, Resampled]  # of a row, by column


@dataclass(frozen=True)
class Ends:
    """Both intervals of a number; None where there are no samples, or one head alone."""

    by_query: Interval | None = None
    by_head: Interval | None = None

    @property
    def shown(self) -> Interval | None:
        """The one that a bar shows: by query where the rows have samples, else by head."""
        return self.by_query or self.by_head


@dataclass
class Sure:
    """One index in one scope: `heads` by head and rank, `means` in the order of its mean points."""

    heads: dict[tuple[str, int], dict[str, Ends]] = field(default_factory=dict)
    means: list[dict[str, Ends]] = field(default_factory=list)
    matched: dict[float, dict[str, Ends]] = field(default_factory=dict)


def intervals(rows: Sequence[Row]) -> dict[tuple, Sure]:
    """The intervals of each scope and index."""
    sampled = len(rows) <= MOST_SAMPLED_ROWS
    return {where: sweep_intervals(sweep, sampled) for where, sweep in by(rows, (*SCOPE, "index")).items()}


def sweep_intervals(sweep: Sequence[Row], sampled: bool = True) -> Sure:
    """Those of one index at one k: its rows on all heads."""
    heads = list(dict.fromkeys(row["head"] for row in sweep))
    draws = draws_of(sweep, heads) if sampled else {}
    sure = Sure()
    for row in sweep if draws else ():
        own = {name: _known(over_heads([one])) for name, one in draws[_at(row)].items()}
        sure.heads[_at(row)] = {name: Ends(interval) for name, interval in own.items() if interval}
    for same in carried_over_heads(sweep):
        sure.means.append({name: _mean(name, same, draws) for name in SHOWN})
    if all(row.get("recall") is not None for row in sweep):
        sweeps = list(by(sweep, ("head",)).values())
        points = [[quantities(row) for row in own] for own in sweeps]
        sure.matched = {target: _matched(sweeps, points, draws, target) for target in TARGETS}
    return sure


def draws_of(sweep: Sequence[Row], heads: Sequence[str]) -> dict[tuple[str, int], Draws]:
    """The resamples of each row that keeps samples."""
    found: dict[tuple[str, int], Draws] = {}
    for row, samples in _with_samples(sweep):
        head = heads.index(row["head"])
        found[_at(row)] = {
            name: one
            for name in SAMPLED
            if row.get(name) is not None and (one := _resampled(name, row, samples, head)) is not None
        }
    return found


def draws_at_recall(
    recall: np.ndarray, cost: np.ndarray, others: Mapping[str, np.ndarray], target: float
) -> dict[str, np.ndarray]:
    """`at_recall` of one head in each draw: (settings, draws) each, to (draws,) of cost and of each other.

    The frontier is found anew in each draw. Where a draw does not reach the target, its cost is infinite and
    the others are NaN.
    """
    order = np.argsort(cost, axis=0, kind="stable")
    sorted_recall = np.take_along_axis(recall, order, 0)
    reaches = sorted_recall >= target
    first = reaches.argmax(axis=0)  # of the settings that reach it, the cheapest
    cheaper = np.arange(len(recall))[:, None] < first
    before = np.where(cheaper, sorted_recall, -np.inf).argmax(axis=0)  # the frontier's last below the target
    draw = np.arange(recall.shape[1])
    low, high = sorted_recall[before, draw], sorted_recall[first, draw]
    weight = np.where(first == 0, 1.0, (target - low) / np.where(high > low, high - low, 1.0))
    made = {}
    for name, values in {COST: cost, **others}.items():
        ordered = np.take_along_axis(values, order, 0)
        start, end = ordered[before, draw], ordered[first, draw]
        if name in COSTS:
            at = np.exp((1 - weight) * np.log(start) + weight * np.log(end))
        else:
            at = (1 - weight) * start + weight * end
        made[name] = np.where(reaches.any(axis=0), at, np.inf if name == COST else np.nan)
    return made


def text(ends: Ends, digits: int) -> str:
    """The ends by query and by head; ∞ where more than a draw in forty does not get there."""
    parts = [
        f"{_number(one.low, digits)}–{_number(one.high, digits)} by {what}"
        for what, one in (("query", ends.by_query), ("head", ends.by_head))
        if one is not None
    ]
    return ", ".join(parts)


def fields(ends: Mapping[str, Ends]) -> Row:
    """What a point of a chart says of its intervals: ends to draw, and a text for its tooltip."""
    made: Row = {}
    for name in SHOWN:
        both = ends.get(name, Ends())
        shown = both.shown
        made[f"{name}_low"] = shown and shown.low
        made[f"{name}_high"] = shown and shown.high
        made[f"{name}_sure"] = text(both, 3) or None
    return made


def _matched(
    heads: Sequence[Sequence[Row]],
    points: Sequence[Sequence[Values]],
    draws: Mapping[Any, Draws],
    target: float,
) -> dict[str, Ends]:
    """At a recall, from each head's rows and their quantities; none where a head does not get there."""
    reached = [at_recall("", [sweep], target) for sweep in points]
    if any(one.reached == "no" for one in reached):
        return {}
    made = {}
    found = [_draws_of_head(sweep, draws, target) for sweep in heads] if draws else []
    for name in MATCHED:
        values = [one.values.get(name) for one in reached]
        known = [one[name] for one in found if name in one]
        drawn = _known(over_heads(known)) if len(known) == len(heads) else None
        made[name] = Ends(drawn, _over_heads(values))
    return made


def _draws_of_head(sweep: Sequence[Row], draws: Mapping[Any, Draws], target: float) -> Draws:
    own = [draws.get(_at(row), {}) for row in sweep]
    names = [name for name in ("recall", *MATCHED) if all(name in one for one in own)]
    if not {"recall", COST} <= set(names):
        return {}
    tokens = own[0]["recall"].tokens
    stacked = {name: np.array([one[name].draws for one in own]) for name in names}
    recall, cost = stacked.pop("recall"), stacked.pop(COST)
    at = draws_at_recall(recall, cost, stacked, target)
    return {name: Resampled(math.nan, values, tokens) for name, values in at.items()}


def _mean(name: str, rows: Sequence[Row], draws: Mapping[Any, Draws]) -> Ends:
    """Of the mean over heads of one column."""
    known = [one[name] for row in rows if name in (one := draws.get(_at(row), {}))]
    by_query = _known(over_heads(known)) if len(known) == len(rows) else None
    return Ends(by_query, _over_heads([row.get(name) for row in rows]))


def _over_heads(values: Sequence[float | None]) -> Interval | None:
    if len(values) < 2 or any(value is None for value in values):
        return None
    return _known(by_head(np.array(values, float)))


def _resampled(name: str, row: Row, samples: Row, head: int) -> Resampled | None:
    quantity = QUANTITIES[name]
    try:
        values = quantity.samples_of(row | samples)
        if values is None:
            return None
        return resampled(values, head, quantity.block_of(row), quantity.quantile)
    except ValueError:  # NaN, or not whole passes: a row without samples
        return None


def _with_samples(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Each row with its samples, file by file; a file that has gone has none."""
    columns = [QUANTITIES[name].samples for name in SAMPLED]
    by_file: dict[Path, list[Row]] = {}
    for row in rows:
        by_file.setdefault(row[FILE], []).append(row)
    for file, own in by_file.items():
        try:
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException):
            continue
        for row in own:
            found = {name: table[name][row[PLACE]].values for name in columns}
            yield row, {name: None if one is None else one.to_numpy() for name, one in found.items()}


def _known(interval: Interval) -> Interval | None:
    return None if math.isnan(interval.low) else interval


def _at(row: Row) -> tuple[str, int]:
    return row["head"], row["effort_rank"]


def _number(value: float, digits: int) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
