"""Indexes at equal recall or at an equal budget: each head's sweep interpolated, then averaged over heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_bench.results import Row

# Interpolated along the sweep: costs in their logarithm, qualities as they are.
COSTS = (
    *("search_p50_us", "attend_p50_us", "queries_per_s", "keys_share", "search_bytes", "attend_bytes"),
    *("bytes_share", "attended", "floor_us", "times_floor", "observe_p50_us"),
)
QUALITIES = ("mass_total", "output_error", "output_error_p95", "recall_p05", "oracle_error")
# What the worst head of several has, beside the mean.
WORST = ("search_p50_us", "output_error")

Values = dict[str, float | None]
HeadKey = tuple[Any, ...]


@dataclass(frozen=True)
class Matched:
    """An index at a recall or a budget, averaged over heads.

    `reached` is "yes"; "easily" where a head's cheapest setting is above the recall, or its dearest below the
    budget; "no" where a head does not get there, and `nearest` says how near the worst one comes; or "hidden"
    where the index does not tell the matched quantity. `values` are empty in the last two cases.
    """

    index: str
    target: float
    reached: str
    values: Values
    nearest: float

    @property
    def best_recall(self) -> float:
        """How near to a recall that is not reached the worst head comes."""
        return self.nearest


def sweep_points(rows: Sequence[Row]) -> list[list[Values]]:
    """The settings of one index, as quantities, head by head."""
    return [[quantities(row) for row in sweep] for sweep in by_head(rows).values()]


def by_head(rows: Iterable[Row]) -> dict[HeadKey, list[Row]]:
    """Rows of each document, layer and KV head."""
    heads: dict[HeadKey, list[Row]] = {}
    for row in rows:
        heads.setdefault((row["document"], row["layer"], row["kv_head"]), []).append(row)
    return heads


def quantities(row: Row) -> Values:
    """What a row tells of its setting, and its reads as shares of the keys, and of keys and values."""
    return {name: row.get(name) for name in ("recall", *COSTS, *QUALITIES)} | {
        "keys_share": _share(row.get("keys_read"), row["n"]),
        "bytes_share": _share(row.get("attend_bytes"), row["n"] * token_bytes(row)),
    }


def token_bytes(row: Row) -> int:
    """Bytes of a key and its value."""
    return 2 * int(row["d"]) * np.dtype(row["key_type"]).itemsize


def at_recall(index: str, sweeps: Sequence[Sequence[Values]], target: float) -> Matched:
    """The cheapest way to `target`, interpolated between the two frontier settings around it in each head.

    The frontier is the settings that nothing cheaper equals in recall, so that a sweep of several knobs and
    a sweep of one are treated alike.
    """
    return _over_heads(index, target, min, [_recall_of_head(sweep, target) for sweep in sweeps])


def at_budget(index: str, sweeps: Sequence[Sequence[Values]], quantity: str, target: float) -> Matched:
    """The least output error for `target` of a cost, interpolated on the frontier of each head.

    The frontier is the settings that nothing of less cost equals in output error.
    """
    return _over_heads(index, target, max, [_budget_of_head(sweep, quantity, target) for sweep in sweeps])


def mean_of(heads: Sequence[Values]) -> Values:
    """Means over heads, and the largest of some quantities; None where a head does not have one."""
    names = heads[0]
    known = {name: [head[name] for head in heads] for name in names}
    means = {name: _reduced(np.mean, values) for name, values in known.items()}
    return means | {f"worst_{name}": _reduced(np.max, known[name]) for name in WORST if name in known}


@dataclass(frozen=True)
class _AtHead:
    reached: str
    values: Values
    nearest: float = math.nan


def _over_heads(
    index: str, target: float, worst: Callable[[list[float]], float], heads: Sequence[_AtHead]
) -> Matched:
    for state in ("hidden", "no"):
        if any(head.reached == state for head in heads):
            missing = [head.nearest for head in heads if head.reached == "no"]
            return Matched(index, target, state, {}, worst(missing) if missing else math.nan)
    reached = "easily" if any(head.reached == "easily" for head in heads) else "yes"
    return Matched(index, target, reached, mean_of([head.values for head in heads]), target)


def _recall_of_head(sweep: Sequence[Values], target: float) -> _AtHead:
    frontier: list[Values] = []
    for point in sorted(sweep, key=lambda point: point["search_p50_us"] or 0.0):
        if not frontier or _known(point, "recall") > _known(frontier[-1], "recall"):
            frontier.append(point)
    before: Values | None = None
    for point in frontier:
        recall = _known(point, "recall")
        if recall >= target:
            if before is None:
                return _AtHead("easily", point)
            low = _known(before, "recall")
            return _AtHead("yes", _between(before, point, (target - low) / (recall - low)))
        before = point
    return _AtHead("no", {}, _known(frontier[-1], "recall"))


def _budget_of_head(sweep: Sequence[Values], quantity: str, target: float) -> _AtHead:
    points = [point for point in sweep if point[quantity] is not None]
    if not points:
        return _AtHead("hidden", {})
    frontier: list[Values] = []
    for point in sorted(points, key=lambda point: (_known(point, quantity), _known(point, "output_error"))):
        if not frontier or _known(point, "output_error") < _known(frontier[-1], "output_error"):
            frontier.append(point)
    costs = [_known(point, quantity) for point in frontier]
    if target < costs[0]:
        return _AtHead("no", {}, costs[0])
    place = int(np.searchsorted(costs, target, side="right"))
    if place == len(costs):
        return _AtHead("yes" if costs[-1] == target else "easily", frontier[-1])
    low, high = costs[place - 1], costs[place]
    weight = math.log(target / low) / math.log(high / low) if low > 0 else (target - low) / (high - low)
    return _AtHead("yes", _between(frontier[place - 1], frontier[place], weight))


def _between(low: Mapping[str, float | None], high: Mapping[str, float | None], weight: float) -> Values:
    return {name: _interpolated(name, low[name], high[name], weight) for name in high}


def _interpolated(name: str, low: float | None, high: float | None, weight: float) -> float | None:
    if low is None or high is None:
        return None
    if name in COSTS and low > 0 and high > 0:
        return math.exp((1 - weight) * math.log(low) + weight * math.log(high))
    return (1 - weight) * low + weight * high


def _known(point: Mapping[str, float | None], name: str) -> float:
    value = point[name]
    return math.nan if value is None else value


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None else part / whole


def _reduced(how: Callable[[Any], Any], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(how(known)) if known and len(known) == len(values) else None
