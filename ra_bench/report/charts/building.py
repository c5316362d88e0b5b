"""What an index costs before its first query: build, memory, and the output length from which it pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt

from ra_bench.matched import at_recall, sweep_points
from ra_bench.report.compared import ORACLE, SCOPE, by, mean
from ra_bench.report.figure import (
    Choice,
    Column,
    Figure,
    LeftOut,
    chart,
    index_colour,
    index_shape,
    stacked_bars,
    tooltip,
    wide,
)
from ra_bench.report.material import Material
from ra_bench.results import Row
from ra_bench.table import TARGETS

SECTION = "Cost to build"
BAR = 24
PARTS = (("build_s", "build"), ("knn_s", "neighbours"))


def figures(material: Material) -> list[Figure | LeftOut]:
    """Build time, memory and insertion; break-even lengths."""
    return [_build(material), _memory(material), _break_even(material)]


def _of_heads(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Each index in each scope, with one row a head: what does not depend on the effort."""
    contestants = [row for row in rows if row["role"] == "index"]
    for same in by(contestants, (*SCOPE, "index")).values():
        yield same[0], list({row["head"]: row for row in same}.values())


def _build(material: Material) -> Figure | LeftOut:
    title = "Build time"
    rows = []
    for first, heads in _of_heads(material.compare):
        seconds = {field: mean([row.get(field) for row in heads]) for field, _ in PARTS}
        total = sum(value for value in seconds.values() if value is not None)
        for place, (field, label) in enumerate(PARTS):
            if seconds[field] is not None:
                facts = {name: first[name] for name in (*SCOPE, "index", "settings")}
                rows.append(
                    facts
                    | {
                        "part": label,
                        "place": place,
                        "seconds": seconds[field],
                        "total_s": total,
                        "heads": str(len(heads)),
                    }
                )
    if not rows:
        return LeftOut(title, "the rows lack the column build_s")
    columns = (
        *(Column("index", "index"), Column("part", "part"), Column("seconds", "seconds per head", 3)),
        *(Column("total_s", "together", 3), Column("heads", "heads"), Column("settings", "build settings")),
    )
    bars = stacked_bars(
        "index",
        alt.X("seconds:Q", title="seconds per KV head (mean over heads)", axis=alt.Axis(tickCount=6)),
        ("part", [label for _, label in PARTS], None),
        "total_s",
        columns,
        BAR,
        alt.Axis(labelLimit=130),
        cornerRadius=2,
        height=15,
    )
    return Figure(
        name="build-time",
        section=SECTION,
        title=title,
        how="The exact neighbours of the learn queries are computed once a head on all cores and serve every"
        " index that learns from queries; the rest of a build is the index's own.",
        rows=rows,
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts={"": bars},
        legend="own",
    )


def _memory(material: Material) -> Figure | LeftOut:
    title = "Memory and insertion"
    shown = [
        ("bytes_per_key", "bytes per key, beyond keys and values"),
        ("insert_us_per_key", "µs per inserted key, in blocks of 64"),
    ]
    rows = []
    for first, heads in _of_heads(material.compare):
        facts = {name: first[name] for name in (*SCOPE, "index", "settings")} | {"heads": str(len(heads))}
        rows.append(facts | {field: mean([row.get(field) for row in heads]) for field, _ in shown})
    shown = [(field, label) for field, label in shown if any(row[field] is not None for row in rows)]
    if not shown:
        return LeftOut(title, "the rows lack the columns host_bytes and insert_us_per_key")
    columns = (
        Column("index", "index"),
        *(Column(field, label, 3) for field, label in shown),
        Column("heads", "heads"),
    )
    charts = {}
    for field, label in shown:
        valid = chart().transform_filter(f"isValid(datum.{field}) && datum.{field} > 0")
        charts[field] = wide(
            valid.mark_point(filled=True, size=110).encode(
                y=alt.Y(
                    "index:N",
                    title=None,
                    sort=alt.EncodingSortField(field, order="ascending"),
                    axis=alt.Axis(labelLimit=130, grid=True),
                ),
                x=alt.X(
                    f"{field}:Q",
                    title=f"{label} (log scale)",
                    scale=alt.Scale(type="log", padding=16, nice=False),
                    axis=alt.Axis(format="~s", tickCount=6),
                ),
                color=index_colour(material.indexes, legend=None),
                shape=index_shape(material.indexes).legend(None),
                tooltip=tooltip(columns),
            ),
            alt.Step(BAR),
        )
    return Figure(
        name="memory",
        section=SECTION,
        title=title,
        how="Further left is cheaper. An index that is missing needs nothing beyond the keys (on this"
        " scale), or cannot insert.",
        rows=rows,
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts=charts,
        choices=(Choice("quantity", "Quantity", shown),),
        legend="none",
    )


