"""Offline against online: an index's quality in `compare` against what it did to the answers in `decode`.

An index of `decode` is joined with the point of `compare` of the same model, spec and k that has the same
search settings; where that was not measured, with the one that reads the nearest share of keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from scipy.stats import spearmanr

from ra_bench.report.compared import by, points_over_heads
from ra_bench.report.decoded import ALL_TASKS
from ra_bench.results import Row

OFFLINE = ("mass_total", "output_error", "recall")
ONLINE = ("score", "kl")
LEAST_POINTS = 3  # a rank correlation of two points is always 1 or -1


def pairs(compare: Sequence[Row], decoded: Sequence[Row]) -> list[Row]:
    """One row an index and k that both measured on the same model, with the rank correlation of each pair."""
    offline = by(
        (row for row in _points_of_models(compare) if row["role"] != "floor" or row["spec"] == "window"),
        ("model", "spec", "k"),
    )
    joined = []
    for online in decoded:
        if online["task"] != ALL_TASKS:
            continue
        candidates = offline.get((online["model"], online["index"], online["k"]), [])
        if candidates:
            point, same = _nearest(candidates, online)
            joined.append(_joined(point, online, same))
    for group in by(joined, ("model", "context", "machine", "data")).values():
        _correlate(group)
    return joined


def _points_of_models(compare: Sequence[Row]) -> Iterable[Row]:
    honest = [row for row in compare if row["split"] == "honest"]
    for same in by(honest, ("model",)).values():
        yield from points_over_heads(same)


def _nearest(candidates: Sequence[Row], online: Row) -> tuple[Row, bool]:
    wanted = _effort(online["effort_json"])
    for point in candidates:
        if _effort(point["effort_json"]) == wanted:
            return point, True
    share = online.get("keys_read_share")
    known = [point for point in candidates if point["keys_share"] is not None]
    if share is None or not known:
        return candidates[len(candidates) // 2], False
    return min(known, key=lambda point: abs(point["keys_share"] - share)), False


def _joined(point: Row, online: Row, same: bool) -> Row:
    names = (
        "model",
        "context",
        "machine",
        "index",
        "run",
        "k",
        "effort",
        "samples",
        "score",
        "kl",
        "tpot_ms",
    )
    return (
        {name: online[name] for name in names}
        | {name: point[name] for name in OFFLINE}
        | {"data": point["data"], "offline_effort": point["effort"], "heads": point["heads"]}
        | {"matched": "same search settings" if same else "nearest share of keys read"}
    )


def _correlate(group: Sequence[Row]) -> None:
    """Writes Spearman's rank correlation of each pair of quantities into the rows, as text."""
    for offline in OFFLINE:
        for online in ONLINE:
            both = [
                (row[offline], row[online])
                for row in group
                if row[offline] is not None and row[online] is not None
            ]
            text = f"ρ: needs {LEAST_POINTS} indexes"
            if len(both) >= LEAST_POINTS:
                xs, ys = zip(*both, strict=True)
                varied = len(set(xs)) > 1 and len(set(ys)) > 1
                text = (
                    f"ρ = {spearmanr(xs, ys).statistic:+.2f} ({len(both)} indexes)"
                    if varied
                    else "ρ: all equal"
                )
            for row in group:
                row[f"rank_{offline}_{online}"] = text


def _effort(text: str | None) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text
