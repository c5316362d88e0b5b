"""Colours, shapes and type: one palette for page and files, safe for the colour-blind, light and dark.

The hues are those of Okabe and Ito (2008) without black and yellow, which vanish on one of the two grounds,
and an indigo. An index has a colour and a shape; 7 colours and 6 shapes make 42 pairs, and neighbours share
neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LIGHT = ("#d55e00", "#0072b2", "#009e73", "#b8579a", "#c98500", "#3fa1d9", "#5b4bb7")
DARK = ("#ff8a3d", "#4aa8e8", "#2fc79a", "#e29ac4", "#f0b429", "#8fd0f5", "#a99cf2")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# Of the parts of a bar, on either ground; the last one is what is left over.
PARTS = ("#d55e00", "#2f8fd0", "#009e73", "#b8579a", "#c98500", "#6cc0ea", "#8577dd", "#8a94a0")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FILE_FONT = "Helvetica, Arial, sans-serif"
# The first colours are this project's indexes' wherever they were measured; the rest follow as they appear.
FIRST = ("ra", "qivf")


def ordered(indexes: Iterable[str]) -> list[str]:
    """All indexes in the order in which they take their colours."""
    names = list(dict.fromkeys(indexes))
    first = [name for name in FIRST if name in names]
    return first + [name for name in names if name not in first]


def shapes_of(indexes: list[str]) -> list[str]:
    """The shape of each index, in their order."""
    return [SHAPES[place % len(SHAPES)] for place in range(len(indexes))]


def config(dark: bool = False, font: str = FONT) -> dict[str, Any]:
    """Vega-Lite's configuration: quiet axes, one size of type."""
    text, quiet, line = ("#e6e9ee", "#a4aebb", "#2b333e") if dark else ("#1b2430", "#56616f", "#e3e7ec")
    colours = list(DARK if dark else LIGHT)
    return {
        "background": None,
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "domain": False,
            "ticks": False,
            "grid": True,
            "gridColor": line,
            "labelColor": quiet,
            "labelFontSize": 12,
            "labelPadding": 6,
            "labelLimit": 170,
            "titleColor": text,
            "titleFontSize": 12.5,
            "titleFontWeight": 500,
            "titlePadding": 10,
        },
        "axisBand": {"grid": False},
        "axisX": {"labelBound": True},
        "legend": {
            "labelColor": text,
            "titleColor": quiet,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "orient": "bottom",
            "direction": "horizontal",
            "columns": 4,
            "labelLimit": 280,
            "titleLimit": 420,
            "symbolLimit": 60,
            "symbolSize": 90,
        },
        "header": {"labelColor": text, "labelFontSize": 12.5, "labelFontWeight": 500, "title": None},
        "range": {"category": colours, "ordinal": {"scheme": "viridis"}, "heatmap": {"scheme": "viridis"}},
        "style": {"reference": {"stroke": quiet, "fill": quiet}, "note": {"fill": quiet, "fontSize": 11.5}},
        "text": {"fill": text, "fontSize": 12},
        "rule": {"color": quiet},
        "point": {"opacity": 0.95},
    }
