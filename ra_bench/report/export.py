"""The figures as SVG and PNG, drawn by vl-convert from the specifications that the page has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from ra_bench.report import theme
from ra_bench.report.about import ALL, Page
from ra_bench.report.figure import ROWS, Figure
from ra_bench.results import Row, write_whole

WIDTH = 640
PNG_SCALE = 2.0
BACKGROUND = "white"


def export(page: Page, folder: Path) -> list[Path]:
    """Writes each figure of each data set and k; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, spec in drawings(page):
        for suffix, content in (("svg", _svg(spec)), ("png", _png(spec))):
            path = folder / f"{name}.{suffix}"
            write_whole(path, content)
            files.append(path)
    return files


def drawings(page: Page) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name and a whole specification for each figure, variant, scope and choice of rows."""
    for figure in page.figures:
        specs = figure.specs()
        for scope, rows in _scoped(page, figure):
            shown = _shown_at_first(figure, rows)
            for variant, spec in specs.items():
                parts = (figure.name, *variant.split("|"), *scope)
                yield "-".join(_file_name(part) for part in parts if part), whole(spec, shown)


def whole(spec: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """A specification with its rows, at a file's width, in the light theme."""
    made = spec | {
        "datasets": {ROWS: [_plain(row) for row in rows]},
        "config": theme.config(font=theme.FILE_FONT),
    }
    if made.get("width") == "container":
        made["width"] = WIDTH
    return made | {"padding": 12, "background": BACKGROUND}


def _scoped(page: Page, figure: Figure) -> Iterator[tuple[list[str], list[Row]]]:
    """The rows of each scope that has any, with what tells the scope from the others."""
    options = {one["name"]: [value for value, _ in one["options"] if value != ALL] for one in page.filters}
    verb = "drift" if "drift" in figure.verbs else "compare" if "data" in figure.filters else "decode"
    scopes = page.scopes[verb]
    told = [name for name in figure.filters if name not in ("head", "task") and len(options[name]) > 1]
    fixed = {name: options[name][0] for name in ("head", "task") if name in figure.filters and options[name]}
    seen = set()
    for scope in scopes:
        mine = {name: scope[name] for name in figure.filters if name in scope} | fixed
        if (mark := tuple(mine.items())) in seen:
            continue
        seen.add(mark)
        rows = [row for row in figure.rows if all(row[name] == value for name, value in mine.items())]
        if rows:
            yield (
                [f"k{mine[name]}" if name == "k" else str(mine[name]) for name in told if name in mine],
                rows,
            )


def _shown_at_first(figure: Figure, rows: list[Row]) -> list[Row]:
    """What the page shows before anything is chosen in the figure."""
    for choice in figure.choices:
        if choice.kind == "rows":
            options = [choice.start, *(value for value, _ in choice.options)]
            first = next((value for value in options if any(row[choice.name] == value for row in rows)), None)
            rows = [row for row in rows if row[choice.name] == first]
    return rows


def _plain(row: Row) -> Row:
    return {
        name: value
        for name, value in row.items()
        if value is None or isinstance(value, (str, int, float, bool))
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.@+=-]+", "_", text).strip("_")


def _svg(spec: dict[str, Any]) -> bytes:
    text: str = vl_convert.vegalite_to_svg(spec)
    return text.encode()


def _png(spec: dict[str, Any]) -> bytes:
    image: bytes = vl_convert.vegalite_to_png(spec, scale=PNG_SCALE)
    return image
