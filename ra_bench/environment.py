"""What a measurement ran on: the machine and the versions, for every row."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ra_bench
from ra_bench import hardware

# What else decides how fast libraries run; a worker's number of threads is a column of its own.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OPENBLAS_CORETYPE", "MALLOC_ARENA_MAX")
LIBRARIES = ("numpy", "torch", "transformers", "pyarrow", "faiss-cpu", "hnswlib", "pynndescent", "numba")


@cache
def environment() -> dict[str, Any]:
    """CPU, memory, GPU, system, versions, variables, commit and native kernels of this process."""
    return {
        "ra_bench": ra_bench.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": hardware.core_count(),
        "memory_bytes": hardware.memory_bytes(),
        "gpu": _gpu(),
        "kernels": _kernels(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def machine_class() -> str:
    """A short name of what decides latency: CPU, cores and GPU. Rows of two classes are never mixed."""
    facts = environment()
    parts = [facts["cpu"], f"{facts['cores']} cores"] + ([facts["gpu"]] if facts["gpu"] else [])
    return ", ".join(parts)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu() -> str:
    """Name and driver by nvidia-smi, or an empty string; torch is not imported for it."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in found.splitlines())


def _kernels() -> str:
    from ra_bench.indexes._native._native import kernels

    return ",".join(kernels())


def _commit() -> str:
    """The checkout's commit, with `+dirty` where tracked files differ; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+dirty" if status.stdout.strip() else "")
