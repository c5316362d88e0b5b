"""Runs units on this machine, in worker processes that are used again as long as all goes well.

A unit has its cores for itself while it runs, and a limit of time and of memory that this process enforces.
A worker that failed, was killed, or kept memory, threads or processes of a unit is replaced by a fresh one.
"""

from __future__ import annotations

import select
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ra_bench import hardware
from ra_bench.engine import cores
from ra_bench.engine.process import Process
from ra_bench.engine.scratch import scratch_folder
from ra_bench.engine.task import Call, Ended, Outcome, Watcher, Work, refusal
from ra_bench.environment import machine_class
from ra_bench.errors import RunError, UsageError

POLL_S = 0.2
BEGIN_S = 120.0  # a worker that does not begin within this time is lost, and no fault of its unit
TRIES = 2  # of a call whose worker was lost: killed or stopped by somebody else
MEMORY_SHARE = 0.8  # of the machine's memory that all units together may use, unless told otherwise
KILLED_BY_ANOTHER = "killed by another's SIGKILL: out of memory, most likely"


@dataclass
class _Head:
    """A head under way: where its bundle is, how its preparation ended, units that have not ended."""

    work: Work
    folder: Path
    left: int
    prepared: Outcome | None = None


@dataclass
class _Job:
    """A call that waits or runs. `head` is the one that it prepares, or measures on."""

    call: Call
    head: _Head
    tries: int = 0
    process: Process | None = None
    held: cores.Lease | None = None
    deadline: float = 0.0
    begun: bool = False
    ending: tuple[str, dict] | None = None
    rows: list[dict] = field(default_factory=list)

    @property
    def prepares(self) -> bool:
        """Whether it prepares its head's bundle."""
        return self.call is self.head.work.prepare


