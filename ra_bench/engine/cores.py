"""Leases of cores: a unit that is timed shares its cores with no other unit of this machine and user.

A lease is a lock on a file for each physical core, so that all runs of one user see each other, whichever
engine started them, and a process that dies gives its cores back.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ra_bench.hardware import core_groups

# Where the locks are; by default a folder of the user's in the system's temporary folder.
LOCKS_VARIABLE = "RA_BENCH_CORE_LOCKS"


@dataclass
class Lease:
    """Logical cores held until `release`, or until this process ends."""

    cores: list[int]
    _files: list[int] = field(default_factory=list, repr=False)

    def release(self) -> None:
        """Gives the cores back; a second call does nothing."""
        while self._files:
            os.close(self._files.pop())  # closing the file ends its lock


def lease(count: int, at_least: int | None = None) -> Lease | None:
    """Cores for `count` threads, on physical cores of their own as far as there are enough.

    None where fewer than `at_least` (default: all) physical cores are free at this moment. A count above the
    number of cores is cut to it.
    """
    groups = core_groups()
    wanted = min(count, len(groups))
    files: list[int] = []
    held: list[tuple[int, ...]] = []
    for group in groups:
        if len(held) < wanted and (file := _lock(group[0])) is not None:
            files.append(file)
            held.append(group)
    if len(held) < min(wanted, at_least or wanted):
        for file in files:
            os.close(file)
        return None
    # One thread a physical core first; its sibling only where the threads are more than the cores.
    firsts = [group[0] for group in held]
    siblings = [core for group in held for core in group[1:]]
    return Lease((firsts + siblings)[: max(count, 1)], files)


def _lock(core: int) -> int | None:
    folder = Path(os.environ.get(LOCKS_VARIABLE) or Path(tempfile.gettempdir(), f"ra-bench-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(folder / f"core{core}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
