"""A worker process: `python -m ra_bench.engine.worker MESSAGES_FD`, one call after the other.

Each line of stdin names a function `module:function`, called with its arguments and a `land` that sends a
row at once, so that what was measured survives whatever happens next. Messages are JSON lines: `begun`, then
a `row` each, then the outcome, after which the worker waits for the next call.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ra_bench import hardware
from ra_bench.errors import RaBenchError

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def settle() -> None:
    """Asks Linux to kill this process when its parent dies, however that dies; elsewhere does nothing.

    Processes that a unit leaves behind become children of this one, so that its parent finds them; and where
    memory runs out the kernel is to take this process rather than the one that keeps the rows.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    library = ctypes.CDLL(None)
    library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    library.prctl(PR_SET_CHILD_SUBREAPER, 1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)


def perform(task: dict[str, Any], land: Callable[[Any], None]) -> tuple[str, Any]:
    """Calls what the task names; returns how it ended. An unexpected failure also prints its traceback."""
    module, _, function = task["function"].partition(":")
    try:
        return "done", getattr(importlib.import_module(module), function)(task["arguments"], land)
    except RaBenchError as error:
        return "failed", {"reason": str(error), "exit_code": error.exit_code}
    except MemoryError as error:
        return "oom", {"reason": f"out of memory: {error}"}
    except Exception as error:  # an index is foreign code: anything can be raised
        traceback.print_exc()
        lines = f"{type(error).__name__}: {error}".splitlines()
        return "failed", {"reason": lines[0], "exit_code": 1}


def tidy() -> None:
    """Gives memory back, so that the next unit starts with little of this one's."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _print_to(log: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def serve(messages: TextIO) -> None:
    """Performs the calls that come on stdin until it ends."""

    def send(kind: str, content: Any) -> None:
        messages.write(json.dumps({kind: content}) + "\n")
        messages.flush()

    for line in sys.stdin:
        task = json.loads(line)
        with contextlib.suppress(OSError):  # a full disk: it prints where it did before
            _print_to(task["log"])
        hardware.reset_peak()
        send("begun", {})
        kind, content = perform(task, lambda row: send("row", row))
        tidy()
        try:
            send(kind, content)
        except (TypeError, ValueError) as error:  # a result that is not JSON
            send("failed", {"reason": f"{type(error).__name__}: {error}", "exit_code": 1})


def main() -> int:
    """Serves until its parent closes stdin or dies."""
    settle()
    faulthandler.enable()
    number = int(sys.argv[1])
    os.set_inheritable(number, False)
    with os.fdopen(number, "w") as messages:
        serve(messages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
