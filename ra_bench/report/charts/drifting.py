"""What inserted tokens do to an index: whole beside grown, and against the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from ra_bench.report.drifted import points
from ra_bench.report.figure import (
    Choice,
    Column,
    Figure,
    LeftOut,
    chart,
    index_colour,
    index_shape,
    tooltip,
    wide,
)
from ra_bench.report.material import Material
from ra_bench.results import Row

SECTION = "Insertion"
BAR = 30
COLUMNS = (
    *(Column("index", "index"), Column("inserted", "tokens inserted", 6), Column("effort", "effort of both")),
    *(Column("recall_whole", "recall, whole", 4), Column("recall_grown", "recall, grown", 4)),
    *(Column("change", "grown less whole", 3), Column("change_sure", "95 % interval by query")),
    *(Column("share_whole", "keys read, whole", 3), Column("share_grown", "keys read, grown", 3)),
    *(Column("insert_us_per_token", "µs per inserted token", 3), Column("build_whole_s", "build s", 3)),
    *(
        Column("target", "recall asked for", 3),
        Column("heads", "heads"),
        Column("settings", "build settings"),
    ),
)
# Of the dumbbells: field of whole, field of grown, label, title of the axis, its format.
PAIRS = (
    ("recall", "recall", "recall@100: whole (open) → grown (filled)", ".3~f"),
    ("share", "keys read", "keys read, share of the index: whole (open) → grown (filled)", ".2~%"),
)
COST = ("insert_us_per_token", "µs per token", "µs per inserted token, one thread (log scale)")
LINES = (
    ("change", "recall", "recall of grown less that of whole", "+.3~f"),
    ("more_read", "keys read", "keys read, grown over whole, less 1", "+.0%"),
    (*COST[:2], COST[2], "~s"),
)
FILTERS = ("data", "head", "machine")


def figures(material: Material) -> list[Figure | LeftOut]:
    """Whole beside grown, and, where several numbers of tokens were inserted, drift against them."""
    if not material.drift:
        return [LeftOut("Insert drift", "there are no rows of ra-bench drift")]
    rows = points(material.drift)
    for row in rows:
        whole, grown = row["share_whole"], row["share_grown"]
        row["more_read"] = None if not whole or grown is None else grown / whole - 1
        row["tokens"] = f"{row['inserted']:,}"
    counts = sorted({row["inserted"] for row in rows})
    return [_pairs(rows, counts, material.indexes), _lines(rows, counts, material.indexes)]


def _pairs(rows: Sequence[Row], counts: Sequence[int], indexes: Sequence[str]) -> Figure:
    shown = [one for one in PAIRS if any(row[f"{one[0]}_grown"] is not None for row in rows)]
    charts = {field: _dumbbell(field, title, form, indexes) for field, _, title, form in shown}
    charts[COST[0]] = _dots(indexes)
    tokens = Choice(
        "tokens", "Tokens inserted", [(f"{n:,}", f"{n:,}") for n in counts], "rows", f"{counts[-1]:,}"
    )
    quantity = Choice("quantity", "Quantity", [*((one[0], one[1]) for one in shown), COST[:2]])
    return Figure(
        name="insert-drift",
        section=SECTION,
        title="Insert drift",
        how="Each index built whole (open mark) beside itself grown by inserts (filled mark), same keys and"
        " one effort: the cheapest with which the whole one reaches the recall asked for. A short line is"
        " little drift; to the left the grown one is worse (for keys read, cheaper).",
        rows=rows,
        columns=COLUMNS,
        filters=FILTERS,
        charts=charts,
        choices=(quantity, tokens),
        verbs=("drift",),
    )


def _lines(rows: Sequence[Row], counts: Sequence[int], indexes: Sequence[str]) -> Figure | LeftOut:
    title = "Drift against inserted tokens"
    if len(counts) < 2:
        return LeftOut(title, "needs several numbers of tokens, as --tokens 1024,4096,16384")
    shown = [one for one in LINES if any(row[one[0]] is not None for row in rows)]
    return Figure(
        name="drift-tokens",
        section=SECTION,
        title=title,
        how="One index grows from left to right; at each number of tokens it stands beside one that was built"
        " whole on the same keys. Bars are 95 % bootstrap intervals by query, whole and grown on the same"
        " queries. µs are those of the tokens since the mark before.",
        rows=rows,
        columns=COLUMNS,
        filters=FILTERS,
        charts={field: _line(field, title, form, indexes) for field, _, title, form in shown},
        choices=(Choice("quantity", "Quantity", [one[:2] for one in shown]),),
        verbs=("drift",),
    )


def _rows_of(indexes: Sequence[str], field: str) -> tuple[alt.Y, alt.Color]:
    y = alt.Y(
        "index:N",
        title=None,
        sort=alt.EncodingSortField(field, op="max", order="descending"),
        axis=alt.Axis(labelLimit=130, grid=True),
    )
    return y, index_colour(indexes)


def _dumbbell(field: str, title: str, form: str, indexes: Sequence[str]) -> Any:
    whole, grown = f"{field}_whole", f"{field}_grown"
    y, colour = _rows_of(indexes, grown)
    known = chart().transform_filter(f"isValid(datum.{whole}) && isValid(datum.{grown})")
    axis, scale = alt.Axis(format=form, tickCount=6), alt.Scale(zero=False, padding=14)
    at_whole, at_grown = (alt.X(f"{one}:Q", title=title, axis=axis, scale=scale) for one in (whole, grown))
    marks = {"y": y, "color": colour, "tooltip": tooltip(COLUMNS)}
    line = known.mark_rule(strokeWidth=3, opacity=0.5).encode(**marks, x=at_whole, x2=f"{grown}:Q")
    start = known.mark_point(filled=False, size=110, strokeWidth=2).encode(
        **marks, x=at_whole, shape=index_shape(indexes)
    )
    end = known.mark_point(filled=True, size=110).encode(**marks, x=at_grown, shape=index_shape(indexes))
    return wide(alt.layer(line, end, start), alt.Step(BAR))


def _dots(indexes: Sequence[str]) -> Any:
    field, _, title = COST
    y, colour = _rows_of(indexes, field)
    x = alt.X(
        f"{field}:Q",
        title=title,
        axis=alt.Axis(format="~s", tickCount=6),
        scale=alt.Scale(type="log", padding=16, nice=False),
    )
    dots = chart().transform_filter(f"datum.{field} > 0").mark_point(filled=True, size=110)
    marks = {"x": x, "y": y, "color": colour, "shape": index_shape(indexes), "tooltip": tooltip(COLUMNS)}
    return wide(dots.encode(**marks), alt.Step(BAR))


def _line(field: str, title: str, form: str, indexes: Sequence[str]) -> Any:
    logarithmic = field == COST[0]
    known = chart().transform_filter(f"isValid(datum.{field})" + f" && datum.{field} > 0" * logarithmic)
    scale = alt.Scale(type="log", nice=False, padding=10) if logarithmic else alt.Scale(padding=10)
    axis = alt.Axis(format=form, tickCount=6)
    marks = {
        "x": alt.X(
            "inserted:Q",
            title="inserted tokens (log scale)",
            scale=alt.Scale(type="log", nice=False, padding=16),
            axis=alt.Axis(format="~s", tickCount=6),
        ),
        "color": index_colour(indexes),
        "detail": alt.Detail("target:N"),
        "tooltip": tooltip(COLUMNS),
    }
    y = alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)
    layers = [
        known.mark_line(strokeWidth=2).encode(**marks, y=y),
        known.mark_point(filled=True, size=80).encode(**marks, y=y, shape=index_shape(indexes)),
    ]
    if field == "change":
        low = alt.Y("change_low:Q", title=title, scale=scale, axis=axis)
        certain = known.transform_filter("isValid(datum.change_low)")
        layers.insert(
            0, certain.mark_rule(strokeWidth=1.6, opacity=0.7).encode(**marks, y=low, y2="change_high:Q")
        )
        layers.insert(0, known.mark_rule(style="reference", strokeDash=[6, 4]).encode(y=alt.datum(0)))
    return wide(alt.layer(*layers))
