"""Live decoding: accuracy against time per token, where the time goes, and memory against context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from ra_bench.report import theme
from ra_bench.report.agreement import OFFLINE, ONLINE, pairs
from ra_bench.report.decoded import ALL_TASKS, MEMORY, PARTS
from ra_bench.report.figure import (
    Choice,
    Column,
    Figure,
    LeftOut,
    chart,
    index_colour,
    index_shape,
    key,
    stacked_bars,
    tooltip,
    variants,
    wide,
)
from ra_bench.report.material import Material
from ra_bench.results import Row

SECTION = "Live decoding"
FILTERS = ("model", "context", "machine")
BAR = 26
LOOK = {"cornerRadius": 1, "height": 17}  # of a bar
ANSWERS = (
    ("score", "score", "mean score ↑"),
    ("kl", "KL from dense", "KL divergence from dense's next token, nats ↓ (lower is better)"),
    ("top1_agreement", "top-1 agreement", "share of tokens that are dense's ↑"),
)
NAMES = {
    "mass_total": "attention mass in compare ↑",
    "output_error": "output error in compare ↓",
    "recall": "recall@k in compare ↑",
    "score": "score in decode ↑",
    "kl": "KL from dense in decode, nats ↓",
}


def figures(material: Material) -> list[Figure | LeftOut]:
    """Accuracy, latency, memory, and offline against online."""
    if not material.decode:
        why = "no rows of ra-bench decode among the results"
        names = (
            "Accuracy against time per token",
            "Where a token's time goes",
            "Memory",
            "Offline against online",
        )
        return [LeftOut(name, why) for name in names]
    return [
        _accuracy(material),
        _latency(material),
        _memory(material),
        _memory_over_contexts(material),
        _agreement(material),
    ]


def _accuracy(material: Material) -> Figure | LeftOut:
    title = "Accuracy against time per token"
    rows = [row for row in material.decoded if row["tpot_ms"] is not None]
    shown = [one for one in ANSWERS if any(row[one[0]] is not None for row in rows)]
    if not shown:
        return LeftOut(title, "the rows lack the columns score, kl and tpot_ms")
    columns = (
        *(
            Column("run", "run"),
            Column("task", "task"),
            Column("effort", "effort"),
            Column("samples", "samples", 4),
        ),
        *(Column(field, label, 4) for field, label, _ in shown),
        *(Column("tpot_ms", "ms per token", 4), Column("tpot_p95_ms", "p95", 4)),
        *(Column("keys_read_share", "keys read, share", 3), Column("capture", "path")),
    )
    several_ks = len({row["k"] for row in rows if row["k"] is not None}) > 1
    choice = Choice("answer", "Answers", [(field, label) for field, label, _ in shown])
    return Figure(
        name="accuracy-latency",
        section=SECTION,
        title=title,
        how="Each mark is a run of all samples; a bar is one standard error of the score. Left and up is"
        " better (for the divergence, down). dense keeps all keys and values on the device and is what"
        " every run is compared with.",
        rows=rows,
        columns=columns,
        filters=(*FILTERS, "task"),
        charts={
            field: _scatter(field, label, material.indexes, columns, several_ks) for field, _, label in shown
        },
        choices=(choice,),
        verbs=("decode",),
    )


def _scatter(
    field: str, label: str, indexes: Sequence[str], columns: Sequence[Column], several_ks: bool
) -> Any:
    x = alt.X(
        "tpot_ms:Q",
        scale=alt.Scale(zero=False, padding=24, nice=False),
        title="← time per output token, ms (median)",
    )
    share = field != "kl"
    scale = alt.Scale(domain=[0, 1], nice=False) if share else alt.Scale(zero=True, padding=14)
    y = alt.Y(f"{field}:Q", scale=scale, title=label)
    base = chart().transform_filter(f"isValid(datum.{field})")
    dots = base.mark_point(filled=True, size=110).encode(
        x=x, y=y, color=index_colour(indexes), shape=index_shape(indexes), tooltip=tooltip(columns)
    )
    layers = [dots]
    if several_ks:
        layers.append(base.mark_text(style="note", dy=-11).encode(x=x, y=y, text="k:N"))
    if field == "score":
        errors = base.transform_filter("isValid(datum.score_low)").mark_rule(strokeWidth=1.6, opacity=0.5)
        layers.insert(
            0, errors.encode(x=x, y=alt.Y("score_low:Q"), y2="score_high:Q", color=index_colour(indexes))
        )
    return wide(alt.layer(*layers))


def _latency(material: Material) -> Figure | LeftOut:
    title = "Where a token's time goes"
    rows: list[Row] = []
    for point in material.decoded:
        parts = [(label, point[field]) for field, label in PARTS if point[field]]
        facts = {name: point[name] for name in (*FILTERS, "task", "run", "index", "tpot_ms", "capture")}
        rows += [facts | {"part": label, "place": place, "ms": ms} for place, (label, ms) in enumerate(parts)]
    if not rows:
        return LeftOut(title, "the rows lack the columns model_ms … harness_ms")
    labels = [label for _, label in PARTS]
    known = [label for label in labels if any(row["part"] == label for row in rows)]
    colours = [theme.PARTS[labels.index(label)] for label in known]
    columns = (
        *(Column("run", "run"), Column("part", "part"), Column("ms", "mean ms", 3)),
        *(Column("tpot_ms", "ms per token, median", 4), Column("capture", "path")),
    )
    bars = stacked_bars(
        "run",
        alt.X("ms:Q", title="ms per token (means of the parts)"),
        ("part", known, colours),
        "tpot_ms",
        columns,
        BAR,
        alt.Axis(labelLimit=130),
        **LOOK,
    )
    return Figure(
        name="latency-parts",
        section=SECTION,
        title=title,
        how="The parts of a step, stacked. On CUDA, search and CPU attention run while GPU attention does,"
        " so a stack may be longer than the token took.",
        rows=rows,
        columns=columns,
        filters=(*FILTERS, "task"),
        charts={"": bars},
        legend="own",
        verbs=("decode",),
    )


def _memory(material: Material) -> Figure | LeftOut:
    title = "Memory"
    rows = list(_memory_rows(material))
    if not rows:
        return LeftOut(title, "the rows lack the columns host_kv_bytes, index_bytes and device_kv_bytes")
    columns = (
        *(Column("run", "run"), Column("context", "context"), Column("kind", "memory of")),
        *(Column("megabytes", "MB", 4), Column("total_mb", "MB together", 4)),
    )
    bars = stacked_bars(
        "run",
        alt.X("megabytes:Q", title="MB when decoding begins", axis=alt.Axis(tickCount=6)),
        ("kind", [label for _, label in MEMORY], theme.PARTS[: len(MEMORY)]),
        "total_mb",
        columns,
        BAR,
        **LOOK,
    )
    return Figure(
        name="memory-parts",
        section=SECTION,
        title=title,
        how="Keys and values move from the device to the host where an index serves them; the index comes on"
        " top. Sinks and the recent window stay on the device.",
        rows=rows,
        columns=columns,
        filters=FILTERS,
        charts={"": bars},
        legend="own",
        verbs=("decode",),
    )


def _memory_rows(material: Material) -> Iterator[Row]:
    for point in material.decoded:
        parts = [(label, (point[field] or 0) / 1e6) for field, label in MEMORY]
        total = sum(megabytes for _, megabytes in parts)
        if point["task"] == ALL_TASKS and total:
            facts = {name: point[name] for name in (*FILTERS, "context_tokens", "run", "index")}
            for place, (label, megabytes) in enumerate(parts):
                yield facts | {"kind": label, "place": place, "megabytes": megabytes, "total_mb": total}


def _memory_over_contexts(material: Material) -> Figure | LeftOut:
    title = "Memory against context"
    rows = list(_memory_rows(material))
    if len({row["context_tokens"] for row in rows}) < 2:
        return LeftOut(title, "needs decode at two or more lengths of --context, each in its folder")
    columns = (
        Column("run", "run"),
        Column("context_tokens", "context, tokens", 7),
        Column("kind", "memory of"),
        Column("megabytes", "MB", 4),
    )
    marks = {
        "x": alt.X(
            "context_tokens:Q",
            title="context, tokens (log scale)",
            scale=alt.Scale(type="log", padding=24, nice=False),
            axis=alt.Axis(format="~s", tickCount=5),
        ),
        "y": alt.Y("megabytes:Q", title="MB"),
        "color": index_colour(material.indexes),
        "detail": "run:N",
        "tooltip": tooltip(columns),
    }
    lines = chart().mark_line(strokeWidth=1.8).encode(**marks, order="context_tokens:Q")
    dots = chart().mark_point(filled=True, size=90).encode(**marks, shape=index_shape(material.indexes))
    return Figure(
        name="memory-context",
        section=SECTION,
        title=title,
        how="One line a run, over the contexts that were decoded.",
        rows=rows,
        columns=columns,
        filters=("model", "machine"),
        charts={"": wide(alt.layer(lines, dots), 300)},
        choices=(Choice("kind", "Memory of", [(label, label) for _, label in MEMORY], "rows"),),
        verbs=("decode",),
    )


def _agreement(material: Material) -> Figure | LeftOut:
    title = "Offline against online"
    rows = pairs(material.compare, material.decoded)
    if not rows:
        return LeftOut(title, "needs compare and decode of the same model with the same index and k")
    known = {name for name in (*OFFLINE, *ONLINE) if any(row[name] is not None for row in rows)}
    choices = (
        Choice("offline", "Offline", [(name, NAMES[name]) for name in OFFLINE if name in known]),
        Choice("online", "Online", [(name, NAMES[name]) for name in ONLINE if name in known]),
    )
    columns = (
        *(Column("run", "run"), Column("data", "offline data"), Column("context", "online context")),
        *(Column(name, NAMES[name], 4) for name in (*OFFLINE, *ONLINE) if name in known),
        *(
            Column("effort", "effort online"),
            Column("offline_effort", "effort offline"),
            Column("matched", "joined by"),
        ),
    )
    charts = {key(x, y): _pairs_chart(x, y, material.indexes, columns) for x, y in variants(*choices)}
    return Figure(
        name="offline-online",
        wide=True,
        section="Offline against online",
        title=title,
        how="Does the comparison of indexes on recorded vectors foretell what they do to a model's answers?"
        " Each mark is an index at the effort that decode used; ρ is Spearman's rank"
        " correlation: near ±1 says yes.",
        rows=rows,
        columns=columns,
        filters=("data", "model", "context", "machine"),
        charts=charts,
        choices=choices,
        verbs=("compare", "decode"),
    )


def _pairs_chart(offline: str, online: str, indexes: Sequence[str], columns: Sequence[Column]) -> Any:
    base = chart().transform_filter(f"isValid(datum.{offline}) && isValid(datum.{online})")
    x = alt.X(f"{offline}:Q", scale=alt.Scale(zero=False, padding=24, nice=False), title=NAMES[offline])
    y = alt.Y(f"{online}:Q", scale=alt.Scale(zero=False, padding=18), title=NAMES[online])
    dots = base.mark_point(filled=True, size=110).encode(
        x=x, y=y, color=index_colour(indexes), shape=index_shape(indexes), tooltip=tooltip(columns)
    )
    names = base.mark_text(style="note", dy=-11).encode(x=x, y=y, text="run:N")
    note = (
        base.transform_aggregate(text=f"max(rank_{offline}_{online})")
        .mark_text(style="note", align="left", baseline="top")
        .encode(x=alt.value(6), y=alt.value(4), text="text:N")
    )
    return wide(alt.layer(dots, names, note))
