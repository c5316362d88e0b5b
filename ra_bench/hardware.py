"""What this process may use of its machine: cores and memory, by affinity and by the limits of its cgroups.

A container or a batch system often grants less than the machine has; what exceeds the grant is throttled or
killed. Both versions of cgroups are read, from the group of this process up to the root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def core_groups() -> list[tuple[int, ...]]:
    """The logical cores this process may run on, those of one physical core together; in rising order."""
    if not hasattr(os, "sched_getaffinity"):
        return [(core,) for core in range(os.cpu_count() or 1)]
    mine = os.sched_getaffinity(0)
    groups = {tuple(sorted(_siblings(core) & mine)) for core in mine}
    return sorted(groups)


def core_count(root: Path = ROOT) -> int:
    """How many cores this process can keep busy: its affinity, cut by the CPU quota of its cgroups."""
    cores = sum(len(group) for group in core_groups())
    quotas = list(_cpu_quotas(root))
    return max(1, min([cores, *map(int, quotas)]))


def memory_bytes(root: Path = ROOT) -> int:
    """Memory this process may use: the machine's, cut by the limits of its cgroups."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_memory_limits(root)])


def peak_bytes() -> int:
    """Largest resident set of this process since `reset_peak`, or since its start."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Starts `peak_bytes` anew, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def _siblings(core: int) -> set[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return {core, *_listed(path.read_text())}
    except (OSError, ValueError):
        return {core}


def _listed(text: str) -> Iterator[int]:
    """`0-1,8` → 0, 1, 8, as Linux lists cores."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's cgroups that may limit `controller`, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounts = [f"sys/fs/cgroup/{controller}"] if controller in controllers.split(",") else []
        if not controllers:  # version 2, alone or beside version 1
            mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        for mount in mounts:
            inner = Path(path.strip("/"))
            for place in (inner, *inner.parents) if str(inner) != "." else (inner,):
                yield root / mount / place


def _memory_limits(root: Path) -> Iterator[int]:
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if number := _number(group / name):
                yield int(number)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups("cpu", root):
        words = _text(group / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            yield int(words[0]) / int(words[1])
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota and period:
            yield quota / period


def _number(path: Path) -> int | None:
    """The positive number in a file; None where there is no limit (`max`, -1) or no file."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
