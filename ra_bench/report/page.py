"""The page: one HTML file that needs nothing else, with the rows packed into it.

Text from rows reaches the page through the template, which escapes it, or as packed data, which the script
writes as text. The page's own policy forbids every connection.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from ra_bench.report import theme
from ra_bench.report.about import Page, run_facts
from ra_bench.report.figure import Figure, LeftOut
from ra_bench.results import Row, write_whole

SIGNIFICANT_DIGITS = 4


def render(page: Page) -> str:
    """The HTML of a page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_part("page.html"))
    sections: dict[str, list[Figure]] = {}
    for figure in page.figures:
        sections.setdefault(figure.section, []).append(figure)
    return template.render(
        page=page,
        sections=sections,
        slug=slug,
        style=Markup(_part("page.css")),
        library=Markup(_library()),
        script=Markup(_part("page.js")),
        data=pack(_content(page)),
    )


def slug(title: str) -> str:
    """A title as the name of an anchor."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def pack(content: Any) -> str:
    """JSON, compressed, as text that HTML leaves alone."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def columnar(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Rows by column, numbers rounded, text by its place in a list: a tenth of the rows as they are."""
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            words = list(dict.fromkeys(values))
            places = {word: place for place, word in enumerate(words)}
            columns[name] = {"words": words, "places": [places[value] for value in values]}
        else:
            columns[name] = [_rounded(value) for value in values]
    return {"size": len(rows), "columns": columns}


def _content(page: Page) -> dict[str, Any]:
    specs = {figure.name: figure.specs() for figure in page.figures}
    shared: dict[int, list[Figure]] = {}
    for figure in page.figures:
        shared.setdefault(id(figure.rows), []).append(figure)
    datasets: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for figures in shared.values():
        rows = figures[0].rows
        for figure in figures:
            places[figure.name] = len(datasets)
        datasets.append(columnar(rows, _used_columns(rows, figures, specs)))
    indexes = page.material.indexes
    return {
        "datasets": datasets,
        "figures": [_figure(figure, specs[figure.name], places[figure.name]) for figure in page.figures],
        "headlines": page.headlines,
        "filters": page.filters,
        "scopes": page.scopes,
        "indexes": indexes,
        "shapes": theme.shapes_of(indexes),
        "colours": {"light": theme.LIGHT, "dark": theme.DARK},
        "themes": {"light": theme.config(), "dark": theme.config(dark=True)},
        "runs": [run_facts(run, page.material) for run in page.material.runs],
    }


def _figure(figure: Figure, specs: Mapping[str, Any], dataset: int) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "dataset": dataset,
        "filters": list(figure.filters),
        "columns": [vars(column) for column in figure.columns],
        "choices": [vars(choice) for choice in figure.choices],
        "legend": figure.legend,
        "verbs": list(figure.verbs),
        "specs": specs,
    }


def _used_columns(
    rows: Sequence[Row], figures: Sequence[Figure], specs: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    words = set(re.findall(r"\w+", json.dumps([specs[figure.name] for figure in figures])))
    for figure in figures:
        words |= {*figure.filters, *(column.field for column in figure.columns), "index"}
        words |= {choice.name for choice in figure.choices if choice.kind == "rows"}
    names = dict.fromkeys(name for row in rows[:1] for name in row)
    return [name for name in names if name in words]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return value


def _part(name: str) -> str:
    return (files("ra_bench.report") / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, from vl-convert's own copy.

    It takes seconds to bundle, so it is kept in the user's cache folder.
    """
    kept = _cache_folder() / f"vega-{version('vl-convert-python')}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except OSError:
        pass
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )
    with contextlib.suppress(OSError):  # a page without the cache is the same page
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, script.encode())
    return script


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ra-bench"


def left_out(made: Sequence[Figure | LeftOut]) -> tuple[list[Figure], list[LeftOut]]:
    """Figures, and what the rows do not allow, apart."""
    return [one for one in made if isinstance(one, Figure)], [one for one in made if isinstance(one, LeftOut)]
