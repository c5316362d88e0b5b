"""Which rows of two sides belong together: head, index, settings, k and effort."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ra_bench.diff.sides import Side
from ra_bench.errors import RunError
from ra_bench.results import DONE, Row


class Head(NamedTuple):
    """A KV head of the data."""

    document: str
    layer: int | None  # None where a published data set does not tell it
    kv_head: int | None


@dataclass(frozen=True)
class Setting:
    """What was measured on a head; settings and effort as JSON with sorted keys."""

    index: str
    settings: str
    k: int
    effort: str


@dataclass(frozen=True, eq=False)
class Paired:
    """One setting: the heads that both sides measured, and their rows in the same order."""

    setting: Setting
    heads: list[Head]
    before: list[Row]
    after: list[Row]

    def both(self, column: str) -> tuple[list[Any], list[Any]]:
        """A column of A's rows and of B's, by head."""
        return [row.get(column) for row in self.before], [row.get(column) for row in self.after]

    @property
    def same_machine(self) -> bool:
        """Whether every pair was measured on one machine, so that its times can be compared."""
        return all(a["machine"] == b["machine"] for a, b in zip(self.before, self.after, strict=True))


def pair(a: Side, b: Side) -> list[Paired]:
    """All settings that both sides measured, in the order of A. Raises RunError where there is none."""
    before, after = _by_setting(a.measured), _by_setting(b.measured)
    paired = []
    for setting, rows in before.items():
        heads = [head for head in rows if head in after.get(setting, {})]
        if heads:
            found = after[setting]
            paired.append(Paired(setting, heads, [rows[head] for head in heads], [found[h] for h in heads]))
    if not paired:
        raise RunError(f"A and B have nothing in common: {'; '.join(unpaired(a, b))}")
    return paired


def unpaired(a: Side, b: Side) -> list[str]:
    """A line for each index that one side measured and the other did not, or not so."""
    return [*_only_in(a, b), *_only_in(b, a)]


def newly_failed(a: Side, b: Side) -> list[str]:
    """A line for each unit that ended well in A and does not in B."""
    well = {_unit(row) for row in a.measured}
    return [
        f"{row['index']} on {_name(row)} was measured in A, and in B it is {row['status']}: {row['reason']}"
        for row in b.rows
        if row["status"] not in DONE and _unit(row) in well
    ]


def _by_setting(rows: Iterable[Row]) -> dict[Setting, dict[Head, Row]]:
    found: dict[Setting, dict[Head, Row]] = {}
    for row in rows:
        found.setdefault(_setting(row), {})[_head(row)] = row
    return found


def _only_in(side: Side, other: Side) -> Iterable[str]:
    there = [(_head(row), _setting(row)) for row in other.measured]
    paired, reasons = set(there), Counter[tuple[str, str]]()
    for row in side.measured:
        if (_head(row), _setting(row)) not in paired:
            reasons[row["index"], _why(_head(row), _setting(row), there)] += 1
    for (index, why), count in reasons.items():
        rows = "1 row" if count == 1 else f"{count} rows"
        yield f"only in {side.name}: {rows} of {index}: {why.format(other.name)}"


def _why(head: Head, setting: Setting, there: Sequence[tuple[Head, Setting]]) -> str:
    same_index = [(other, one) for other, one in there if one.index == setting.index]
    if not same_index:
        return "{} did not measure that index"
    on_head = [one for other, one in same_index if other == head]
    if not on_head:
        return "{} did not measure it on that head"
    if all(one.settings != setting.settings for one in on_head):
        return "{} built it with other settings" + _difference(setting.settings, on_head[0].settings)
    if all(one.k != setting.k for one in on_head):
        return "{} did not measure that k"
    return "{} did not measure that effort"


def _difference(settings: str, others: str) -> str:
    mine, theirs = json.loads(settings), json.loads(others)
    names = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
    return f" ({', '.join(names)})" if names else ""


def _unit(row: Row) -> tuple[Head, str]:
    return _head(row), row["index"]


def _head(row: Row) -> Head:
    return Head(row["document"], row["layer"], row["kv_head"])


def _name(row: Row) -> str:
    if row["layer"] is None:  # a published data set may not tell it
        return str(row["document"])
    return f"{row['document']}/layer{row['layer']}/head{row['kv_head']}"


def _setting(row: Row) -> Setting:
    return Setting(row["index"], _sorted(row["settings"]), row["k"], _sorted(row["effort"]))


def _sorted(text: str | None) -> str:
    content: Any = json.loads(text) if text else {}
    return json.dumps(content, sort_keys=True)
