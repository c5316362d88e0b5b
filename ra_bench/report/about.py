"""What a page says beside its figures: filters, runs, failures, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ra_bench.report import compared, decoded, drifted
from ra_bench.report.figure import Figure, LeftOut
from ra_bench.report.material import Material
from ra_bench.report.rows import Run
from ra_bench.results import Row

ALL = "*"  # the option of a filter that filters nothing
LABELS = {
    "data": "Data set",
    "k": "k",
    "split": "Split",
    "head": "KV head",
    "model": "Decoded model",
    "context": "Context",
    "task": "Task",
    "machine": "Machine",
}


@dataclass
class Page:
    """Everything that a page shows."""

    material: Material
    figures: list[Figure]
    left_out: list[LeftOut]
    headlines: list[Row]
    notes: list[str]
    made_s: str  # when the page was made, ISO 8601
    version: str
    filters: list[dict[str, Any]] = field(init=False)
    scopes: dict[str, list[Row]] = field(init=False)

    def __post_init__(self) -> None:
        self.scopes = {
            "compare": _scopes(self.material.compare, compared.SCOPE),
            "decode": _scopes(self.material.decode, decoded.SCOPE),
            "drift": _scopes(self.material.drift, drifted.SCOPE),
        }
        self.filters = filters(self.material)

    @property
    def title(self) -> str:
        """The data sets and models, in a line."""
        names = [
            *(row["data"] for row in self.scopes["compare"]),
            *(row["model"] for row in self.scopes["decode"]),
            *(row["data"] for row in self.scopes["drift"]),
        ]
        return ", ".join(dict.fromkeys(names))

    @property
    def summary(self) -> str:
        """How much there is, in a line."""
        compare, decode = self.material.compare, self.material.decode
        parts = []
        if compare:
            indexes = {row["index"] for row in compare if row["role"] == "index"}
            heads = {(row["data"], row["head"]) for row in compare}
            what = f"{_count(len(compare), 'setting')} of {_count(len(indexes), 'index', 'indexes')}"
            parts.append(f"{what} on {_count(len(heads), 'KV head')}")
        if decode:
            runs = {row["run"] for row in decode}
            parts.append(f"{_count(len(decode), 'decoded answer')} of {_count(len(runs), 'run')}")
        if drift := self.material.drift:
            indexes = {row["index"] for row in drift}
            parts.append(f"{_count(len(indexes), 'index', 'indexes')} that took later tokens")
        return "; ".join(parts)

    @property
    def failures(self) -> list[dict[str, str]]:
        """The units that did not end well, those of one reason together."""
        return failures(self.material.runs)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Each run's folder, commands and environments."""
        return [run_facts(run, self.material) for run in self.material.runs]


def filters(material: Material) -> list[dict[str, Any]]:
    """What a reader can filter by, what is shown at first in front."""
    compare, decode, drift = material.compare, material.decode, material.drift
    options: dict[str, list[Any]] = {
        "data": list(
            dict.fromkeys((*_most_first(row["data"] for row in compare), *(row["data"] for row in drift)))
        ),
        "k": sorted({row["k"] for row in compare}),
        "split": sorted({row["split"] for row in compare}),
        "head": [compared.MEAN, *material.heads] if len(material.heads) > 1 else [],
        "model": _most_first(row["model"] for row in decode),
        "context": _most_first(row["context"] for row in decode),
        "task": [decoded.ALL_TASKS, *dict.fromkeys(row["task"] for row in decode)] if decode else [],
        "machine": _most_first(row["machine"] for row in (*compare, *decode, *drift)),
    }
    made = []
    for name, values in options.items():
        labels = [
            (value, "mean over all" if value == compared.MEAN and name == "head" else str(value))
            for value in values
        ]
        if name == "machine" and len(values) > 1:
            labels.append((ALL, "all machines (mixes latencies)"))
        made.append({"name": name, "label": LABELS[name], "options": labels})
    return made


def failures(runs: Iterable[Run]) -> list[dict[str, str]]:
    """What failed, timed out or was skipped: index, status, reason, and on how many heads or samples."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for run in runs:
        for row in run.rows:
            if row["status"] != "ok":
                place = _place(row)
                cause = (run.name, str(row["index"]), str(row["status"]), str(row.get("reason") or ""))
                found.setdefault(cause, []).append(place)
    return [
        {"run": run, "index": index, "status": status, "reason": reason, "where": _some(places)}
        for (run, index, status, reason), places in found.items()
    ]


def run_facts(run: Run, material: Material) -> dict[str, Any]:
    """A run as the page tells of it: what it measured, with which commands, where."""
    labelled = {"compare": material.compare, "decode": material.decode, "drift": material.drift}[run.verb]
    units = {row["unit"] for row in run.ok}
    mine = [row for row in labelled if row["unit"] in units]
    environments = list(dict.fromkeys(row["environment"] for row in run.ok if row.get("environment")))
    return {
        "name": run.name,
        "verb": run.verb,
        "rows": len(run.ok),
        "data": sorted({row["data"] for row in mine}) if run.verb != "decode" else [],
        "model": sorted({row["model"] for row in mine}) if run.verb == "decode" else [],
        "context": sorted({row["context"] for row in mine}) if run.verb == "decode" else [],
        "split": run.identity.get("split"),
        "machines": run.machines,
        "sizes": sorted({row["shape"] for row in mine if row.get("shape")}),
        "threads": sorted({row["threads"] for row in run.ok if row.get("threads") is not None}),
        "commands": run.commands,
        "environments": [environment_text(text) for text in environments],
    }


def environment_text(text: str) -> str:
    """A machine, its versions and variables in a line, from a row's JSON."""
    try:
        facts = json.loads(text)
    except ValueError:
        return text
    versions = ", ".join(
        f"{name} {version}" for name, version in (facts.get("versions") or {}).items() if version
    )
    memory = facts.get("memory_bytes")
    parts = [
        facts.get("cpu"),
        f"{facts['cores']} cores" if facts.get("cores") else None,
        f"{memory / 1e9:.0f} GB" if memory else None,
        facts.get("gpu") or "no GPU",
        f"kernels {facts['kernels']}" if facts.get("kernels") else None,
        facts.get("platform"),
        f"Python {facts.get('python')}",
        f"ra-bench {facts.get('ra_bench')}"
        + (
            f" at {facts['commit'][:12]}{'+dirty' * facts['commit'].endswith('+dirty')}"
            if facts.get("commit")
            else ""
        ),
        versions,
        ", ".join(f"{name}={value}" for name, value in (facts.get("variables") or {}).items()),
    ]
    return "; ".join(str(part) for part in parts if part)


def _scopes(rows: Iterable[Row], names: Sequence[str]) -> list[Row]:
    return [dict(zip(names, values, strict=True)) for values in compared.by(rows, names)]


def _most_first(values: Iterable[Any]) -> list[Any]:
    counted: dict[Any, int] = {}
    for value in values:
        counted[value] = counted.get(value, 0) + 1
    return sorted(counted, key=lambda value: -counted[value])


def _place(row: Row) -> str:
    if "kv_head" in row:
        return f"{row['document']}/layer{row['layer']}/head{row['kv_head']}"
    k = "" if row.get("k") is None else f" k={row['k']}"
    return f"{row.get('task')} {row.get('sample')}{k}"


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
