"""Head by head: quality at a fixed budget, how hard each head is, and how many tokens hold its mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from ra_bench.report.compared import QUALITIES, SCOPE, by
from ra_bench.report.figure import Choice, Column, Figure, LeftOut, chart, tooltip, wide
from ra_bench.report.material import Material
from ra_bench.report.rows import missing_columns
from ra_bench.results import Row

SECTION = "Head by head"
KEYS_BUDGETS = (0.02, 0.05, 0.1, 0.2)
SCAN_BUDGET = 0.5
CELL, CELL_HEIGHT = 42, 28  # pixels at most; the page narrows a cell where the heads need it
MAPS = (
    ("recall", "recall@k", False),
    ("mass_total", "attention mass", False),
    ("output_error", "output error", True),
)
# What the oracle's rows tell of any head; then the columns of the data tools, where rows carry them.
OF_ORACLE = (
    ("output_error", "output error that exact top-k leaves"),
    ("static_mass", "mass of sinks and recent tokens"),
    ("mass_of_indexed", "mass that exact top-k holds of the index"),
)
OF_DATA = (
    ("difficulty_not_own_nearest", "keys that are not their own nearest, share"),
    ("difficulty_norm_cv", "spread of key norms"),
    ("difficulty_effective_keys", "effective number of keys"),
    ("difficulty_keys_for_mass", "keys that hold 90 % of the mass"),
    ("difficulty_mahalanobis_queries", "Mahalanobis distance of queries"),
    ("difficulty_hubness", "hubness"),
)


def figures(material: Material) -> list[Figure | LeftOut]:
    """The heat maps and the mass curves."""
    return [_budget(material), _difficulty(material), _tokens(material)]


def _budget(material: Material) -> Figure | LeftOut:
    title = "Each head at a fixed budget"
    if len(material.heads) < 2:
        return LeftOut(title, "needs rows of at least two heads (--layers, --kv-heads of a dump)")
    rows = budget_rows(material.compare)
    if not rows:
        return LeftOut(
            title, "no setting is within a budget: the columns keys_read or search_p50_us are missing"
        )
    names = list(dict.fromkeys(row["budget"] for row in rows))
    choices = (
        Choice("map", "Quality", [(field, label) for field, label, _ in MAPS]),
        Choice("budget", "Budget", [(name, name) for name in names], "rows", _fullest(rows)),
    )
    columns = (
        *(
            Column("index", "index"),
            Column("head", "head"),
            Column("budget", "budget"),
            Column("effort", "effort"),
        ),
        *(
            Column("recall", "recall", 4),
            Column("mass_total", "mass", 4),
            Column("output_error", "output error", 3),
        ),
        *(Column("keys_share", "keys read, share", 3), Column("search_p50_us", "search p50 µs", 4)),
    )
    return Figure(
        name="head-maps",
        wide=True,
        section=SECTION,
        title=title,
        how="Each square is a KV head, each map an index: the best it reaches within the budget. Bright is"
        " better. A missing square: even its cheapest setting is dearer, or the library hides what it"
        " reads.",
        rows=rows,
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts={field: _maps(field, label, lower, columns) for field, label, lower in MAPS},
        choices=choices,
        legend="own",
    )


def budget_rows(compare: Sequence[Row]) -> list[Row]:
    """The best setting of each index on each head within each budget."""
    rows = []
    for in_scope in by(compare, SCOPE).values():
        scans = {row["head"]: row["search_p50_us"] for row in in_scope if row["role"] == "oracle"}
        indexes = [row for row in in_scope if row["role"] == "index"]
        for sweep in by(indexes, ("index", "head")).values():
            scan_us = scans.get(sweep[0]["head"])
            for name, within in _budgets(sweep, scan_us):
                if within:
                    best = min(within, key=lambda row: (row["output_error"] or 0.0, -(row["recall"] or 0.0)))
                    kept = (
                        *SCOPE,
                        "index",
                        "head",
                        "layer",
                        "kv_head",
                        "effort",
                        *QUALITIES,
                        "keys_share",
                        "search_p50_us",
                    )
                    rows.append({name: best.get(name) for name in kept} | {"budget": name})
    order = [name for name, _ in _budgets([], None)]
    return sorted(rows, key=lambda row: order.index(row["budget"]))


def _fullest(rows: Sequence[Row]) -> str:
    """The budget within which most indexes reach anything; the smallest of equals."""
    counts = {name: len({row["index"] for row in same}) for (name,), same in by(rows, ("budget",)).items()}
    return str(max(counts, key=lambda name: counts[name]))


def _budgets(sweep: Sequence[Row], scan_us: float | None) -> list[tuple[str, list[Row]]]:
    kept = [
        (
            f"at most {share:.0%} of the keys read",
            [r for r in sweep if r["keys_share"] is not None and r["keys_share"] <= share],
        )
        for share in KEYS_BUDGETS
    ]
    fast = [
        r
        for r in sweep
        if scan_us and r["search_p50_us"] is not None and r["search_p50_us"] <= SCAN_BUDGET * scan_us
    ]
    return [*kept, ("at most half the time of an exact scan", fast)]


def _maps(field: str, label: str, lower: bool, columns: Sequence[Column]) -> Any:
    squares = (
        chart()
        .mark_rect(cornerRadius=3)
        .encode(
            x=alt.X("kv_head:O", title="KV head", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer"),
            color=_heat(field, label, lower),
            tooltip=tooltip(columns),
        )
        .properties(width=alt.Step(CELL), height=alt.Step(CELL_HEIGHT))
    )
    return squares.facet(facet=alt.Facet("index:N", title=None), columns=4)


def _heat(field: str, label: str, lower: bool) -> alt.Color:
    scale = alt.Scale(scheme="viridis", reverse=lower, zero=False)
    return alt.Color(
        f"{field}:Q", title=label, scale=scale, legend=alt.Legend(gradientLength=220, format=".3~g")
    )


def _difficulty(material: Material) -> Figure | LeftOut:
    title = "How hard each head is"
    if len(material.heads) < 2:
        return LeftOut(title, "needs rows of at least two heads (--layers, --kv-heads of a dump)")
    rows = [row for row in material.compare if row["role"] == "oracle" and row["effort_rank"] == 0]
    known = [*OF_ORACLE, *OF_DATA]
    missing = missing_columns(rows, [field for field, _ in known])
    shown = [(field, label) for field, label in known if field not in missing]
    if not shown:
        return LeftOut(title, f"no row of the oracle has a value in {', '.join(missing)}")
    columns = (
        Column("head", "head"),
        Column("shape", "size"),
        *(Column(field, label, 4) for field, label in shown),
    )
    choice = Choice("difficulty", "Measure", shown)
    charts = {}
    for field, label in shown:
        squares = chart().mark_rect(cornerRadius=3)
        charts[field] = squares.encode(
            x=alt.X("kv_head:O", title="KV head", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer"),
            color=_heat(field, label, field == "output_error"),
            tooltip=tooltip(columns),
        ).properties(width=alt.Step(CELL), height=alt.Step(CELL_HEIGHT))
    kept = (*SCOPE, "head", "layer", "kv_head", "shape", *(field for field, _ in shown))
    return Figure(
        name="difficulty",
        section=SECTION,
        title=title,
        how="What the vectors themselves allow, whatever the index: where even the exact top-k leaves a"
        " large output error, no index can do better at this k.",
        rows=[{name: row.get(name) for name in kept} for row in rows],
        columns=columns,
        filters=("data", "k", "split", "machine"),
        charts=charts,
        choices=(choice,),
        legend="own",
    )


def _tokens(material: Material) -> Figure | LeftOut:
    title = "Tokens needed for the attention mass"
    oracles = [row for row in material.compare if row["role"] == "oracle" and row["effort_rank"] == 0]
    together = by(oracles, ("data", "machine", "split")).values()
    rows = [row for same in together if len({row["k"] for row in same}) > 1 for row in same]
    if not rows:
        return LeftOut(title, "needs the oracle (flat) at two or more k, as --k 10,100,1000")
    shown = [
        ("mass_of_indexed", "share of the index's mass"),
        ("mass_total", "share of all mass, with sinks and recent tokens"),
        ("output_error", "output error left"),
    ]
    missing = missing_columns(rows, [field for field, _ in shown])
    shown = [(field, label) for field, label in shown if field not in missing]
    if not shown:
        return LeftOut(title, f"no row of the oracle has a value in {', '.join(missing)}")
    columns = (
        Column("head", "head"),
        Column("k", "k", 6),
        *(Column(field, label, 4) for field, label in shown),
    )
    choice = Choice("mass", "Of", shown)
    charts = {}
    for field, label in shown:
        base = chart().encode(
            x=alt.X(
                "k:Q",
                scale=alt.Scale(type="log", padding=20, nice=False),
                title="tokens attended exactly (k, log scale)",
                axis=alt.Axis(format="~s", tickCount=4),
            ),
            y=alt.Y(
                f"{field}:Q",
                title=label,
                scale=alt.Scale(zero=False, padding=10),
                axis=alt.Axis(format=".3~f"),
            ),
            color=alt.Color("layer:O", scale=alt.Scale(scheme="viridis"), title="layer"),
            detail="head:N",
            tooltip=tooltip(columns),
        )
        charts[field] = wide(
            alt.layer(base.mark_line(strokeWidth=1.6, opacity=0.7), base.mark_point(filled=True, size=60)),
            280,
        )
    kept = ("data", "machine", "split", "k", "head", "layer", *(field for field, _ in shown))
    return Figure(
        name="tokens-per-mass",
        section=SECTION,
        title=title,
        how="What the exact top-k holds, one line a head: a flat line means that a few tokens carry the"
        " head's attention, a steep one that 100 of them are too few, whichever index finds them.",
        rows=[{name: row.get(name) for name in kept} for row in rows],
        columns=columns,
        filters=("data", "split", "machine"),
        charts=charts,
        choices=(choice,),
        legend="own",
    )
