"""The tables that `decode` prints: what each run answered, and what its tokens cost, dense beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.table import Table

from ra_bench.decode.tasks import FIDELITY
from ra_bench.results import Row
from ra_bench.table import NOTHING, Column, number, plain_table

TIME_COLUMNS = (
    Column("ms/token", "tpot_ms", 2),
    Column("p95", "tpot_p95_ms", 2),
    Column("tokens/s", "tokens_per_s", 1),
    Column("model", "model_ms", 2),
    Column("copy", "copy_ms", 2),
    Column("search", "search_ms", 2),
    Column("CPU att.", "cpu_attention_ms", 2),
    Column("GPU att.", "gpu_attention_ms", 2),
    Column("merge", "merge_ms", 2),
    Column("insert", "insert_ms", 2),
    Column("harness", "harness_ms", 2),
    Column("keys read %", "keys_read_share", 2, factor=100),
    Column("MB read", "bytes_read", 1, factor=1e-6),
)
COST_COLUMNS = (
    Column("TTFT s", "ttft_s", 2),
    Column("KNN s", "knn_s", 2),
    Column("build s", "build_s", 2),
    Column("TTFT with build s", "ttft_build_s", 2),
    Column("host KV GB", "host_kv_bytes", 3, factor=1e-9),
    Column("index GB", "index_bytes", 3, factor=1e-9),
)
DEVICE_COLUMNS = (
    Column("GPU KV GB", "device_kv_bytes", 2, factor=1e-9),
    Column("GPU peak GB", "decode_device_bytes", 2, factor=1e-9),
    Column("prefill peak GB", "prefill_device_bytes", 2, factor=1e-9),
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
    counts = {task: len({row["sample"] for row in rows if row["task"] == task}) for task in tasks}
    titles = [title for task in tasks for title in (f"{task} ({counts[task]})", "Δ dense")]
    table = plain_table("score ± standard error (samples); Δ: paired", ["index", "k"], titles)
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
    titles = ["KL, nats", "top-1 agreement", "ΔNLL, nats"]
    table = plain_table("next tokens against dense's, teacher-forced", ["index", "k"], titles)
    for name, group in _runs(rows):
        columns = ("kl", "top1_agreement", "delta_nll")
        table.add_row(*name, *(number(_mean(group, column), 4) for column in columns))
    return table


def _times(rows: Sequence[Row]) -> Table:
    title, titles = "a decoded token: its time in ms, and where it goes", _titles(TIME_COLUMNS)
    table = plain_table(title, ["index", "k", "path"], titles)
    for name, group in _runs(rows):
        table.add_row(*name, str(group[0]["capture"]), *_cells(group, TIME_COLUMNS))
    return table


def _costs(rows: Sequence[Row]) -> Table:
    columns = COST_COLUMNS if rows[0]["device"] == "CPU" else (*COST_COLUMNS, *DEVICE_COLUMNS)
    titles = [*_titles(columns), "break-even tokens"]
    table = plain_table("what it takes to begin, and memory", ["index", "k"], titles)
    for name, group in _runs(rows):
        baseline = name[0] in ("dense", "dense-host")
        table.add_row(*name, *_cells(group, columns), NOTHING if baseline else _break_even(group))
    return table


def _titles(columns: Sequence[Column]) -> list[str]:
    return [column.title for column in columns]


def _cells(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    return [column.cell({column.quantity: _mean(rows, column.quantity)}) for column in columns]


def _break_even(rows: Sequence[Row]) -> str:
    """Output tokens from which the run beats dense, or else dense-host; the median of the samples."""
    for column, of in (("break_even_tokens", ""), ("break_even_host_tokens", " (host)")):
        known = [row[column] for row in rows if row[column] is not None]
        if len(known) * 2 > len(rows):
            return f"{float(np.median(known)):,.0f}{of}"
    return "never"


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


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