def _break_even(material: Material) -> Figure | LeftOut:
    title = "Break-even length"
    rows = list(break_even_rows(material.compare))
    if not rows:
        return LeftOut(title, "needs the oracle (flat) and an index that reaches a recall of .90")
    columns = (
        *(
            Column("index", "index"),
            Column("recall", "at recall"),
            Column("tokens", "tokens to break even", 4),
        ),
        *(
            Column("saved_us", "saved per query, µs", 3),
            Column("spent_s", "build and neighbours, s", 3),
            Column("verdict", ""),
        ),
    )
    y = alt.Y(
        "index:N",
        title=None,
        sort=alt.EncodingSortField("tokens", order="ascending"),
        axis=alt.Axis(labelLimit=130, grid=True),
    )
    base = chart().encode(y=y, tooltip=tooltip(columns))
    x = alt.X(
        "tokens:Q",
        title="decoded tokens until the build is paid back (log scale)",
        scale=alt.Scale(type="log", padding=20, nice=False),
        axis=alt.Axis(format="~s", tickCount=6),
    )
    dots = base.transform_filter("isValid(datum.tokens)").mark_point(filled=True, size=110)
    never = base.transform_filter("!isValid(datum.tokens)").mark_text(align="left", style="note")
    marks = dots.encode(
        x=x,
        color=index_colour(material.indexes, legend=None),
        shape=index_shape(material.indexes).legend(None),
    )
    return Figure(
        name="break-even",
        section=SECTION,
        title=title,
        how="One KV head on one thread against an exact scan of the same keys: (build + neighbours) over the"
        " time that its G queries of a token save at equal recall. Shorter outputs are served faster by"
        " the scan.",
        rows=rows,
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts={"": wide(alt.layer(marks, never.encode(x=alt.value(4), text="verdict:N")), alt.Step(BAR))},
        choices=(
            Choice(
                "recall",
                "At recall",
                [(text, text) for text in sorted({row["recall"] for row in rows})],
                "rows",
            ),
        ),
        legend="none",
    )


def break_even_rows(compare: Sequence[Row]) -> Iterator[Row]:
    """How many decoded tokens pay for each index at each recall; None where it saves nothing."""
    measured = [row for row in compare if row.get("recall") is not None]
    for scope, in_scope in by(measured, SCOPE).items():
        scans = [row["search_p50_us"] for row in in_scope if row["spec"] == ORACLE]
        scan_us = mean(scans)
        if scan_us is None:
            continue
        for (index,), sweep in by([row for row in in_scope if row["role"] == "index"], ("index",)).items():
            points = sweep_points(sweep)
            spent_s = (mean([row.get("build_s") for row in sweep]) or 0.0) + (
                mean([row.get("knn_s") for row in sweep]) or 0.0
            )
            for target in TARGETS:
                one = at_recall(index, points, target)
                cost_us = one.values.get("search_p50_us")
                if cost_us is not None:
                    saved_us = scan_us - cost_us
                    tokens = spent_s / (saved_us * 1e-6 * (sweep[0]["group"] or 1)) if saved_us > 0 else None
                    yield dict(zip(SCOPE, scope, strict=True)) | {
                        "index": index,
                        "recall": f"{target:.2f}",
                        "spent_s": spent_s,
                        "saved_us": saved_us,
                        "tokens": max(1.0, tokens) if tokens is not None else None,
                        "verdict": "" if saved_us > 0 else "never: no faster than the scan",
                    }
