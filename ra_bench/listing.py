"""What `ra-bench list` prints: every index, as text for a terminal or as the README's table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ra_bench.registry import Info

LEAST_WIDTH, INDENT = 60, 4
HEADER = ("name", "kind", "query-aware", "insert", "where", "needs")


def text(infos: Sequence[Info], width: int) -> str:
    """A line of facts for each index, and its idea and paper below it, wrapped at `width`."""
    facts = [HEADER, *(_facts(one) for one in infos)]
    widths = [max(len(row[column]) for row in facts) for column in range(len(HEADER))]
    lines = [_aligned(HEADER, widths)]
    for one, row in zip(infos, facts[1:], strict=True):
        about = [] if one.available else [f"UNAVAILABLE, {one.reason}."]
        about += [one.idea] + ([f"{one.paper}."] if one.paper else [])
        margin = " " * INDENT
        lines += [
            _aligned(row, widths),
            textwrap.fill(
                " ".join(about), max(LEAST_WIDTH, width), initial_indent=margin, subsequent_indent=margin
            ),
        ]
    return "\n".join(lines)


def markdown(infos: Sequence[Info]) -> str:
    """The README's table of methods: what they are, whether they can run here or not."""
    lines = [
        "| name | kind | idea | query-aware | insert | needs | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in infos:
        cells = (f"`{one.name}`", one.kind, one.idea, _yes(one.query_aware), _yes(one.insert))
        lines.append(f"| {' | '.join((*cells, one.extra, one.paper))} |")
    return "\n".join(lines)


def _facts(one: Info) -> tuple[str, ...]:
    return (one.name, one.kind, _yes(one.query_aware), _yes(one.insert), one.where, one.extra)


def _yes(flag: bool) -> str:
    return "yes" if flag else ""


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