class LocalEngine:
    """Up to `workers` units at a time. `fresh` gives each a process of its own.

    With one worker, the preparation of a head has all cores; with several, those of one unit, so that no core
    waits. Raises UsageError where the machine has too few cores for `workers`.
    """

    def __init__(self, workers: int = 1, fresh: bool = False, threads: int = 1) -> None:
        most = max(1, min(hardware.core_count(), len(hardware.core_groups())) // threads)
        if workers != 1 and not 1 <= workers <= most:
            raise UsageError(
                f"--workers must be from 1 to {most}, or units of {threads} threads would share cores;"
                f" got {workers}"
            )
        self.workers, self.fresh = workers, fresh
        self._idle: list[Process] = []
        self._running: list[_Job] = []
        self._ready: deque[_Job] = deque()
        self._told_to_wait = False

    def memory_bytes(self, threads: int) -> int:
        """An equal share for each worker."""
        return int(hardware.memory_bytes() * MEMORY_SHARE / self.workers)

    def machine_class(self) -> str:
        """What decides latency on this machine."""
        return machine_class()

    def run(self, works: Iterable[Work], watcher: Watcher) -> Iterator[Ended]:
        """See `Engine.run`. Raises RunError where no process can be started."""
        waiting = iter(works)
        with scratch_folder() as scratch:
            try:
                while True:
                    more = self._fill(waiting, scratch, watcher)
                    if not self._running and not more:
                        return
                    yield from self._step(watcher)
            finally:
                self._close()

    def call(self, call: Call, scratch: Path, held: cores.Lease) -> Outcome:
        """Runs one call at once on cores that are held already; the worker stays for the next."""
        job = _Job(call, _Head(Work(call, []), Path(call.arguments["bundle"]), 0))
        self._running = [job]
        while True:
            job.held = held
            self._begin(job, scratch)
            while (outcome := self._news(job)) is None:
                self._wait()
            if outcome.status != "lost":
                self._running = []
                return outcome

    def close(self) -> None:
        """Ends all workers."""
        self._close()

    def _fill(self, waiting: Iterator[Work], scratch: Path, watcher: Watcher) -> bool:
        """Starts what can start now; returns whether there is more that waits for cores."""
        while len(self._running) < self.workers:
            if not self._ready:
                if self.workers == 1 and self._running:
                    break
                work = next(waiting, None)
                if work is None:
                    break
                folder = scratch / f"head{id(work)}"
                head = _Head(work, folder, len(work.units))
                self._ready.append(_Job(work.prepare, head))
            job = next((job for job in self._ready if self._has_gpu(job.call)), None)
            if job is None:
                break
            job.held = self._lease(job)
            if job.held is None:
                if not self._told_to_wait:
                    watcher.end("waiting for cores", "ok", "another run is measuring on them")
                    self._told_to_wait = True
                break
            self._ready.remove(job)
            if not job.tries:
                watcher.start(job.call.name)
            self._begin(job, scratch)
            self._running.append(job)
        return bool(self._ready)

    def _has_gpu(self, call: Call) -> bool:
        return not call.limits.gpus or not any(job.call.limits.gpus for job in self._running)

    def _lease(self, job: _Job) -> cores.Lease | None:
        threads = job.call.limits.threads
        if not job.prepares:
            return cores.lease(threads)
        # A preparation times nothing that is compared: it takes what is free.
        return cores.lease(threads if self.workers == 1 else 1, at_least=1)

    def _begin(self, job: _Job, scratch: Path) -> None:
        job.process = self._process(job.call, scratch)
        job.begun, job.ending, job.rows = False, None, []
        job.tries += 1
        job.deadline = time.monotonic() + BEGIN_S
        assert job.held is not None
        job.process.hand(job.call.on(job.head.folder), job.held.cores)

    def _process(self, call: Call, scratch: Path) -> Process:
        """A worker for a call: an idle one that did the like on as many threads, or a new one.

        What prepares heads never measures: it has seen the truth.
        """
        kind = (call.function, call.limits.threads)
        for process in [p for p in self._idle if p.kind == kind]:
            self._idle.remove(process)
            if not process.unfit():
                return process
            process.close()
        try:
            return Process(kind, scratch, call.log)
        except OSError as error:
            raise RunError(f"no worker process can be started: {error.strerror}") from error

    def _wait(self) -> None:
        """Sleeps in the kernel until a worker has news, or for the poll's time."""
        files = [file for job in self._running if job.process for file in job.process.files]
        select.select(files, [], [], POLL_S)

    def _step(self, watcher: Watcher) -> Iterator[Ended]:
        """Waits for news and deals with it."""
        self._wait()
        for job in list(self._running):
            outcome = self._news(job)
            if outcome is None:
                continue
            self._running.remove(job)
            if job.held is not None:
                job.held.release()
            if outcome.status == "lost":
                self._ready.appendleft(job)
                continue
            yield from self._ended(job, outcome, watcher)

    def _ended(self, job: _Job, outcome: Outcome, watcher: Watcher) -> Iterator[Ended]:
        head = job.head
        ended = [(job.call, outcome)]
        if head.prepared is None:
            head.prepared = outcome
            watcher.end(job.call.name, outcome.status, outcome.reason)
            refused = refusal(outcome)
            if refused is None:
                self._ready.extend(_Job(unit, head) for unit in head.work.units)
            ended = [] if refused is None else [(unit, refused) for unit in head.work.units]
        for unit, how in ended:
            head.left -= 1
            yield Ended(unit, head.prepared, how)  # its rows land before it is told to have ended
            watcher.end(unit.name, how.status, how.reason)
        if head.left == 0:
            shutil.rmtree(head.folder, ignore_errors=True)

    def _news(self, job: _Job) -> Outcome | None:
        """Reads what a job's worker says and looks at it; its outcome, or None while it goes on.

        A job whose worker was lost through no fault of its own has the outcome `lost`, while it has tries.
        """
        process, limits = job.process, job.call.limits
        assert process is not None
        gone = process.ended  # before reading: all that it sent is then in the pipe
        for kind, content in process.messages():
            if kind == "begun":
                job.begun = True
                job.deadline = time.monotonic() + limits.timeout_s
            elif kind == "row":
                job.rows.append(content)
            else:
                job.ending = (kind, content)
        killed = ""
        if job.ending is None and not gone:
            if time.monotonic() > job.deadline:
                killed = "timeout" if job.begun else "lost: it did not begin"
            elif process.anonymous_bytes() > limits.memory_bytes:
                killed = "oom"
            elif process.stopped():
                killed = "lost: stopped by another's signal"
            else:
                return None
        outcome = self._outcome(job, killed)
        if outcome.status == "ok" and not gone and not self.fresh:
            self._idle.append(process)
        else:
            process.close()
        job.process = None
        return outcome

    def _outcome(self, job: _Job, killed: str) -> Outcome:
        assert job.process is not None
        limits, log = job.call.limits, job.call.log
        code = job.process.child.returncode
        if job.ending is not None:
            kind, content = job.ending
            if kind == "done":
                return Outcome("ok", rows=job.rows, result=content)
            return Outcome(kind, content["reason"], content.get("exit_code", 1), job.rows)
        if killed == "timeout":
            status, reason = killed, f"not done after {limits.timeout_s:g} s"
        elif killed == "oom":
            status, reason = killed, f"used more than {limits.memory_bytes / 1e9:.1f} GB"
        elif killed or code == -signal.SIGKILL:
            if job.tries < TRIES:
                return Outcome("lost", killed)
            status = "failed" if killed else "oom"
            reason = killed.removeprefix("lost: ") or KILLED_BY_ANOTHER
        else:
            signalled = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else ""
            status, reason = "failed", f"{signalled or 'the process ended early'}; see '{log}'"
        return Outcome(status, reason, 1, job.rows)

    def _close(self) -> None:
        processes = [*self._idle, *(job.process for job in self._running if job.process)]
        for process in processes:
            process.close()
        for job in self._running:
            if job.held is not None:
                job.held.release()
        self._idle, self._running = [], []
        self._ready.clear()
