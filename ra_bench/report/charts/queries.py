"""Queries and geometry: what learning from queries gains, a random split flatters, and the lift repairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from ra_bench.matched import at_recall, sweep_points
from ra_bench.report.charts.headlines import cheapest
from ra_bench.report.charts.quality import COSTS, QUALITIES, TABLE, Axis, curves
from ra_bench.report.compared import SCOPE, by, mean
from ra_bench.report.figure import (
    Choice,
    Column,
    Figure,
    LeftOut,
    chart,
    index_colour,
    key,
    tooltip,
    variants,
    wide,
)
from ra_bench.report.material import Material
from ra_bench.results import Row
from ra_bench.table import TARGETS

SECTION = "Queries and geometry"
GAINS = (("search_p50_us", "search time"), ("keys_share", "keys read"))
ROW_HEIGHT = 26
DISTANCES = ("difficulty_mahalanobis_queries", "difficulty_mahalanobis_keys")


def figures(material: Material) -> list[Figure | LeftOut]:
    """Gain, leakage, lift, and the out-of-distribution picture."""
    return [_gain(material), _leakage(material), _lift(material), _distances(material)]


def _gain(material: Material) -> Figure | LeftOut:
    title = "What learning from queries gains"
    rows = list(gain_rows(material.compare))
    if not rows:
        return LeftOut(
            title, "needs, at one recall, an index with learn_queries > 0 and one without, beside the oracle"
        )
    columns = (
        *(Column("head", "head"), Column("recall", "at recall"), Column("measure", "cost")),
        *(Column("ratio", "learning / other", 3), Column("learning", "cheapest that learns")),
        Column("other", "cheapest other"),
    )
    choices = (
        Choice(
            "recall", "At recall", [(text, text) for text in sorted({row["recall"] for row in rows})], "rows"
        ),
        Choice(
            "measure",
            "Cost",
            [(label, label) for _, label in GAINS if any(row["measure"] == label for row in rows)],
            "rows",
        ),
    )
    base = chart().encode(y=alt.Y("head:N", title=None, sort=material.heads), tooltip=tooltip(columns))
    x = alt.X(
        "ratio:Q",
        scale=alt.Scale(type="log", padding=20, nice=False),
        title="cheapest that learns from queries / cheapest other (log scale)",
        axis=alt.Axis(format=".2~f", tickCount=6),
    )
    one = (
        chart()
        .transform_aggregate(count="count()")
        .transform_calculate(one="1")
        .mark_rule(style="reference", strokeDash=[6, 4])
        .encode(x="one:Q")
    )
    dots = base.mark_point(filled=True, size=110).encode(
        x=x,
        color=alt.condition("datum.ratio < 1", alt.value("#009e73"), alt.value("#d55e00")),
        shape=alt.condition("datum.ratio < 1", alt.value("triangle-down"), alt.value("triangle-up")),
    )
    return Figure(
        name="query-aware-gain",
        section=SECTION,
        title=title,
        how="One mark a head. Left of the line (▼) an index that saw prefill queries reaches the recall more"
        " cheaply than any that did not; at 0.5 for half the cost. The exact scan is no contestant.",
        rows=rows,
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts={"": wide(alt.layer(one, dots), alt.Step(ROW_HEIGHT))},
        choices=choices,
        legend="none",
    )


def gain_rows(compare: Sequence[Row]) -> Iterator[Row]:
    """On each head at each recall: the cheapest index that learns over the cheapest that does not."""
    contestants = [row for row in compare if row["role"] == "index" and row.get("recall") is not None]
    for scope, rows in by(contestants, (*SCOPE, "head")).items():
        sweeps = {
            index: (sweep[0]["learns"], sweep_points(sweep))
            for (index,), sweep in by(rows, ("index",)).items()
        }
        for target in TARGETS:
            reached = [
                (learns, at_recall(index, points, target)) for index, (learns, points) in sweeps.items()
            ]
            for field, label in GAINS:
                mine = cheapest([one for learns, one in reached if learns], field)
                other = cheapest([one for learns, one in reached if not learns], field)
                if mine and other:
                    yield dict(zip((*SCOPE, "head"), scope, strict=True)) | {
                        "recall": f"{target:.2f}",
                        "measure": label,
                        "ratio": mine[1] / other[1],
                        "learning": mine[0],
                        "other": other[0],
                    }


def _leakage(material: Material) -> Figure | LeftOut:
    title = "What a random split flatters"
    rows = list(leakage_rows(material.compare))
    if not rows:
        return LeftOut(
            title, "needs the same data with --split honest and with --split random, in two result folders"
        )
    columns = (
        *(
            Column("index", "index"),
            Column("honest", "recall, honest", 4),
            Column("random", "recall, random split", 4),
        ),
        *(Column("flattered", "flattered by", 3), Column("settings", "settings and heads")),
    )
    y = alt.Y("index:N", title=None, sort=alt.EncodingSortField("flattered", order="descending"))
    base = chart().encode(y=y, tooltip=tooltip(columns))
    scale = alt.Scale(zero=False, padding=16, nice=False)
    axis_title = "mean recall@k over the same settings: ○ honest split, ● random split"
    rule = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("honest:Q", scale=scale, title=axis_title), x2="random:Q"
    )
    hollow = base.mark_point(filled=False, size=90, strokeWidth=2).encode(
        x="honest:Q", color=index_colour(material.indexes, legend=None)
    )
    full = base.mark_point(filled=True, size=100).encode(
        x="random:Q", color=index_colour(material.indexes, legend=None)
    )
    return Figure(
        name="leakage",
        section=SECTION,
        title=title,
        how="A random split lets an index learn from neighbours of its test queries. A long line is a method"
        " whose recall a random split overstates; an index that learns from no query should hardly move.",
        rows=rows,
        columns=columns,
        filters=("data", "k", "machine"),
        charts={"": wide(alt.layer(rule, hollow, full), alt.Step(ROW_HEIGHT))},
        legend="none",
    )


def leakage_rows(compare: Sequence[Row]) -> Iterator[Row]:
    """Mean recall of each index over the settings and heads that both splits have measured."""
    contestants = [row for row in compare if row["role"] == "index" and row.get("recall") is not None]
    for (data, machine, k, index), rows in by(contestants, ("data", "machine", "k", "spec")).items():
        splits: Mapping[str, dict[Any, float]] = {
            name: {(row["head"], row["effort_json"]): row["recall"] for row in rows if row["split"] == name}
            for name in ("honest", "random")
        }
        both = [place for place in splits["honest"] if place in splits["random"]]
        honest, random = (mean([splits[name][place] for place in both]) for name in ("honest", "random"))
        if honest is not None and random is not None:
            yield {
                "data": data,
                "machine": machine,
                "k": k,
                "index": index,
                "honest": honest,
                "random": random,
                "flattered": random - honest,
                "settings": str(len(both)),
            }


def _lift(material: Material) -> Figure | LeftOut:
    title = "Raw inner product against lifted keys"
    points = [row for row in material.points if row["role"] == "index"]
    geometries = {base: {row["transform"] for row in rows} for (base,), rows in by(points, ("base",)).items()}
    twins = [base for base, transforms in geometries.items() if len(transforms) > 1]
    rows = [row | {"index": row["base"]} for row in points if row["base"] in twins]
    if not rows:
        return LeftOut(
            title, "needs an index with and without a transform, as --indexes hnsw (its @lift comes along)"
        )
    known = {one.field for one in (*QUALITIES, *COSTS) if any(row.get(one.field) is not None for row in rows)}
    choices = (
        Choice("quality", "Quality", [(one.field, one.label) for one in QUALITIES if one.field in known]),
        Choice("cost", "Cost", [(one.field, one.label) for one in COSTS if one.field in known]),
    )
    axes = {one.field: one for one in (*QUALITIES, *COSTS)}
    charts = {key(q, c): _geometries(axes[q], axes[c], material.indexes) for q, c in variants(*choices)}
    return Figure(
        name="geometry",
        section=SECTION,
        title=title,
        how="Dashed: the index on raw inner product, whose pruning assumes distances; solid: on keys lifted"
        " to a sphere, with the same order of inner products. The gap is geometry's share of a graph's"
        " failure.",
        rows=rows,
        columns=TABLE,
        filters=("data", "k", "split", "machine"),
        charts=charts,
        choices=choices,
    )


def _geometries(quality: Axis, cost: Axis, indexes: Sequence[str]) -> Any:
    dash = alt.StrokeDash(
        "transform:N",
        scale=alt.Scale(domain=["none", "lift", "normalize"], range=[[5, 4], [1, 0], [2, 2]]),
        title=None,
    )
    return curves(quality, cost, indexes, dash)


def _distances(material: Material) -> Figure | LeftOut:
    title = "How far queries lie from the keys"
    rows = [
        row
        for row in material.compare
        if row["role"] == "oracle" and all(row.get(name) is not None for name in DISTANCES)
    ]
    if not rows:
        return LeftOut(
            title, f"the rows lack the columns {' and '.join(DISTANCES)}, which the data tools store"
        )
    melted = [
        {name: row[name] for name in (*SCOPE, "head", "layer")} | {"of": label, "distance": row[field]}
        for row in rows
        for field, label in zip(DISTANCES, ("queries", "keys"), strict=True)
    ]
    columns = (Column("head", "head"), Column("of", "of"), Column("distance", "Mahalanobis distance", 4))
    base = chart().encode(y=alt.Y("head:N", title=None, sort=material.heads), tooltip=tooltip(columns))
    x = alt.X(
        "distance:Q",
        title="Mahalanobis distance to the keys' distribution",
        scale=alt.Scale(zero=False, padding=16),
    )
    marks = base.mark_point(filled=True, size=90).encode(
        x=x, color=alt.Color("of:N", title=None), shape=alt.Shape("of:N", title=None)
    )
    line = base.mark_line(strokeWidth=2, style="reference").encode(x=x, detail="head:N")
    return Figure(
        name="distances",
        section=SECTION,
        title=title,
        how="Where queries lie further from the keys' distribution than keys do, they are out of"
        " distribution, and an index that is built from keys alone misjudges them.",
        rows=melted,
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts={"": wide(alt.layer(line, marks), alt.Step(ROW_HEIGHT))},
        legend="own",
    )
