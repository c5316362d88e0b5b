"""Runs one unit in a fresh child process, with a time limit and a memory limit enforced from outside."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.2
# Libraries read these when they load; a unit may use its own threads only.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """What a unit may use; it is killed beyond."""

    timeout_s: float
    memory_bytes: int
    threads: int


@dataclass
class Outcome:
    """How a unit ended: `status` ok, failed, timeout or oom; the rows it landed, and what it returned."""

    status: str
    reason: str = ""
    exit_code: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: Any = None


def run_unit(call: str, arguments: Mapping[str, Any], limits: Limits, log: Path) -> Outcome:
    """Calls `module:function` with `arguments` in a child process and waits for its end.

    What the child prints goes to `log`. Rows that it landed are kept, however it ends.
    """
    with tempfile.TemporaryDirectory(prefix="ra-bench-") as scratch:
        task, lines = Path(scratch, "task.json"), Path(scratch, "lines.jsonl")
        task.write_text(json.dumps({"call": call, "arguments": dict(arguments)}))
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(limits.threads))
        command = [sys.executable, "-m", "ra_bench.engine.worker", str(task), str(lines)]
        with log.open("ab") as sink:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
            )
            try:
                ended = _wait(child, limits)
            finally:
                _kill(child)
        return _outcome(lines, ended, child.returncode, limits, log)


def _wait(child: subprocess.Popen, limits: Limits) -> str:
    """Waits for the child; returns why it was killed, or an empty string."""
    deadline = time.monotonic() + limits.timeout_s
    # Sleeps in the kernel: Popen.wait with a timeout wakes up twenty times a second beside a measurement.
    handles = [os.pidfd_open(child.pid)] if hasattr(os, "pidfd_open") else []
    try:
        while child.poll() is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return "timeout"
            if _anonymous_bytes(child.pid) > limits.memory_bytes:
                return "oom"
            select.select(handles, [], [], min(POLL_S, left_s))
        return ""
    finally:
        for handle in handles:
            os.close(handle)


def _anonymous_bytes(pid: int) -> int:
    """Memory of a process that is not file cache; 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def _kill(child: subprocess.Popen) -> None:
    """Ends the child and whatever it started, by its own process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _outcome(lines: Path, killed: str, exit_code: int, limits: Limits, log: Path) -> Outcome:
    outcome = Outcome("failed", f"the process ended early; see '{log}'", 1)
    for line in lines.read_text().splitlines() if lines.exists() else ():
        try:
            ((kind, content),) = json.loads(line).items()
        except ValueError:  # the child was killed while it wrote
            continue
        if kind == "row":
            outcome.rows.append(content)
        elif kind == "done":
            outcome.status, outcome.reason, outcome.exit_code, outcome.result = "ok", "", 0, content
        else:
            outcome.status, outcome.reason = kind, content["reason"]
            outcome.exit_code = content.get("exit_code", 1)
    if killed == "timeout":
        outcome.status, outcome.reason = "timeout", f"not done after {limits.timeout_s:g} s"
    elif killed == "oom":
        outcome.status, outcome.reason = "oom", f"used more than {limits.memory_bytes / 1e9:.1f} GB"
    elif exit_code == -signal.SIGKILL:
        outcome.status, outcome.reason = (
            "oom",
            "killed by another's SIGKILL: out of memory, most likely",
        )
    elif exit_code < 0:
        name = signal.Signals(-exit_code).name
        outcome.status, outcome.reason, outcome.exit_code = "failed", f"killed by {name}; see '{log}'", 1
    return outcome
