"""Each index against the reference, head by head, at equal recall: intervals and sign-flip tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from ra_bench.matched import Values, at_recall, quantities
from ra_bench.report.compared import SCOPE, by
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
from ra_bench.statistics import holm, paired_by_head, sign_flip_test
from ra_bench.table import TARGETS

REFERENCE = "ra"
SIGNIFICANT = 0.05
BAR = 28
# Field, label, title of the axis.
COMPARED = (
    ("search_p50_us", "search time", "search time over the reference's, less 1 (left is faster)"),
    ("output_error", "output error", "output error over the reference's, less 1 (left is closer)"),
    ("keys_share", "keys read", "keys read over the reference's, less 1 (left reads less)"),
)
COLUMNS = (
    *(Column("index", "index"), Column("reference", "reference"), Column("recall", "at recall")),
    *(Column("before", "reference's mean", 4), Column("after", "index's mean", 4)),
    *(Column("change_text", "change"), Column("interval", "95 % interval by head")),
    *(Column("fewer", "heads with less"), Column("p_text", "p (sign flips, Holm)"), Column("verdict", "")),
)
HOW = (
    "At equal recall, each index's mean over the heads on which it and the reference get there, less the"
    " reference's, as a share of it; the bar is the 95 % bootstrap interval by head. p is that of a sign-flip"
    " test over heads, corrected by Holm for the number of indexes: n heads allow no p below 2/2ⁿ, so with"
    " fewer than six heads the test cannot reach .05."
)


def figures(material: Material) -> list[Figure | LeftOut]:
    """The one chart, for each quantity."""
    title = "Against the reference, head by head"
    rows = list(paired_rows(material.compare, material.indexes))
    if not rows:
        return [LeftOut(title, "needs two or more heads on which two indexes reach a recall of .90")]
    shown = [(field, label) for field, label, _ in COMPARED if any(row["quantity"] == field for row in rows)]
    titles = {field: title for field, _, title in COMPARED}
    recalls = sorted({row["recall"] for row in rows})
    return [
        Figure(
            name="against-reference",
            wide=True,
            section="Quality against cost",
            title=title,
            how=HOW + _few(rows),
            rows=rows,
            columns=COLUMNS,
            filters=("data", "k", "split", "machine"),
            charts={field: _chart(field, titles[field], material.indexes) for field, _ in shown},
            choices=(
                Choice("quantity", "Compare", shown),
                Choice("recall", "At recall", [(text, text) for text in recalls], "rows", _middle(recalls)),
            ),
        )
    ]


def paired_rows(compare: Sequence[Row], indexes: Sequence[str]) -> Iterator[Row]:
    """One row an index, recall and quantity, over the heads that it shares with the reference."""
    searched = [row for row in compare if row["role"] == "index" and row.get("recall") is not None]
    for scope, in_scope in by(searched, SCOPE).items():
        sweeps = {index: sweep for (index,), sweep in by(in_scope, ("index",)).items()}
        named = {sweep[0]["spec"]: index for index, sweep in reversed(sweeps.items())}
        reference = named.get(REFERENCE) or next(index for index in indexes if index in sweeps)
        points = {index: _points_of_heads(sweep) for index, sweep in sweeps.items()}
        for target in TARGETS:
            at = {index: _by_head(points[index], target) for index in sweeps}
            for quantity, _, _ in COMPARED:
                pairs = {
                    index: pair
                    for index in sweeps
                    if index != reference and (pair := _pair(at[reference], at[index], quantity)) is not None
                }
                facts = dict(zip(SCOPE, scope, strict=True)) | {"reference": reference, "quantity": quantity}
                for index, told in _tested(pairs):
                    yield facts | {"index": index, "recall": f"{target:.2f}", **told}


def _points_of_heads(sweep: Sequence[Row]) -> dict[str, list[Values]]:
    return {head: [quantities(row) for row in rows] for (head,), rows in by(sweep, ("head",)).items()}


def _by_head(points: Mapping[str, Sequence[Values]], target: float) -> dict[str, Values]:
    """What the index takes to reach the recall, on each head on which it does."""
    reached = {head: at_recall("", [sweep], target) for head, sweep in points.items()}
    return {head: one.values for head, one in reached.items() if one.values}


def _pair(
    before: Mapping[str, Values], after: Mapping[str, Values], quantity: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """The quantity of reference and index, (heads,) each; None below two heads that have both."""
    both = [(before[head].get(quantity), after[head].get(quantity)) for head in before if head in after]
    known = [(one, other) for one, other in both if one is not None and other is not None]
    if len(known) < 2:
        return None
    one, other = np.array(known, float).T
    return (one, other) if one.mean() > 0 else None


def _tested(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[str, Row]]:
    """Each index's difference, and its p-value as one of so many tests."""
    p_values = holm(np.array([sign_flip_test(after - before) for before, after in pairs.values()]))
    for (index, (before, after)), p in zip(pairs.items(), p_values.tolist(), strict=True):
        change = paired_by_head(before, after, relative=True)
        heads = len(before)
        least = min(1.0, len(pairs) * 2 / 2**heads)
        yield (
            index,
            {
                "heads": heads,
                "before": float(before.mean()),
                "after": float(after.mean()),
                "change": change.value,
                "change_low": change.low,
                "change_high": change.high,
                "change_text": f"{change.value:+.1%}",
                "interval": f"{change.low:+.1%} to {change.high:+.1%}",
                "fewer": f"{int((after < before).sum())} of {heads}",
                "p": p,
                "p_text": f"{p:.2g}",
                "verdict": _verdict(change.value, p, heads, least),
            },
        )


def _verdict(change: float, p: float, heads: int, least: float) -> str:
    if heads < 6:
        return f"{heads} heads: the test cannot reach .05"
    if p <= SIGNIFICANT:
        return "less than the reference" if change < 0 else "more than the reference"
    if least > SIGNIFICANT:
        return f"{heads} heads: after Holm's correction no p below {least:.2g}"
    return "no difference shown"


def _few(rows: Sequence[Row]) -> str:
    most = max(row["heads"] for row in rows)
    return f" Here there are at most {most}: intervals only, no verdict." if most < 6 else ""


def _middle(recalls: Sequence[str]) -> str:
    return recalls[min(1, len(recalls) - 1)]


def _chart(quantity: str, title: str, indexes: Sequence[str]) -> Any:
    rows = chart().transform_filter(f"datum.quantity === '{quantity}'")
    axis = alt.Axis(format="+.0%", tickCount=6)
    x, low = (alt.X(f"{field}:Q", title=title, axis=axis) for field in ("change", "change_low"))
    y = alt.Y(
        "index:N",
        title=None,
        sort=alt.EncodingSortField("change", op="max", order="ascending"),
        axis=alt.Axis(labelLimit=130, grid=True),
    )
    marks = {"y": y, "color": index_colour(indexes), "tooltip": tooltip(COLUMNS)}
    zero = rows.mark_rule(style="reference", strokeDash=[6, 4]).encode(x=alt.datum(0))
    bars = rows.mark_rule(strokeWidth=3, opacity=0.55).encode(**marks, x=low, x2="change_high:Q")
    dots = rows.mark_point(filled=True, size=110).encode(**marks, x=x, shape=index_shape(indexes))
    return wide(alt.layer(zero, bars, dots), alt.Step(BAR))
