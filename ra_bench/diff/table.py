"""What `diff` prints: a table of changes a k, a summary, and lines on all that a reader must know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ra_bench.diff.changes import Change, Ends
from ra_bench.diff.gates import Gate
from ra_bench.diff.pairs import Paired, Setting
from ra_bench.diff.quantities import QUANTITIES, Quantity
from ra_bench.diff.sides import Side
from ra_bench.table import NOTHING, plain_table

TITLES = {
    "recall": "recall",
    "mass_total": "mass",
    "output_error": "out. error",
    "keys_read": "keys read",
    "search_p50_us": "p50",
    "attend_p50_us": "attend p50",
    "build_s": "build",
    "host_bytes": "memory",
}
SHOWN = [QUANTITIES[column] for column in TITLES]
EQUAL = "="


def tables(found: Sequence[Change], paired: Sequence[Paired]) -> list[Table]:
    """A table a k: a line for each setting, a column for each quantity that some setting has."""
    by_setting = {(change.paired.setting, change.quantity.column): change for change in found}
    shown = [quantity for quantity in SHOWN if any(change.quantity == quantity for change in found)]
    made = []
    for k in sorted({one.setting.k for one in paired}):
        titles = [TITLES[quantity.column] for quantity in shown]
        table = plain_table(f"k={k}, B less A", ["index", "effort", "heads"], titles)
        here = [one for one in paired if one.setting.k == k]
        for place, one in enumerate(here):
            cells = [cell(by_setting.get((one.setting, quantity.column))) for quantity in shown]
            index = one.setting.index
            last = place + 1 == len(here) or here[place + 1].setting.index != index
            table.add_row(index, _effort(one.setting), str(len(one.heads)), *cells, end_section=last)
        made.append(table)
    return made


def cell(change: Change | None) -> str:
    """`+0.012 [+0.010, +0.014]`, `+12% [+8, +15]`; `=` where nothing changed at all."""
    if change is None:
        return NOTHING
    if change.before == change.after:
        return EQUAL
    relative = change.quantity.relative
    value, ends = change.value(relative), change.interval(relative)
    if relative:
        return f"{100 * value:+.0f}%" + (f" [{100 * ends.low:+.0f}, {100 * ends.high:+.0f}]" if ends else "")
    return f"{value:+.4f}" + (f" [{ends.low:+.4f}, {ends.high:+.4f}]" if ends else "")


def summary(found: Sequence[Change]) -> list[str]:
    """A line for each shown quantity: how many settings got better or worse, and how many are not certain."""
    lines = []
    for quantity in SHOWN:
        held = [change for change in found if change.quantity == quantity]
        if not held:
            continue
        certain = [change for change in held if change.is_certain]
        better = sum(change.is_better for change in certain)
        equal = sum(change.before == change.after for change in held)
        parts = [
            f"{better} better",
            f"{len(certain) - better} worse",
            f"{len(held) - len(certain) - equal} not certain",
            f"{equal} equal",
        ]
        lines.append(f"{quantity.column}: {', '.join(parts)}")
    if any(change.quantity.is_time for change in found):
        lines.append(
            "Intervals of times hold what differs between the queries and passes of a run; two runs of the"
            " same code differ by more on a busy machine."
        )
    return lines


def heading(a: Side, b: Side) -> list[str]:
    """The two sides, their commits, and the versions and variables that differ."""
    lines = [_side(side) for side in (a, b)]
    first, second = (json.loads(side.measured[0].get("environment") or "{}") for side in (a, b))
    named = (facts.get("versions", {}) | facts.get("variables", {}) for facts in (first, second))
    for name, pair in _differing(*named).items():
        lines.append(f"{name}: {pair[0]} in A, {pair[1]} in B")
    return lines


def fallen_line(gate: Gate, change: Change) -> str:
    """Which gate fell, where, and from what to what."""
    setting = change.paired.setting
    shown = f"{change.before:.4g} → {change.after:.4g}"
    value = change.value(gate.relative)
    amount = f"{100 * value:+.1f}%" if gate.relative else f"{value:+.4g}"
    interval = _interval(change.interval(gate.relative), gate.relative)
    place = f"{setting.index}, k={setting.k}, {_effort(setting) or 'no effort'}"
    return f"gate {gate.text} fell: {place}: {gate.quantity.column} {shown}, {amount}{interval}"


def as_row(change: Change) -> dict[str, Any]:
    """A change as JSON holds it; intervals in the unit of `change`."""
    quantity, setting = change.quantity, change.paired.setting
    return {
        "index": setting.index,
        "settings": json.loads(setting.settings),
        "k": setting.k,
        "effort": json.loads(setting.effort),
        "quantity": quantity.column,
        "heads": len(change.paired.heads),
        "before": change.before,
        "after": change.after,
        "change": change.value(quantity.relative),
        "relative": quantity.relative,
        "by_query": change.by_query(quantity.relative),
        "by_head": change.by_head(quantity.relative),
        "p_value": change.p_value,
        "same_machine": change.paired.same_machine,
    }


def columns_of(gates: Sequence[Gate]) -> list[Quantity]:
    """What the tables show and the gates ask for."""
    return list(dict.fromkeys([*SHOWN, *(gate.quantity for gate in gates)]))


def _interval(ends: Ends | None, relative: bool) -> str:
    if ends is None:
        return ", no interval"
    if relative:
        return f" [{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]"
    return f" [{ends.low:+.4g}, {ends.high:+.4g}]"


def _side(side: Side) -> str:
    environment = json.loads(side.measured[0].get("environment") or "{}") if side.measured else {}
    commit = environment.get("commit", "")[:8] or "unknown"
    line = f"{side.name}: {side.path}, {len(side.measured)} rows, commit {commit}"
    return line + (f"; {side.outdated} older units left out" if side.outdated else "")


def _effort(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in json.loads(setting.effort).items())


def _differing(first: dict[str, str], second: dict[str, str]) -> dict[str, tuple[str, str]]:
    names = sorted(first.keys() | second.keys())
    pairs = {name: (first.get(name) or "none", second.get(name) or "none") for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
