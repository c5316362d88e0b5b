"""Quality against cost: every index at every setting, its frontier, the oracle and the floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from ra_bench.report.compared import ORACLE
from ra_bench.report.figure import (
    Choice,
    Column,
    Figure,
    LeftOut,
    chart,
    index_colour,
    index_shape,
    key,
    tooltip,
    variants,
    wide,
)
from ra_bench.report.intervals import MOST_SAMPLED_ROWS
from ra_bench.report.material import Material
from ra_bench.report.rows import missing_columns

SECTION = "Quality against cost"
# Recall on a stretched axis: .9, .99 and .999 are as far apart as 0 and .9.
STRETCH_FLOOR = 1e-3
STRETCH_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.99, 1)


@dataclass(frozen=True)
class Axis:
    """A quantity that an axis can show."""

    field: str
    label: str
    title: str
    more_is_better: bool
    logarithmic: bool = False
    stretched: bool = False
    format: str = "~s"


QUALITIES = (
    Axis("recall", "recall@k", "recall@k (stretched towards 1) ↑", True, stretched=True),
    Axis("mass_total", "attention mass", "share of the attention mass ↑", True, format=".3~f"),
    Axis("output_error", "output error", "relative output error ↓ (lower is better)", False, format=".3~f"),
)
COSTS = (
    Axis("search_p50_us", "search time", "← search time, µs per query (median, log scale)", False, True),
    Axis("attend_p50_us", "attend time", "← attend time, µs per query (median, log scale)", False, True),
    Axis("queries_per_s", "throughput", "queries per second (log scale) →", True, True),
    Axis(
        "keys_share", "keys read", "← keys read, share of the index (log scale)", False, True, format=".2~%"
    ),
    Axis("attend_bytes", "bytes read", "← bytes read per query (log scale)", False, True, format="~s"),
)
TABLE = (
    Column("index", "index"),
    Column("effort", "effort"),
    Column("settings", "build settings"),
    Column("recall", "recall", 4),
    Column("mass_total", "mass", 4),
    Column("output_error", "output error", 3),
    Column("search_p50_us", "search p50 µs", 4),
    Column("attend_p50_us", "attend p50 µs", 4),
    Column("queries_per_s", "queries/s", 4),
    Column("keys_share", "keys read, share", 3),
    Column("attend_bytes", "bytes read", 4),
    Column("bytes_per_key", "bytes per key", 3),
    Column("heads", "heads"),
    Column("machine", "machine"),
)
# Both intervals of each quantity, as text.
INTERVALS = {
    one.field: Column(f"{one.field}_sure", f"{one.label}, 95 % interval") for one in (*QUALITIES, *COSTS)
}
HOW = (
    "Each mark is one search setting; a line joins the settings that nothing cheaper of the same index"
    " beats, paler marks are beaten. Up and left is better (for throughput, right; for the output error,"
    " down). The dashed line is the oracle, exact top-k: no index does better at this k; the vertical one is"
    " what its scan costs. Dotted lines are the floors: the last k keys (window) and random ones. Bars"
    " through the marks of a line are 95 % intervals: by query where the rows hold each query and each"
    " repeat, else by head. A pointer shows the settings; a click hides an index."
)
FEW_SAMPLES = f" With more than {MOST_SAMPLED_ROWS:,} rows the intervals are by head."


def figures(material: Material) -> list[Figure | LeftOut]:
    """The one chart, in every combination of a quality and a cost that was measured."""
    rows = [*material.points, *material.head_points]
    title = "Every setting of every index"
    missing = missing_columns(rows, [one.field for one in (*QUALITIES, *COSTS)])
    qualities = [one for one in QUALITIES if one.field not in missing]
    costs = [one for one in COSTS if one.field not in missing]
    if not qualities or not costs:
        return [LeftOut(title, f"no row of compare has a value in {', '.join(missing) or 'any column'}")]
    choices = (
        Choice("quality", "Quality", [(one.field, one.label) for one in qualities]),
        Choice("cost", "Cost", [(one.field, one.label) for one in costs]),
    )
    axes = {one.field: one for one in (*qualities, *costs)}
    charts = {
        key(quality, cost): pareto(axes[quality], axes[cost], material.indexes)
        for quality, cost in variants(*choices)
    }
    return [
        Figure(
            name="quality-cost",
            wide=True,
            section=SECTION,
            title=title,
            how=HOW + FEW_SAMPLES * (len(material.compare) > MOST_SAMPLED_ROWS),
            rows=rows,
            columns=(*TABLE, *INTERVALS.values()),
            filters=("data", "k", "split", "head", "machine"),
            charts=charts,
            choices=choices,
        )
    ]


def pareto(quality: Axis, cost: Axis, indexes: Sequence[str], detail: Sequence[str] = ("machine",)) -> Any:
    """The chart of one quality against one cost."""
    all_rows = (
        chart().transform_filter(f"isValid(datum.{quality.field})").transform_calculate(y=_height(quality))
    )
    points = _with_frontier(all_rows.transform_filter("datum.role === 'index'"), quality, cost, detail)
    hover = alt.selection_point(name="hover", fields=["index"], on="pointerover", clear="pointerout")
    x = _x(cost)
    y = _y(quality)
    marks = {
        "x": x,
        "y": y,
        "color": index_colour(indexes),
        "detail": [alt.Detail(f"{one}:N") for one in detail],
    }
    lines = (
        points.transform_filter("datum.frontier")
        .mark_line(strokeWidth=2, strokeJoin="round")
        .encode(
            **marks,
            order=alt.Order(f"{cost.field}:Q"),
            opacity=alt.when(hover).then(alt.value(0.9)).otherwise(alt.value(0.12)),
        )
    )
    bars = _bars(points, quality, cost, marks, hover)
    dots = (
        points.mark_point(filled=True, size=75, stroke="transparent", strokeWidth=6)
        .encode(
            **marks,
            shape=index_shape(indexes),
            tooltip=tooltip((*TABLE, INTERVALS[quality.field], INTERVALS[cost.field])),
            fillOpacity=alt.when("datum.frontier").then(alt.value(1)).otherwise(alt.value(0.3)),
            opacity=alt.when(hover).then(alt.value(1)).otherwise(alt.value(0.15)),
        )
        .add_params(hover)
    )
    return wide(alt.layer(*_references(all_rows, cost, x, y), lines, *bars, dots))


def _bars(
    points: alt.Chart, quality: Axis, cost: Axis, marks: dict[str, Any], hover: alt.Parameter
) -> list[alt.Chart]:
    """The intervals of quality and cost of the marks on a line; none where an end is not known."""
    faint = alt.when(hover).then(alt.value(0.75)).otherwise(alt.value(0.08))
    on_line = points.transform_filter("datum.frontier").transform_calculate(
        y_low=_height(quality, "_low"), y_high=_height(quality, "_high")
    )
    bars = []
    for axis, channels in (
        (quality, {"y": _y(quality, "y_low"), "y2": alt.Y2("y_high:Q")}),
        (cost, {"x": _x(cost, f"{cost.field}_low"), "x2": alt.X2(f"{cost.field}_high:Q")}),
    ):
        known = " && ".join(f"isValid(datum.{axis.field}_{end})" for end in ("low", "high"))
        above = f" && datum.{axis.field}_low > 0" * axis.logarithmic
        bars.append(
            on_line.transform_filter(known + above)
            .mark_rule(strokeWidth=1.6)
            .encode(**(marks | channels), opacity=faint)
        )
    return bars


def curves(quality: Axis, cost: Axis, indexes: Sequence[str], dash: alt.StrokeDash) -> Any:
    """Frontiers alone, one for each index and value of `dash`."""
    field = str(dash.to_dict()["field"])
    rows = chart().transform_filter(f"isValid(datum.{quality.field})").transform_calculate(y=_height(quality))
    points = _with_frontier(rows, quality, cost, ["machine", field]).transform_filter("datum.frontier")
    marks = {"x": _x(cost), "y": _y(quality), "color": index_colour(indexes), "tooltip": tooltip(TABLE)}
    lines = points.mark_line(strokeWidth=2.2).encode(
        **marks, strokeDash=dash, order=alt.Order(f"{cost.field}:Q")
    )
    return wide(
        alt.layer(
            lines,
            points.mark_point(filled=True, size=70).encode(
                **marks, shape=index_shape(indexes), detail=f"{field}:N"
            ),
        )
    )


def _references(all_rows: alt.Chart, cost: Axis, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The oracle's quality and cost, and the floors' quality."""
    oracle = all_rows.transform_filter("datum.role === 'oracle'")
    oracle = oracle.transform_aggregate(
        y="mean(y)", **{cost.field: f"mean({cost.field})"}, groupby=["index", "machine"]
    )
    floors = all_rows.transform_filter("datum.role === 'floor'").transform_aggregate(
        y="mean(y)", groupby=["index"]
    )
    window = floors.transform_filter("datum.index === 'window'")
    random = floors.transform_filter("datum.index !== 'window'")
    note: dict[str, Any] = {"style": "note", "dy": -7}
    return [
        oracle.mark_rule(style="reference", strokeDash=[6, 4]).encode(y=y),
        oracle.mark_rule(style="reference", strokeDash=[6, 4], opacity=0.6).encode(x=x),
        floors.mark_rule(style="reference", strokeDash=[1, 3], strokeWidth=1.4).encode(y=y),
        oracle.mark_text(**note, align="left").encode(
            x=alt.value(2), y=y, text=alt.value(f"oracle: exact top-k ({ORACLE})")
        ),
        oracle.mark_text(style="note", align="left", dx=5).encode(
            x=x, y=alt.value(14), text=alt.value("exact scan")
        ),
        window.mark_text(**note, align="left").encode(x=alt.value(2), y=y, text=alt.value("floor: window")),
        random.mark_text(**note, align="left").encode(x=alt.value(92), y=y, text=alt.value("floor: random")),
    ]


