"""One worker process as its parent sees it: start, hand a call over, read messages, look at it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ra_bench.engine.task import Call

# Libraries read these when they load; a unit may use its own threads only.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
LARGEST_MESSAGE_BYTES = 1 << 30  # a worker that sends more without a line's end is not sane
# An idle worker that holds more is replaced: the leftovers of one unit are no business of the next.
MOST_IDLE_BYTES = 512 << 20
PATIENT = {"OMP_WAIT_POLICY": "passive"}  # as cli.main sets it, which has not run where Ray starts a worker
SPIN_S = 0.02  # threads of a pool spin for a moment before they sleep


class Process:
    """A worker process. `messages` are read without blocking; `ended` once the process is gone."""

    def __init__(self, kind: tuple[str, int], scratch: Path, log: Path) -> None:
        self.kind = kind  # the function that it calls, and on how many threads
        self._rest = b""
        reader, writer = os.pipe()
        environment = (
            PATIENT | os.environ | dict.fromkeys(THREAD_VARIABLES, str(kind[1])) | {"TMPDIR": str(scratch)}
        )
        try:
            with log.open("ab") as sink:
                self.child = subprocess.Popen(
                    [sys.executable, "-m", "ra_bench.engine.worker", str(writer)],
                    stdin=subprocess.PIPE,
                    stdout=sink,
                    stderr=sink,
                    env=environment,
                    pass_fds=(writer,),
                    start_new_session=True,
                )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self.reader = reader
        # Wakes the parent up when the process ends, even if something it started keeps the pipe open.
        self.handle = os.pidfd_open(self.child.pid) if hasattr(os, "pidfd_open") else None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def files(self) -> list[int]:
        """What becomes readable when there is news of it."""
        return [self.reader] + ([] if self.handle is None else [self.handle])

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.child.poll() is not None

    def hand(self, call: Call, cores: Iterable[int]) -> None:
        """Pins the worker to `cores` and hands it a call; a worker that is gone shows by its end."""
        pin(self.pid, set(cores))
        task = {"function": call.function, "arguments": call.arguments, "log": str(call.log.resolve())}
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(json.dumps(task).encode() + b"\n")
            self.child.stdin.flush()

    def messages(self) -> list[tuple[str, Any]]:
        """What it has sent since the last time; a line that was cut off by its end is left out."""
        chunks = [self._rest]
        while True:
            try:
                chunk = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                break
            if not chunk:
                break
            chunks.append(chunk)
        *lines, self._rest = b"".join(chunks).split(b"\n")
        if len(self._rest) > LARGEST_MESSAGE_BYTES:
            self.kill()
        found: list[tuple[str, Any]] = []
        for line in lines:
            try:
                ((kind, content),) = json.loads(line).items()
            except (ValueError, AttributeError):  # foreign code wrote into the pipe
                continue
            found.append((kind, content))
        return found

    def anonymous_bytes(self) -> int:
        """Memory, beside file cache, of the process and all that it started; 0 where this is not told."""
        return sum(_anonymous_bytes(pid) for pid in [self.pid, *descendants(self.pid)])

    def stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP): what it measures is then worth nothing."""
        return _state(f"/proc/{self.pid}/stat") in "Tt"

    def unfit(self) -> str:
        """Why an idle worker must not run another unit; empty where it may."""
        if self.ended:
            return "it has ended"
        if descendants(self.pid):
            return "a unit left processes behind"
        if self.anonymous_bytes() > MOST_IDLE_BYTES:
            return "a unit left memory behind"
        if self._busy_threads():
            time.sleep(SPIN_S)
            if self._busy_threads():
                return "a unit left busy threads behind"
        return ""

    def kill(self) -> None:
        """Ends the process and whatever it started; a second call does nothing."""
        left = descendants(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in left:  # those that left its process group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait()

    def close(self) -> None:
        """Kills it and closes the pipes."""
        self.kill()
        for file in self.files:
            with contextlib.suppress(OSError):
                os.close(file)
        if self.child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()

    def _busy_threads(self) -> bool:
        others = [path for path in Path(f"/proc/{self.pid}/task").glob("*") if path.name != str(self.pid)]
        return any(_state(f"{path}/stat") == "R" for path in others)


def pin(pid: int, cores: set[int]) -> None:
    """Lets all threads of a process run on `cores` only, whatever they set before."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    for thread in _threads(pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            os.sched_setaffinity(thread, cores)


def descendants(pid: int) -> list[int]:
    """All processes that a process started and that live, or have not been waited for."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for thread in _threads(parent):
            try:
                children = Path(f"/proc/{parent}/task/{thread}/children").read_text().split()
            except OSError:
                continue
            found += map(int, children)
            waiting += map(int, children)
    return found


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return [pid] if pid and not Path("/proc/self").exists() else []


def _state(path: str) -> str:
    """The state letter of a process or thread (proc(5)), or a dash where it is gone."""
    try:
        return Path(path).read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "-"


def _anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
