"""Rows of `decode` → points: one a run (index and k) and task, the mean over its samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ra_bench.report.compared import by, settings_text
from ra_bench.report.rows import Run
from ra_bench.results import Row

ALL_TASKS = "all tasks"
SCOPE = ("model", "context", "machine")
PARTS = (
    ("model_ms", "model"),
    ("copy_ms", "copy to host"),
    ("search_ms", "search"),
    ("cpu_attention_ms", "CPU attention"),
    ("gpu_attention_ms", "device attention"),
    ("merge_ms", "merge"),
    ("insert_ms", "insert"),
    ("harness_ms", "harness"),
)
MEMORY = (
    ("host_kv_bytes", "keys and values, host"),
    ("index_bytes", "indexes"),
    ("device_kv_bytes", "keys and values, device"),
)
MEANS = (
    *("score", "dense_score", "kl", "top1_agreement", "delta_nll", "tpot_ms", "tpot_p95_ms", "tokens_per_s"),
    *("keys_read_share", "build_s", "knn_s", "ttft_s", "ttft_build_s", "prefill_tokens"),
    *(name for name, _ in (*PARTS, *MEMORY)),
)


def labelled_rows(runs: Sequence[Run]) -> list[Row]:
    """The measured rows of all `decode` runs; equal units in two folders count once."""
    rows: dict[tuple, Row] = {}
    for run in runs:
        if run.verb != "decode":
            continue
        context = run.identity.get("context_tokens")
        for row in run.ok:
            name = str(row["index"])
            rows[row["unit"], row["machine"]] = row | {
                "model": _model_name(row),
                "context": f"{context:,} tokens" if context else "",
                "context_tokens": context,
                "index": name,
                "run": name if row["k"] is None else f"{name} k={row['k']}",
                "effort_json": row.get("effort"),
                "effort": settings_text(row.get("effort")),
                "settings": settings_text(row.get("settings")),
            }
    return list(rows.values())


def points(rows: Iterable[Row]) -> list[Row]:
    """One point a run and task, and one over all tasks: means over samples, with the score's interval."""
    made = []
    for same in by(rows, (*SCOPE, "index", "k")).values():
        tasks = by(same, ("task",))
        groups = {task: group for (task,), group in tasks.items()} | {ALL_TASKS: same}
        for task, group in groups.items():
            names = (
                *SCOPE,
                "context_tokens",
                "index",
                "run",
                "k",
                "effort",
                "settings",
                "effort_json",
                "device",
                "capture",
            )
            point: Row = {name: group[0].get(name) for name in names} | {"task": task, "samples": len(group)}
            point |= {name: _mean(group, name) for name in MEANS}
            point |= _interval([row["score"] for row in group if row.get("score") is not None])
            made.append(point)
    return made


def _interval(scores: Sequence[float]) -> Row:
    """The score less and plus one standard error; None below two samples."""
    if len(scores) < 2:
        return {"score_low": None, "score_high": None}
    error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5
    middle = float(np.mean(scores))
    return {"score_low": max(0.0, middle - error), "score_high": min(1.0, middle + error)}


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of those that have a value: a teacher-forced task has no score, others no divergence."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def _model_name(row: Row) -> str:
    return f"{row['model']} (random weights)" if row.get("random_weights") else str(row["model"])
