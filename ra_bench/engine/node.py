"""What a cluster runs on the machine where a unit landed: prepares its head there, then measures the unit.

A machine keeps the bundles of a few heads, by content, so that the units of a head prepare it once a machine.
The unit runs in a worker process with cores and limits of its own, exactly as on one machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ra_bench.engine import cores
from ra_bench.engine.local import LocalEngine
from ra_bench.engine.scratch import scratch_folder
from ra_bench.engine.task import Call, Outcome, refusal
from ra_bench.environment import environment, machine_class

KEPT_BUNDLES = 8  # at least; one a core on larger machines
LEASE_POLL_S = 0.1
LOG_BYTES = 1 << 16  # of a unit's log that travel back


@dataclass
class Measured:
    """What comes back from a machine: how the preparation and the unit ended, and what the unit printed."""

    prepared: Outcome
    outcome: Outcome
    log: bytes


def measure_on_node(prepare: Call, unit: Call, cwd: str) -> Measured:
    """Runs one unit on this machine, and the preparation of its head where this machine has not done it."""
    if os.path.isdir(cwd):  # indexes are named by files, as the user sees them
        os.chdir(cwd)
    engine, scratch = _here()
    while (held := cores.lease(unit.limits.threads)) is None:
        time.sleep(LEASE_POLL_S)
    log = scratch / f"{unit.address}.log"
    try:
        limits = replace(prepare.limits, threads=unit.limits.threads)
        prepare = replace(prepare, limits=limits, log=log)
        with _bundle(prepare, engine, scratch, held) as (bundle, prepared):
            outcome = refusal(prepared) or engine.call(replace(unit, log=log).on(bundle), scratch, held)
    finally:
        held.release()
    outcome.reason = outcome.reason.replace(str(log), str(unit.log))
    outcome.facts = {"machine": machine_class(), "environment": json.dumps(environment())}
    printed = log.read_bytes()[-LOG_BYTES:] if log.exists() else b""
    log.unlink(missing_ok=True)
    return Measured(prepared, outcome, printed)


def machine_of_node() -> str:
    """What decides latency on this machine."""
    return machine_class()


_kept = ExitStack()  # until this process ends; what a killed one leaves is swept by the next


@cache
def _here() -> tuple[LocalEngine, Path]:
    """The engine of this process, whose worker stays for the next unit, and its temporary folder."""
    scratch = _kept.enter_context(scratch_folder())
    engine = LocalEngine()
    _kept.callback(engine.close)
    return engine, scratch


@contextmanager
def _bundle(
    prepare: Call, engine: LocalEngine, scratch: Path, held: cores.Lease
) -> Iterator[tuple[Path, Outcome]]:
    """The bundle of a head, prepared by whoever comes first; nobody removes it while it is in use."""
    store = Path(tempfile.gettempdir(), f"ra-bench-bundles-{os.getuid()}")
    store.mkdir(mode=0o700, exist_ok=True)
    folder, facts = store / prepare.address, store / prepare.address / "prepared.json"
    with _locked(store / f"{prepare.address}.lock") as file:
        if not facts.exists():
            fcntl.flock(file, fcntl.LOCK_EX)
        if not facts.exists():
            _evict(store)
            partial = store / f"{prepare.address}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            prepared = engine.call(prepare.on(partial), scratch, held)
            if refusal(prepared) is not None:
                shutil.rmtree(partial, ignore_errors=True)
                yield folder, prepared
                return
            (partial / facts.name).write_text(json.dumps(prepared.result))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)  # whole or not at all
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(store / f"{prepare.address}.lock")
        yield folder, Outcome("ok", result=json.loads(facts.read_text()))


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield file
    finally:
        os.close(file)


def _evict(store: Path) -> None:
    """Removes the bundles that were used longest ago, beyond the number that is kept."""
    locks = sorted(store.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    most = max(KEPT_BUNDLES, os.cpu_count() or 1)
    for lock in locks[: max(0, len(locks) - most)]:
        file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):  # in use
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        os.close(file)
