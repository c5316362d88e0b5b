"""The table at matched quality: what each index costs at recall .90, .95 and .99, best first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ra_bench.matched import Matched, at_recall, sweep_points
from ra_bench.report.compared import SCOPE, by, mean
from ra_bench.report.figure import Choice, Column, Figure, LeftOut
from ra_bench.report.intervals import MATCHED, Sure, text
from ra_bench.report.material import Material
from ra_bench.results import Row
from ra_bench.table import COLUMNS, NOTHING, TARGETS, number


def figures(material: Material) -> list[Figure | LeftOut]:
    """The one table."""
    title = "At equal recall"
    rows = list(matched_rows(material.compare, material.intervals))
    if not rows:
        return [LeftOut(title, "no row of compare has a recall")]
    columns = [Column("index", "index")]
    for one in COLUMNS:
        columns.append(Column(one.quantity, one.title))
        if one.quantity in MATCHED:
            columns.append(Column(f"{one.quantity}_sure", f"{one.title}, 95 %"))
    columns += [
        Column("build_s", "build s"),
        Column("knn_s", "KNN s"),
        Column("bytes_per_key", "B/key"),
        Column("heads", "heads"),
    ]
    return [
        Figure(
            name="equal-recall",
            wide=True,
            section="Quality against cost",
            title=title,
            how="Each index interpolated along its own sweep to the recall, cheapest first. “≤”: even its"
            " cheapest setting is above the target; “max .43”: the most it reaches within three times the"
            " cost of a scan. flat is the exact scan. Beside a number stands its 95 % bootstrap"
            " interval; by query, each draw of tokens finds the frontier and the interpolation anew, and “∞”"
            " tells that more than one draw in forty does not reach the recall.",
            rows=rows,
            columns=columns,
            filters=("data", "k", "split", "machine"),
            choices=(
                Choice(
                    "recall", "Recall", [(f"{target:.2f}", f"{target:.2f}") for target in TARGETS], "rows"
                ),
            ),
            legend="none",
        )
    ]


def matched_rows(compare: Sequence[Row], intervals: Mapping[tuple, Sure]) -> Iterator[Row]:
    """One row an index and target, its cells as text, by search time; those that do not get there last."""
    searched = [row for row in compare if row["role"] != "floor" and row.get("recall") is not None]
    for scope, in_scope in by(searched, SCOPE).items():
        heads = len({row["head"] for row in in_scope})
        sweeps = {index: sweep for (index,), sweep in by(in_scope, ("index",)).items()}
        points = {index: sweep_points(sweep) for index, sweep in sweeps.items()}
        for target in TARGETS:
            matched = [at_recall(index, points[index], target) for index in sweeps]
            matched.sort(key=lambda one: (one.reached == "no", _time(one), -one.best_recall))
            for one in matched:
                sweep = sweeps[one.index]
                measured = len({row["head"] for row in sweep})
                ends = intervals[*scope, one.index].matched.get(target, {})
                yield dict(zip(SCOPE, scope, strict=True)) | {
                    "index": one.index,
                    "recall": f"{target:.2f}",
                    **_cells(one),
                    **{
                        f"{name}_sure": text(ends[name], 3) or None if name in ends else None
                        for name in MATCHED
                    },
                    **{
                        name: number(mean([row.get(name) for row in sweep]), 2)
                        for name in ("build_s", "knn_s")
                    },
                    "bytes_per_key": number(mean([row.get("bytes_per_key") for row in sweep]), 0),
                    "heads": f"{measured} of {heads}",
                }


def _time(one: Matched) -> float:
    return one.values.get("search_p50_us") or math.inf


def _cells(one: Matched) -> Row:
    if one.reached == "no":
        first, *others = (column.quantity for column in COLUMNS)
        return {first: f"max {one.best_recall:.3f}"} | dict.fromkeys(others, NOTHING)
    easily = one.reached == "easily"
    return {column.quantity: column.cell(one.values, is_bound=easily) for column in COLUMNS}