def _with_frontier(points: alt.Chart, quality: Axis, cost: Axis, detail: Sequence[str]) -> alt.Chart:
    """Marks the points that nothing cheaper of the same index equals."""
    order: Literal["ascending", "descending"] = "descending" if cost.more_is_better else "ascending"
    best, sign = ("max", ">=") if quality.more_is_better else ("min", "<=")
    return (
        points.transform_filter(f"isValid(datum.{cost.field}) && datum.{cost.field} > 0")
        .transform_window(
            best=f"{best}({quality.field})",
            sort=[alt.SortField(cost.field, order=order)],
            groupby=["index", *detail],
            frame=[None, 0],
        )
        .transform_calculate(frontier=f"datum.{quality.field} {sign} datum.best")
    )


def _height(quality: Axis, end: str = "") -> str:
    if quality.stretched:
        return f"-log(1 + {STRETCH_FLOOR} - datum.{quality.field}{end}) / LN10"
    return f"datum.{quality.field}{end}"


def _x(cost: Axis, field: str = "") -> alt.X:
    scale = (
        alt.Scale(type="log", nice=False, padding=14)
        if cost.logarithmic
        else alt.Scale(zero=False, nice=False)
    )
    return alt.X(
        f"{field or cost.field}:Q",
        scale=scale,
        title=cost.title,
        axis=alt.Axis(format=cost.format, tickCount=6, labelOverlap="greedy"),
    )


def _y(quality: Axis, field: str = "y") -> alt.Y:
    if quality.stretched:
        ticks = [-math.log10(1 + STRETCH_FLOOR - value) for value in STRETCH_TICKS]
        axis = alt.Axis(
            values=ticks, labelExpr=f"format(1 + {STRETCH_FLOOR} - pow(10, -datum.value), '.2~f')"
        )
        return alt.Y(
            f"{field}:Q",
            scale=alt.Scale(domain=[min(ticks) - 0.02, max(ticks)], nice=False),
            title=quality.title,
            axis=axis,
        )
    return alt.Y(
        f"{field}:Q",
        scale=alt.Scale(zero=False, padding=12),
        title=quality.title,
        axis=alt.Axis(format=quality.format),
    )
