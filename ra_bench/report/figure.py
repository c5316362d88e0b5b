"""A figure of the report: a chart by Vega-Altair, the rows behind it, and what a reader can choose.

A specification has the data set named ROWS and no data: the page and the files hand it the rows of one scope,
so that both draw the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import altair as alt

from ra_bench.report import theme
from ra_bench.results import Row

ROWS = "rows"
HEIGHT = 340


@dataclass(frozen=True)
class Choice:
    """What a reader chooses in one figure: another variant of its chart, or the rows with that value."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]  # value, label
    kind: Literal["variant", "rows"] = "variant"
    start: str | None = None  # the value at first; the first option unless given


@dataclass(frozen=True)
class Column:
    """A column of the table under a figure."""

    field: str
    title: str
    digits: int | None = None  # significant ones; None is text


@dataclass
class Figure:
    """One figure. `charts` has a chart for each combination of the variant choices, by `key`."""

    name: str
    section: str
    title: str
    how: str  # how to read it, a line or two
    rows: Sequence[Row]
    columns: Sequence[Column]
    filters: Sequence[str]
    charts: Mapping[str, Any] = field(default_factory=dict)
    choices: Sequence[Choice] = ()
    legend: Literal["indexes", "own", "none"] = "indexes"
    wide: bool = False  # takes the page's whole width
    verbs: Sequence[str] = ("compare",)  # whose commands and machines stand under it

    def specs(self) -> dict[str, dict[str, Any]]:
        """The Vega-Lite specification of each chart, without theme and data."""
        return {key: _plain(chart) for key, chart in self.charts.items()}


@dataclass(frozen=True)
class LeftOut:
    """A figure that the rows do not allow, and what they lack."""

    title: str
    why: str


def key(*values: str) -> str:
    """The name of a variant: the values of the variant choices, in their order."""
    return "|".join(values)


def variants(*choices: Choice) -> Iterable[tuple[str, ...]]:
    """All combinations of the variant choices."""
    return product(
        *([value for value, _ in choice.options] for choice in choices if choice.kind == "variant")
    )


def chart() -> alt.Chart:
    """A chart of the figure's rows."""
    return alt.Chart(alt.NamedData(ROWS))


def index_colour(indexes: Sequence[str], **options: Any) -> alt.Color:
    """The colour of each index, the same in every figure."""
    return alt.Color("index:N", scale=alt.Scale(domain=list(indexes)), title=None, **options)


def index_shape(indexes: Sequence[str]) -> alt.Shape:
    """The shape of each index, the same in every figure."""
    shapes = theme.shapes_of(list(indexes))
    return alt.Shape("index:N", scale=alt.Scale(domain=list(indexes), range=shapes), title=None)


def stacked_bars(
    y: str,
    x: alt.X,
    parts: tuple[str, Sequence[str], Sequence[str] | None],
    total: str,
    columns: Iterable[Column],
    step: int,
    axis: Any = alt.Undefined,
    **bar: Any,
) -> alt.TopLevelMixin:
    """A bar for each value of the field `y`, those of least `total` first, `step` pixels apart.

    `parts` are the field that names a bar's parts, its values and their colours (None: the theme's); `place`
    of a row tells their order. `bar` is the look of a mark.
    """
    field, labels, colours = parts
    scale = alt.Scale(domain=list(labels), range=list(colours) if colours else alt.Undefined)
    bars = chart().mark_bar(**bar)
    encoded = bars.encode(
        y=alt.Y(
            f"{y}:N",
            title=None,
            sort=alt.EncodingSortField(total, op="max", order="ascending"),
            axis=axis,
        ),
        x=x,
        color=alt.Color(f"{field}:N", title=None, scale=scale),
        order=alt.Order("place:Q"),
        tooltip=tooltip(columns),
    )
    return wide(encoded, alt.Step(step))


def tooltip(columns: Iterable[Column]) -> list[alt.Tooltip]:
    """What a pointer over a mark shows: the columns of the table."""
    return [
        alt.Tooltip(f"{one.field}:N", title=one.title)
        if one.digits is None
        else alt.Tooltip(f"{one.field}:Q", title=one.title, format=f".{one.digits}~r")
        for one in columns
    ]


def wide(made: alt.TopLevelMixin, height: Any = HEIGHT) -> alt.TopLevelMixin:
    """As wide as its place; a file takes 640 pixels."""
    return made.properties(width="container", height=height)


def _plain(made: Any) -> dict[str, Any]:
    spec = made if isinstance(made, dict) else made.to_dict(validate=False)
    return {name: part for name, part in spec.items() if name not in ("config", "$schema")}
