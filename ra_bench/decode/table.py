"""The tables that `decode` prints: what each run answered, and what its tokens cost, dense beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ra_bench.decode.tasks import FIDELITY
from ra_bench.results import Row

NOTHING = "–"

# Title, column, factor, digits.
TIME_COLUMNS = (
    ("ms/token", "tpot_ms", 1.0, 2),
    ("p95", "tpot_p95_ms", 1.0, 2),
    ("tokens/s", "tokens_per_s", 1.0, 1),
    ("model", "model_ms", 1.0, 2),
    ("copy", "copy_ms", 1.0, 2),
    ("search", "search_ms", 1.0, 2),
    ("CPU att.", "cpu_attention_ms", 1.0, 2),
    ("GPU att.", "gpu_attention_ms", 1.0, 2),
    ("merge", "merge_ms", 1.0, 2),
    ("insert", "insert_ms", 1.0, 2),
    ("harness", "harness_ms", 1.0, 2),
    ("keys read %", "keys_read_share", 100.0, 2),
    ("MB read", "bytes_read", 1e-6, 1),
)
COST_COLUMNS = (
    ("TTFT s", "ttft_s", 1.0, 2),
    ("KNN s", "knn_s", 1.0, 2),
    ("build s", "build_s", 1.0, 2),
    ("TTFT with build s", "ttft_build_s", 1.0, 2),
    ("host KV GB", "host_kv_bytes", 1e-9, 3),
    ("index GB", "index_bytes", 1e-9, 3),
)
DEVICE_COLUMNS = (
    ("GPU KV GB", "device_kv_bytes", 1e-9, 2),
    ("GPU peak GB", "decode_device_bytes", 1e-9, 2),
    ("prefill peak GB", "prefill_device_bytes", 1e-9, 2),
)


def heading(rows: Sequence[Row]) -> str:
    """What the tables are of, in a line."""
    first = rows[0]
    weights = " with RANDOM WEIGHTS" if first["random_weights"] else ""
    threads = f"{first['threads']} {_plural('thread', first['threads'])}"
    tokens = f"{_mean(rows, 'prefill_tokens'):,.0f} tokens prefilled"
    return (
        f"{first['model']}{weights} on {first['device']} in {first['compute_dtype']}, {threads}, {tokens},"
        f" {first['protocol']}"
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """Tables of answers, of what a token costs, and of what it takes to begin; of the rows that are ok."""
    measured = [row for row in rows if row["status"] == "ok"]
    asked = [row for row in measured if row["score"] is not None]
    forced = [row for row in measured if row["task"] == FIDELITY]
    made = []
    if asked:
        made.append(_scores(asked))
    if forced:
        made.append(_fidelity(forced))
    if measured:
        made += [_times(measured), _costs(measured)]
    return made


def ended(rows: Sequence[Row], statuses: Iterable[str]) -> list[str]:
    """A line for each kind of run that ended with one of `statuses`, with how many samples and a reason."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["status"] in statuses:
            found.setdefault((row["index"], row["k"], row["status"], row["reason"]), []).append(row)
    lines = []
    for (index, k, status, reason), same in found.items():
        name = index if k is None else f"{index} k={k}"
        lines.append(f"{name}: {status} on {len(same)} {_plural('sample', len(same))}: {reason}")
    return lines


def _scores(rows: Sequence[Row]) -> Table:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    table = _table("score ± standard error (samples); Δ: paired", ["index", "k"])
    for task in tasks:
        count = len({row["sample"] for row in rows if row["task"] == task})
        table.add_column(f"{task} ({count})", justify="right")
        table.add_column("Δ dense", justify="right")
    for name, group in _runs(rows):
        cells = []
        for task in tasks:
            mine = [row for row in group if row["task"] == task]
            cells.append(_with_error([row["score"] for row in mine]))
            paired = [row["score"] - row["dense_score"] for row in mine if row["dense_score"] is not None]
            cells.append(_with_error(paired, sign=True))
        table.add_row(*name, *cells)
    return table


def _fidelity(rows: Sequence[Row]) -> Table:
    table = _table("next tokens against dense's, teacher-forced", ["index", "k"])
    for title in ("KL, nats", "top-1 agreement", "ΔNLL, nats"):
        table.add_column(title, justify="right")
    for name, group in _runs(rows):
        columns = ("kl", "top1_agreement", "delta_nll")
        table.add_row(*name, *(_number(_mean(group, column), 4) for column in columns))
    return table


def _times(rows: Sequence[Row]) -> Table:
    table = _table("a decoded token: its time in ms, and where it goes", ["index", "k", "path"])
    for title, *_ in TIME_COLUMNS:
        table.add_column(title, justify="right")
    for name, group in _runs(rows):
        table.add_row(*name, str(group[0]["capture"]), *_cells(group, TIME_COLUMNS))
    return table


def _costs(rows: Sequence[Row]) -> Table:
    columns = COST_COLUMNS if rows[0]["device"] == "CPU" else (*COST_COLUMNS, *DEVICE_COLUMNS)
    table = _table("what it takes to begin, and memory", ["index", "k"])
    for title, *_ in columns:
        table.add_column(title, justify="right")
    table.add_column("break-even tokens", justify="right")
    for name, group in _runs(rows):
        baseline = name[0] in ("dense", "dense-host")
        table.add_row(*name, *_cells(group, columns), NOTHING if baseline else _break_even(group))
    return table


def _cells(rows: Sequence[Row], columns: Sequence[tuple[str, str, float, int]]) -> list[str]:
    values = [_mean(rows, column) for _, column, _, _ in columns]
    return [
        _number(None if value is None else value * factor, digits)
        for value, (_, _, factor, digits) in zip(values, columns, strict=True)
    ]


def _break_even(rows: Sequence[Row]) -> str:
    """Output tokens from which the run beats dense, or else dense-host; the median of the samples."""
    for column, of in (("break_even_tokens", ""), ("break_even_host_tokens", " (host)")):
        known = [row[column] for row in rows if row[column] is not None]
        if len(known) * 2 > len(rows):
            return f"{float(np.median(known)):,.0f}{of}"
    return "never"


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table


def _runs(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["index"], "" if row["k"] is None else str(row["k"])), []).append(row)
    return list(groups.items())


def _with_error(values: Sequence[float], sign: bool = False) -> str:
    if not values:
        return NOTHING
    mean = f"{np.mean(values):{'+' if sign else ''}.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}"


def _mean(rows: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(values)) if values else None


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
