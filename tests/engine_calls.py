"""What workers call in the tests of the engine: functions that behave, and some that do not."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import threading
import time
from pathlib import Path

KEPT: list[bytearray] = []


def prepare(arguments: dict, land) -> dict:
    """A head that serves, unless it is told why not."""
    Path(arguments["bundle"]).mkdir()
    return {"skipped": arguments.get("skipped", ""), "facts": {"n": 1}}


def where(arguments: dict, land) -> dict:
    """Where it runs; `leave` says what it leaves behind."""
    began = time.monotonic()
    time.sleep(arguments.get("sleep_s", 0.0))
    leave = arguments.get("leave")
    if leave == "memory":
        KEPT.append(bytearray(os.urandom(1)) * (1 << 30))
    elif leave == "thread":
        threading.Thread(target=_spin, daemon=True).start()
    elif leave == "process":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    land({"k": 1, "effort_rank": 0})
    threads = os.environ["OMP_NUM_THREADS"]
    times = [began, time.monotonic()]
    return {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0)), "threads": threads, "times": times}


def misbehave(arguments: dict, land) -> None:
    """Lands a row, then ends badly."""
    land({"k": 1, "effort_rank": 0})
    how = arguments["how"]
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "hang":
        time.sleep(600)
    elif how == "leak":
        while True:
            KEPT.append(bytearray(b"x") * (1 << 26))
            time.sleep(0.01)
    elif how == "leak in a child":
        code = "import time; held = bytearray(b'x') * (1 << 30); time.sleep(600)"
        subprocess.run(["python3", "-c", code], check=True, start_new_session=True)
    elif how == "exit":
        os._exit(0)
    elif how == "raise":
        raise ValueError("planted\nin two lines")


def once(arguments: dict, land) -> int:
    """The first time it ends or stops its own process by a signal."""
    if not Path(arguments["mark"]).exists():
        Path(arguments["mark"]).touch()
        os.kill(os.getpid(), arguments["signal"])
        time.sleep(5)
    return os.getpid()


def always(arguments: dict, land) -> None:
    """Ends its own process each time."""
    os.kill(os.getpid(), arguments["signal"])
    time.sleep(5)


def _spin() -> None:
    while True:
        hashlib.sha256(bytes(1 << 22))  # without the interpreter's lock
