"""Runs of the command line that tests disturb, and what must be the same about their rows afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

# What does not depend on the moment: which rows there are, and how good the answers were.
FIXED = ("unit", "status", "index", "k", "effort", "recall", "mass_total", "output_error", "keys_read", "n")


def command(dump: Path, out: Path, *more: str, indexes: str = "flat,ivf", k: str = "10") -> list[str]:
    """A comparison of small cost."""
    arguments = ["compare", "--indexes", indexes, "--data", str(dump), "--k", k, "--repeats", "1"]
    return [sys.executable, "-m", "ra_bench", *arguments, "--out", str(out), *more]


def start(*arguments, **options) -> subprocess.Popen:
    """The comparison in the background; what it prints on stderr is kept beside the results."""
    out = arguments[1]
    with out.with_name(out.name + ".stderr").open("ab") as sink:
        return subprocess.Popen(command(*arguments, **options), stdout=subprocess.DEVNULL, stderr=sink)


def finish(*arguments, **options) -> None:
    """The comparison to its end."""
    child = start(*arguments, **options)
    assert child.wait() == 0, arguments[1].with_name(arguments[1].name + ".stderr").read_text()


def facts(out: Path) -> Counter:
    """Each row's fixed facts, and how often they occur."""
    counted: Counter = Counter()
    for file in (out / "rows").glob("[!.]*.parquet"):
        for row in pq.read_table(file, columns=list(FIXED)).to_pylist():
            counted[tuple(row.values())] += 1
    return counted


def landed(out: Path) -> int:
    """How many units have rows."""
    return len(list((out / "rows").glob("[!.]*.parquet"))) if out.exists() else 0


def children(pid: int) -> list[int]:
    """The live child processes of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_for(condition, seconds: float = 60.0) -> None:
    """Waits until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
