"""Rows of `compare` → points: one an index, setting and head, and the mean of each setting over the heads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ra_bench.compare import ALWAYS
from ra_bench.report.rows import Run
from ra_bench.results import Row

ORACLE, FLOORS = ALWAYS[0], ALWAYS[1:]
MEAN = ""  # the head of a point that is a mean over all heads
SCOPE = ("data", "machine", "split", "k")
QUALITIES = ("recall", "recall_p05", "mass_total", "mass_of_indexed", "output_error")
COSTS = ("search_p50_us", "attend_p50_us", "queries_per_s", "keys_share", "attend_bytes", "bytes_per_key")
MEANS = (
    *QUALITIES,
    *COSTS,
    "search_p95_us",
    "attended",
    "static_mass",
    "build_s",
    "knn_s",
    "insert_us_per_key",
)


def labelled_rows(runs: Sequence[Run]) -> list[Row]:
    """The measured rows of all `compare` runs, with what charts name them by.

    Adds `head`, `base` (the index without its transform), `role` and shares. Equal units in two folders count
    once; where an index was measured twice otherwise, its label tells the folder.
    """
    runs = [run for run in runs if run.verb == "compare"]
    names = _data_names(runs)
    owners: dict[tuple, set[str]] = defaultdict(set)
    seen: set[tuple] = set()
    kept: list[tuple[Run, Row]] = []
    for run in runs:
        for row in run.ok:
            if row.get("for_budgets"):  # a k that nobody asked for, measured for the budget tables
                continue
            same = (row["unit"], row["k"], row["effort_rank"], row["machine"])
            if same not in seen:
                seen.add(same)
                kept.append((run, row))
                owners[_place(row, names)].add(run.name)
    documents = {row["document"] for _, row in kept}
    return [
        _labelled(row, run, names, len(documents) > 1, len(owners[_place(row, names)]) > 1)
        for run, row in kept
    ]


def points_of_heads(rows: Iterable[Row]) -> list[Row]:
    """One point a row: an index at a setting on a head."""
    return [
        _facts(row) | {"head": row["head"], "heads": "1"} | {name: row.get(name) for name in MEANS}
        for row in rows
    ]


def points_over_heads(rows: Iterable[Row]) -> list[Row]:
    """One point an index and setting: the mean over heads. `heads` tells how many, of how many in scope."""
    points = []
    for in_scope in by(rows, SCOPE).values():
        heads = {row["head"] for row in in_scope}
        for sweep in by(in_scope, ("index",)).values():
            measured = {row["head"] for row in sweep}
            for rows_at_rank in carried_over_heads(sweep):
                point = _facts(rows_at_rank[0])
                efforts = {row["effort"] for row in rows_at_rank}
                point["effort"] = point["effort"] if len(efforts) == 1 else "differs by head"
                point |= {name: mean([row.get(name) for row in rows_at_rank]) for name in MEANS}
                points.append(point | {"head": MEAN, "heads": f"{len(measured)} of {len(heads)}"})
    return points


def carried_over_heads(sweep: Sequence[Row]) -> list[list[Row]]:
    """Of one index at one k: for each effort rank a row of every head, the last one of a sweep that ended."""
    by_head: dict[str, dict[int, Row]] = {}
    for row in sweep:
        by_head.setdefault(row["head"], {})[row["effort_rank"]] = row
    ranks = sorted({rank for rows in by_head.values() for rank in rows})
    return [[rows.get(rank) or rows[max(rows)] for rows in by_head.values()] for rank in ranks]


def by(rows: Iterable[Row], columns: Sequence[str]) -> dict[tuple, list[Row]]:
    """Groups of rows with the same values in `columns`, in order of appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in columns), []).append(row)
    return groups


def mean(values: Sequence[Any]) -> float | None:
    """The mean, or None where a value is missing: no mean of a part passes for that of the whole."""
    if not values or any(value is None for value in values):
        return None
    return float(sum(values) / len(values))


def head_label(row: Row, documents: bool) -> str:
    """A head as a reader knows it, its document too where there are several `documents`."""
    if row["layer"] is None:  # a published data set may not tell its layers; its document is then the head
        return str(row["document"])
    head = f"layer {row['layer']}, KV head {row['kv_head']}"
    return f"{row['document']}, {head}" if documents else head


def settings_text(settings: str | None) -> str:
    """Settings as a person reads them, from their JSON."""
    try:
        facts = json.loads(settings or "{}")
    except ValueError:
        return settings or ""
    return (
        ", ".join(f"{name}={value}" for name, value in facts.items())
        if isinstance(facts, dict)
        else str(facts)
    )


def _data_names(runs: Iterable[Run]) -> dict[str, str]:
    """Content hash of a data set → its name, told apart from others of the same name."""
    named = {str(row["data_hash"]): str(row["data"]) for run in runs for row in run.rows}
    twice = [name for name in named.values() if list(named.values()).count(name) > 1]
    return {key: f"{name} ({key[:6]})" if name in twice else name for key, name in named.items()}


def _place(row: Row, names: Mapping[str, str]) -> tuple:
    head = (row["document"], row["layer"], row["kv_head"])
    return (
        names[str(row["data_hash"])],
        row["machine"],
        row["split"],
        row["k"],
        row["index"],
        head,
        row["effort_rank"],
    )


def _labelled(row: Row, run: Run, names: Mapping[str, str], documents: bool, twice: bool) -> Row:
    n, d, read = row.get("n"), row.get("d"), row.get("keys_read")
    size = (
        None
        if row.get("host_bytes") is None or not n
        else (row["host_bytes"] + (row["device_bytes"] or 0)) / n
    )
    index = str(row["index"])
    return row | {
        "data": names[str(row["data_hash"])],
        "index": f"{index} · {run.name}" if twice else index,
        "spec": index,
        "base": index.removesuffix(f"@{row['transform']}"),
        "role": "oracle" if index == ORACLE else "floor" if index in FLOORS else "index",
        "learns": bool(row.get("learn_queries")),
        "head": head_label(row, documents),
        "effort": settings_text(row.get("effort")),
        "settings": settings_text(row.get("settings")),
        "effort_json": row.get("effort"),
        "keys_share": None if read is None or not n else read / n,
        "bytes_per_key": size,
        "shape": f"n {n:,}, d {d}" if n and d else "",
    }


def _facts(row: Row) -> Row:
    names = (
        *SCOPE,
        "index",
        "spec",
        "base",
        "role",
        "learns",
        "transform",
        "effort",
        "settings",
        "effort_rank",
        "effort_json",
        "model",
        "group",
    )
    return {name: row.get(name) for name in names}
