"""Rows of `drift` → points: an index after a number of inserted tokens, on each head and over the heads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench.report.compared import MEAN, by, head_label, mean, settings_text
from ra_bench.report.rows import FILE, PLACE, Run
from ra_bench.results import Row
from ra_bench.statistics import Interval, paired_by_head, paired_by_query

SCOPE = ("data", "machine")
SIDES = ("whole", "grown")
POINT = (*SCOPE, "k", "target", "index", "inserted")
MEANS = (
    *("recall_whole", "recall_grown", "share_whole", "share_grown", "insert_us_per_token"),
    *("build_whole_s", "build_grown_s"),
)


def labelled_rows(runs: Sequence[Run]) -> list[Row]:
    """The measured rows of all `drift` runs; equal units count once, others of one place tell the folder."""
    owners: dict[tuple, set[str]] = defaultdict(set)
    kept: dict[tuple, tuple[Run, Row]] = {}
    for run in runs:
        for row in run.ok if run.verb == "drift" else ():
            if kept.setdefault((row["unit"], row["inserted"], row["machine"]), (run, row))[1] is row:
                owners[_place(row)].add(run.name)
    documents = len({row["document"] for _, row in kept.values()}) > 1
    last: dict[str, int] = defaultdict(int)
    for _, row in kept.values():
        last[row["unit"]] = max(last[row["unit"]], row["n"])
    return [
        row
        | {
            "index": f"{row['index']} · {run.name}" if len(owners[_place(row)]) > 1 else str(row["index"]),
            "head": head_label(row, documents),
            "effort": settings_text(row["effort"]),
            "settings": settings_text(row["settings"]),
            "shape": f"n {last[row['unit']]:,}, d {row['d']}",
            **{f"share_{side}": _share(row[f"keys_read_{side}"], row["n"]) for side in SIDES},
        }
        for run, row in kept.values()
    ]


def points(rows: Iterable[Row]) -> list[Row]:
    """Each index after each number of tokens: the mean over heads, and each head where there are several."""
    rows = list(rows)
    heads = {row["head"] for row in rows}
    made = []
    for same in by(rows, POINT).values():
        made.append(_point(same, MEAN))
        if len(heads) > 1:
            made += [_point([row], row["head"]) for row in same]
    return made


def _point(rows: Sequence[Row], head: str) -> Row:
    efforts = {row["effort"] for row in rows}
    point = {name: rows[0][name] for name in (*POINT, "settings")} | {
        "head": head,
        "heads": str(len(rows)),
        "effort": efforts.pop() if len(efforts) == 1 else "differs by head",
        **{name: mean([row[name] for row in rows]) for name in MEANS},
    }
    interval = _interval(rows)
    point["change"] = point["recall_grown"] - point["recall_whole"]
    point["change_low"] = interval and interval.low
    point["change_high"] = interval and interval.high
    point["change_sure"] = interval and f"{interval.low:+.4f} to {interval.high:+.4f}"
    return point


def _interval(rows: Sequence[Row]) -> Interval | None:
    """Of grown less whole: by query, on the same queries; by head where a row has lost its samples."""
    samples = [found for row in rows if (found := _samples(row)) is not None]
    try:
        if len(samples) == len(rows):
            whole, grown = zip(*samples, strict=True)
            interval = paired_by_query(whole, grown, int(rows[0]["group"]))
        else:
            recalls = [[row[f"recall_{side}"] for row in rows] for side in SIDES]
            interval = paired_by_head(np.array(recalls[0]), np.array(recalls[1]))
    except ValueError:  # not whole blocks of a token
        return None
    return None if np.isnan(interval.low) else interval


def _samples(row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Recall of each query, whole and grown."""
    columns = [f"recall_{side}_by_query" for side in SIDES]
    try:
        table = pq.read_table(row[FILE], columns=columns)
    except (OSError, pa.ArrowException):
        return None
    whole, grown = (table[name][row[PLACE]].values for name in columns)
    return None if whole is None or grown is None else (whole.to_numpy(), grown.to_numpy())


def _place(row: Row) -> tuple:
    return tuple(row[name] for name in (*POINT, "document", "layer", "kv_head"))


def _share(read: float | None, n: int) -> float | None:
    return None if read is None else read / n
