"""The few sentences that a reader in a hurry takes home, for each scope."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ra_bench.matched import Matched, at_recall, sweep_points
from ra_bench.report.charts.heads import KEYS_BUDGETS
from ra_bench.report.compared import MEAN, SCOPE, by
from ra_bench.report.material import Material
from ra_bench.results import Row

TARGET = 0.95
BUDGET = KEYS_BUDGETS[1]


def headlines(material: Material) -> list[Row]:
    """Rows with `title`, `value` and `detail` for each scope of `compare`."""
    searched = [row for row in material.compare if row.get("recall") is not None]
    points = by(material.points, SCOPE)
    rows = []
    for scope, in_scope in by(searched, SCOPE).items():
        sweeps = by(in_scope, ("index", "role"))
        reached = {
            index: at_recall(index, sweep_points(sweep), TARGET)
            for (index, role), sweep in sweeps.items()
            if role != "floor"
        }
        oracles = [index for index, role in sweeps if role == "oracle"]
        scan = reached[oracles[0]] if oracles else None
        contestants = [one for index, one in reached.items() if index not in oracles and one.reached != "no"]
        facts = dict(zip(SCOPE, scope, strict=True))
        made = [*_cheapest(contestants, scan), *_within_budget(points.get(scope, []))]
        rows += [facts | {"title": title, "value": value, "detail": detail} for title, value, detail in made]
    return rows


def _cheapest(contestants: Sequence[Matched], scan: Matched | None) -> Iterator[tuple[str, str, str]]:
    """Who is fastest and who reads least at the target recall."""
    scan_us = scan.values.get("search_p50_us") if scan else None
    if fastest := cheapest(contestants, "search_p50_us"):
        index, cost_us = fastest
        factor = f", {scan_us / cost_us:.1f} times as fast as an exact scan" if scan_us else ""
        yield f"Fastest at recall {TARGET}", index, f"{cost_us:,.1f} µs per query{factor}"
    if leanest := cheapest(contestants, "keys_share"):
        yield f"Fewest keys read at recall {TARGET}", leanest[0], f"{leanest[1]:.1%} of the index"


def cheapest(matched: Sequence[Matched], quantity: str) -> tuple[str, float] | None:
    """The index with the least of a quantity, and how much; None where none has it."""
    known = [(value, one.index) for one in matched if (value := one.values.get(quantity))]
    if not known:
        return None
    value, index = min(known)
    return index, value


def _within_budget(points: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Whose output is closest within a budget of keys, and what the oracle and the floor leave."""
    means = [point for point in points if point["head"] == MEAN and point["output_error"] is not None]
    cheap: list[Any] = [
        p for p in means if p["role"] == "index" and p["keys_share"] is not None and p["keys_share"] <= BUDGET
    ]
    if cheap:
        best = min(cheap, key=lambda point: point["output_error"])
        yield (
            f"Closest output from {BUDGET:.0%} of the keys",
            best["index"],
            f"output error {best['output_error']:.3f}",
        )
    oracle = [point for point in means if point["role"] == "oracle"]
    window = [point for point in means if point["spec"] == "window"]
    if oracle:
        floor = f"; a longer window leaves {window[0]['output_error']:.3f}" if window else ""
        yield (
            "What exact top-k leaves",
            f"{oracle[0]['output_error']:.3f}",
            f"output error of the oracle{floor}",
        )
