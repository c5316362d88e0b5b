"""Races by the thread sanitizer, and leaks by many builds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ra_bench.registry import create

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "indexes" / "_native"
SOURCES = (
    "pool.cpp",
    "attention.cpp",
    "kernels.cpp",
    "kernels_plain.cpp",
    "kernels_avx2.cpp",
    "kernels_avx512.cpp",
)


@pytest.mark.slow
def test_the_thread_sanitizer_finds_no_race(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    flags = [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{NATIVE}"]
    (tmp_path / "probe.cpp").write_text("int main() {}")
    probe = [*flags, str(tmp_path / "probe.cpp"), "-o", str(tmp_path / "probe")]
    if (
        subprocess.run(probe, check=False, capture_output=True).returncode
        or subprocess.run([tmp_path / "probe"], check=False).returncode
    ):
        pytest.skip("needs a compiler whose thread sanitizer runs here")
    # The vector kernels compile to nothing without their flags: the plain one is what runs.
    sources = [str(NATIVE / name) for name in SOURCES]
    program = str(tmp_path / "race")
    subprocess.run([*flags, str(ROOT / "tests" / "pool_race.cpp"), *sources, "-o", program], check=True)
    run = subprocess.run(
        [program],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
    )
    assert run.returncode == 0, run.stderr[:4000]
    assert run.stdout == "3600 of 3600\n"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_builds_leak_nothing():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((64, 16)).astype(np.float16)
    learn = rng.standard_normal((16, 16)).astype(np.float32)

    def build_and_ask(times: int) -> None:
        for _ in range(times):
            index = create("ra", threads=2)
            index.build(keys, keys, learn)
            index.insert(keys[:2], keys[:2])
            index.attend(learn[:2], 5)

    build_and_ask(1000)
    before = resident_bytes()
    build_and_ask(10_000)
    # One graph is about 10 KB: were one in ten kept, this would be 10 MB.
    assert resident_bytes() - before < 4 << 20
