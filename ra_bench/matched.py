"""Costs at equal quality: each index's effort sweep, interpolated to a recall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ra_bench.results import Row

# Interpolated along the sweep: costs in their logarithm, qualities as they are.
COSTS = ("search_p50_us", "attend_p50_us", "queries_per_s", "keys_share", "search_bytes")
QUALITIES = ("mass_total", "output_error", "recall_p05", "worst_head_recall")


@dataclass(frozen=True)
class Point:
    """One effort setting of one index, averaged over heads."""

    recall: float
    values: dict[str, float | None]


@dataclass(frozen=True)
class Matched:
    """An index at a recall. `reached` is "yes", "easily" where its cheapest setting is above it, or "no"."""

    index: str
    target: float
    reached: str
    values: dict[str, float | None]
    best_recall: float


def sweep_points(rows: Sequence[Row]) -> list[Point]:
    """The settings of one index at one k, cheap to dear, each averaged over the heads that have it.

    A setting that only some heads needed (a sweep ends once it finds everything) counts with the last
    setting of the heads that ended earlier, so that all points speak of the same heads.
    """
    by_head: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        head = (row["document"], row["layer"], row["kv_head"])
        by_head.setdefault(head, {})[row["effort_rank"]] = row
    ranks = sorted({rank for sweep in by_head.values() for rank in sweep})
    points = []
    for rank in ranks:
        reached = [sweep.get(rank) or sweep[max(r for r in sweep)] for sweep in by_head.values()]
        shared = [_with_shares(row) for row in reached]
        values = {name: _mean([row.get(name) for row in shared]) for name in (*COSTS, *QUALITIES)}
        recalls = [row["recall"] for row in reached]
        values["worst_head_recall"] = min(recalls)
        points.append(Point(float(np.mean(recalls)), values))
    return points


def at_recall(index: str, points: Sequence[Point], target: float) -> Matched:
    """The cheapest way to `target`, interpolated between the two frontier settings around it.

    The frontier is the settings that nothing cheaper equals in recall, so that a sweep of several knobs and
    a sweep of one are treated alike.
    """
    best = max((point.recall for point in points), default=math.nan)
    before: Point | None = None
    for point in _frontier(points):
        if point.recall >= target:
            if before is None:
                return Matched(index, target, "easily", point.values, best)
            weight = (target - before.recall) / (point.recall - before.recall)
            low, high = before.values, point.values
            values = {name: _between(name, low[name], high[name], weight) for name in high}
            return Matched(index, target, "yes", values, best)
        before = point
    return Matched(index, target, "no", {}, best)


def _frontier(points: Sequence[Point]) -> list[Point]:
    """Settings by search time, each with more recall than any cheaper one."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: point.values["search_p50_us"] or 0.0):
        if not kept or point.recall > kept[-1].recall:
            kept.append(point)
    return kept


def _with_shares(row: Row) -> Row:
    read, n = row.get("keys_read"), row.get("n")
    return row | {"keys_share": None if read is None or not n else read / n}


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else None


def _between(name: str, low: float | None, high: float | None, weight: float) -> float | None:
    if low is None or high is None:
        return None
    if name in COSTS and low > 0 and high > 0:
        return math.exp((1 - weight) * math.log(low) + weight * math.log(high))
    return (1 - weight) * low + weight * high
