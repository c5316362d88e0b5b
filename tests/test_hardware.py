"""What this process may use: never more than its cgroups grant, of either version, at any level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ra_bench import hardware


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_cgroups_the_machine_is_the_limit(tmp_path) -> None:
    assert hardware.memory_bytes(tmp_path) > 1 << 28
    assert hardware.core_count(tmp_path) == sum(len(group) for group in hardware.core_groups())


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "1000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "1000"}),
        ("4:memory:/job\n1:cpu:/\n", {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000"}),
        ("4:cpu,memory:/gone\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000"}),
        ("4:memory:/\n0::/x\n", {"sys/fs/cgroup/unified/x/memory.max": "1000"}),
    ],
)
def test_the_tightest_memory_limit_on_the_way_to_the_root_holds(tmp_path, cgroup, files) -> None:
    assert hardware.memory_bytes(system(tmp_path, cgroup, files)) == 1000


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/a\n", {"sys/fs/cgroup/a/cpu.max": "150000 100000\n"}),
        (
            "3:cpu,cpuacct:/a\n",
            {
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            },
        ),
    ],
)
def test_a_cpu_quota_is_rounded_down_to_whole_cores(tmp_path, cgroup, files) -> None:
    assert hardware.core_count(system(tmp_path, cgroup, files)) == 1


@pytest.mark.parametrize("text", ["max", "-1", "", "max 100000", "no number"])
def test_no_limit_and_nonsense_limit_nothing(tmp_path, text) -> None:
    files = {
        "sys/fs/cgroup/memory.max": text,
        "sys/fs/cgroup/cpu.max": text,
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": text,
    }
    root = system(tmp_path, "0::/\n3:cpu:/\n", files)

    assert hardware.memory_bytes(root) == hardware.memory_bytes(tmp_path / "nowhere")
    assert hardware.core_count(root) == hardware.core_count(tmp_path / "nowhere")


def test_a_peak_of_memory_can_be_measured_anew() -> None:
    held = np.ones(1 << 24)
    del held
    before = hardware.peak_bytes()

    hardware.reset_peak()

    assert hardware.peak_bytes() < before - (1 << 26)
