"""Checks of what an index says it costs: work counters and memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ra_bench import registry
from ra_bench.conformance.subject import N_KEYS, K, Subject, require, selects

# The memory check: rows long enough that one copy stands out, few enough that a graph is built in seconds.
MEMORY_KEYS, MEMORY_DIM = 4096, 256
MEMORY_SLACK, MEMORY_SHARE = 1 << 20, 1.1  # growth may exceed nbytes by these; a float16 copy is 2 MiB


def work_counted(subject: Subject) -> str | None:
    """Counts are possible: found keys were touched, at most n were; an exact method touched all."""
    index = subject.index
    effort = subject.dearest(index, N_KEYS, K)
    if index.has_search:
        found = subject.search(index, K)
        real, work = (found.ids >= 0).sum(axis=1), found.work
    else:
        work = index.attend(subject.data.queries, K, **effort).work
        real = np.zeros(len(subject.data.queries), np.int64)
    if work.keys_read is not None:
        least = np.zeros_like(real) if index.kind == "floor" else real
        require((work.keys_read <= N_KEYS).all(), f"keys_read must be at most n = {N_KEYS}")
        require((work.keys_read >= least).all(), "keys_read must count at least the keys that were found")
    for name, count in vars(work).items():
        require(count is None or (count >= 0).all(), f"work.{name} must not be negative")
    if index.kind == "exact":
        for count, expected in ((work.keys_read, N_KEYS), (work.exact, N_KEYS)):
            require(count is not None and (count == expected).all(), f"an exact scan reads all {N_KEYS} keys")
    part = index.attend(subject.data.queries, K, **effort)
    attended = part.work.attended
    require(attended is None or (attended >= 0).all(), "work.attended must not be negative")
    if attended is not None and selects(index):
        require((attended <= K).all(), f"work.attended must be at most k = {K}")
    ids = index.attended_ids(subject.data.queries, K, **effort)
    if attended is not None and ids is not None:
        require((attended == (ids >= 0).sum(axis=1)).all(), "work.attended must count attended_ids")
    if work.bytes_read is not None and part.work.bytes_read is not None:
        require((part.work.bytes_read > 0).all(), "attend must count the rows that it reads")
    hidden = [name for name in ("keys_read", "exact", "bytes_read") if getattr(work, name) is None]
    return f"hides {', '.join(hidden)}" if hidden else None


def memory_counted(subject: Subject) -> str:
    """`nbytes` covers what a process grows by in `build`: a hidden copy of the keys would show."""
    if not Path("/proc/self/statm").exists():
        return "not measured: needs Linux's /proc"
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # arrays go back to the system as they are freed
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    program = f"from ra_bench.conformance.costs import print_growth; print_growth({subject.spec!r})"
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    require(child.returncode == 0, f"the measuring process failed: {child.stderr.strip()[-300:]}")
    grown, told = json.loads(child.stdout.splitlines()[-1])
    detail = f"grew by {grown / 2**20:.1f} MiB, nbytes says {told / 2**20:.1f} MiB"
    require(grown <= MEMORY_SHARE * told + MEMORY_SLACK, detail)
    return detail


def print_growth(spec: str) -> None:
    """Prints by how much a build makes this process grow, and `nbytes`; a build before warms up."""
    keys = np.random.default_rng(0).standard_normal((MEMORY_KEYS, MEMORY_DIM)).astype(np.float32)
    statm = Path("/proc/self/statm")

    def resident() -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    first = registry.create(spec)
    first.build(keys)  # of the same size: libraries keep buffers that grow with n
    del first
    before = resident()
    index = registry.create(spec)
    index.build(keys)
    print(json.dumps([resident() - before, index.nbytes.host]))
