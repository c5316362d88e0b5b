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
    for in_scope in by(rows, SCOPE).values():
        runs = list(by(in_scope, ("index", "k")).values())
        common = set.intersection(*({_sample(row) for row in run} for run in runs))
        for run in runs:
            # An unfinished run is compared on what all have answered, where there is any.
            shared = [row for row in run if _sample(row) in common] or run
            tasks = {task: group for (task,), group in by(run, ("task",)).items()}
            made += [_point(task, group) for task, group in (tasks | {ALL_TASKS: shared}).items()]
    return made


def _sample(row: Row) -> tuple:
    return row["task"], row["sample"]


def _point(task: str, rows: Sequence[Row]) -> Row:
    names = (*SCOPE, "context_tokens", "index", "run", "k", "effort", "settings", "effort_json", "capture")
    point: Row = {name: rows[0].get(name) for name in names} | {"task": task, "samples": len(rows)}
    point |= {name: _mean(rows, name) for name in MEANS}
    return point | _interval([row["score"] for row in rows if row.get("score") is not None])


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
