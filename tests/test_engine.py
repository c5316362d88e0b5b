"""The local engine: workers that are used again, cores of their own, faults of units and of the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from faults import children, command, facts, finish, kill, landed, start, wait_for

from ra_bench import hardware
from ra_bench.compare import Settings, make_plan, run_plan
from ra_bench.engine import cores
from ra_bench.engine.local import LocalEngine
from ra_bench.engine.process import descendants
from ra_bench.engine.scratch import PREFIX, scratch_folder
from ra_bench.engine.task import Call, Limits, Outcome, Work
from ra_bench.errors import UsageError
from ra_bench.results import ResultFolder

PLANTED = Path(__file__).parent / "planted_indexes.py"
needs_two_cores = pytest.mark.skipif(len(hardware.core_groups()) < 2, reason="needs two physical cores")


class Told:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[tuple[str, str, str]] = []

    def start(self, name: str) -> None:
        self.started.append(name)

    def end(self, name: str, status: str, reason: str) -> None:
        self.ended.append((name, status, reason))


@pytest.fixture(scope="module")
def small(make_dump) -> Path:
    """Two small heads."""
    return make_dump(kv_heads=2, prefill_tokens=1000, decode_steps=4)


@pytest.fixture(autouse=True)
def calls_on_path(monkeypatch) -> None:
    """Workers find engine_calls.py."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


class Runs:
    """Runs calls of engine_calls.py and keeps what the engine tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = Told()

    def call(self, name: str, function: str, arguments: dict, timeout_s: float, memory: int) -> Call:
        limits = Limits(timeout_s, memory, 1)
        return Call(name, f"engine_calls:{function}", arguments, limits, self.folder / "log", name)

    def __call__(
        self,
        function: str,
        *arguments: dict,
        engine: LocalEngine | None = None,
        timeout_s: float = 120.0,
        memory: int = 4 << 30,
        prepare: dict | None = None,
    ) -> list[Outcome]:
        units = [
            self.call(f"unit{i}", function, given, timeout_s, memory) for i, given in enumerate(arguments)
        ]
        work = Work(self.call("truth of it", "prepare", prepare or {}, 120.0, memory), units)
        ended = list((engine or LocalEngine()).run([work], self.told))
        return [end.outcome for end in sorted(ended, key=lambda end: end.unit.name)]


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


def test_a_worker_is_used_again_and_its_unit_has_one_core_for_itself(runs) -> None:
    results = [outcome.result for outcome in runs("where", {}, {}, {})]

    assert len({result["pid"] for result in results}) == 1
    assert {len(result["cores"]) for result in results} == {1}
    assert {result["threads"] for result in results} == {"1"}


@pytest.mark.parametrize("leave", ["memory", "thread", "process"])
def test_a_worker_that_kept_something_of_a_unit_is_replaced(runs, leave) -> None:
    first, second = runs("where", {"leave": leave}, {})

    assert first.status == second.status == "ok"
    assert first.result["pid"] != second.result["pid"]
    assert not [child for child in descendants(os.getpid()) if "sleep" in name_of(child)]


def test_fresh_gives_each_unit_a_process_of_its_own(runs) -> None:
    first, second = runs("where", {}, {}, engine=LocalEngine(fresh=True))

    assert first.result["pid"] != second.result["pid"]


@needs_two_cores
def test_two_workers_run_at_the_same_time_and_never_share_a_core(runs) -> None:
    outcomes = runs("where", *[{"sleep_s": 0.3}] * 6, engine=LocalEngine(workers=2))

    held = [(outcome.result["cores"], outcome.result["times"]) for outcome in outcomes]
    at_once = [
        (mine, yours)
        for i, (mine, (began, ended)) in enumerate(held)
        for yours, (start_s, end_s) in held[i + 1 :]
        if began < end_s and start_s < ended
    ]
    assert at_once
    assert all(not set(mine) & set(yours) for mine, yours in at_once)


def test_more_workers_than_cores_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--workers must be from 1 to \d+, or units of 1 threads would"):
        LocalEngine(workers=4096)
    with pytest.raises(UsageError, match="--workers must be from 1 to"):
        LocalEngine(workers=0)


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("segfault", "failed", "killed by SIGSEGV; see"),
        ("hang", "timeout", "not done after 3 s"),
        ("leak", "oom", "used more than 0.5 GB"),
        ("leak in a child", "oom", "used more than 0.5 GB"),
        ("exit", "failed", "the process ended early; see"),
        ("raise", "failed", "ValueError: planted"),
    ],
)
def test_a_unit_that_ends_badly_keeps_its_rows_and_hurts_no_other(runs, how, status, reason) -> None:
    memory = 500_000_000 if "leak" in how else 4 << 30
    timeout_s = 3.0 if how == "hang" else 120.0

    bad, good = runs("misbehave", {"how": how}, {"how": "well"}, timeout_s=timeout_s, memory=memory)

    assert bad.status == status
    assert bad.reason.startswith(reason)
    assert bad.rows == [{"k": 1, "effort_rank": 0}]
    assert good.status == "ok"
    assert not descendants(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_unit_whose_worker_was_lost_is_tried_again(runs, tmp_path, number) -> None:
    (outcome,) = runs("once", {"mark": str(tmp_path / "mark"), "signal": int(number)})

    assert outcome.status == "ok"
    assert runs.told.started == ["truth of it", "unit0"]


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [
        (signal.SIGKILL, "oom", "killed by another's SIGKILL: out of memory, most likely"),
        (signal.SIGSTOP, "failed", "stopped by another's signal"),
    ],
)
def test_a_unit_that_loses_each_worker_is_a_row_with_the_reason(runs, number, status, reason) -> None:
    (outcome,) = runs("always", {"signal": int(number)})

    assert (outcome.status, outcome.reason) == (status, reason)


def test_a_head_that_cannot_serve_ends_its_units(runs) -> None:
    outcomes = runs("where", {}, {}, prepare={"skipped": "it is too short"})

    assert [(one.status, one.reason) for one in outcomes] == [("skipped", "it is too short")] * 2


@pytest.mark.parametrize("wrong", [1 << 30, -2])
def test_ids_of_keys_that_there_are_not_are_a_failure(small, tmp_path, wrong) -> None:
    spec = f"{PLANTED}::Garbage:wrong={wrong}"
    plan = make_plan(Settings((spec,), str(small), (10,), kv_heads=(0,), repeats=1))

    rows = run_plan(plan, ResultFolder(tmp_path / "out", plan.identity), Told())

    (row,) = [row for row in rows if row["index"] == spec]
    assert row["status"] == "failed"
    assert row["reason"].endswith(f", got {wrong}")


@pytest.fixture(scope="module")
def calm(small, tmp_path_factory):
    """The rows of an undisturbed run."""
    out = tmp_path_factory.mktemp("calm") / "out"
    finish(small, out)
    return facts(out)


def test_a_killed_parent_goes_on_where_it_was_and_doubles_nothing(small, calm, tmp_path) -> None:
    out = tmp_path / "out"
    parent = start(small, out)
    wait_for(lambda: landed(out) >= 3)
    workers = children(parent.pid)

    kill(parent.pid)
    parent.wait()

    wait_for(lambda: not any(map(is_alive, workers)))
    assert 3 <= landed(out) < 8
    finish(small, out)
    assert facts(out) == calm
    assert max(facts(out).values()) == 1


@needs_two_cores
def test_two_runs_into_one_folder_at_once_leave_the_rows_of_one(small, calm, tmp_path) -> None:
    out = tmp_path / "out"

    runs = [start(small, out), start(small, out)]

    assert [child.wait() for child in runs] == [0, 0]
    assert facts(out) == calm
    assert not list((out / "rows").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_within_two_seconds_and_says_how_to_go_on(small, tmp_path, number) -> None:
    out = tmp_path / "out"
    line = command(small, out, indexes=f"{PLANTED}::Hangs")
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    heeding = ["env", "--default-signal=INT", *line]
    parent = subprocess.Popen(heeding, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: landed(out) >= 0 and any((out / "log").glob("[0-9a-f]*.log")))
    workers = children(parent.pid)
    began = time.monotonic()

    parent.send_signal(number)
    told = parent.communicate(timeout=60)[1].splitlines()[-1]

    assert time.monotonic() - began < 2
    assert parent.returncode == 130
    assert f"of 8 units are kept in {out}; go on with: " in told
    assert told.endswith(f"--out {out}")
    assert workers
    assert not any(map(is_alive, workers))
    *_, last = (out / "log" / "run.log").read_text().splitlines()
    assert json.loads(last)["event"] == "interrupted"


@pytest.fixture
def tmpfs(tmp_path):
    """A small file system of its own; needs the right to mount one."""
    place = tmp_path / "tmpfs"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", place], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_the_run_and_keeps_whole_files_only(small, tmpfs) -> None:
    out = tmpfs / "out"

    ended = subprocess.run(command(small, out), capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "No space left on device; rows so far are kept" in ended.stderr.splitlines()[-1]
    assert sum(facts(out).values()) >= landed(out)
    subprocess.run(["mount", "-o", "remount,size=16m", tmpfs], check=True)
    finish(small, out)
    assert landed(out) == 8


def test_a_read_only_folder_is_refused_before_anything_is_measured(small, tmpfs) -> None:
    plan = make_plan(Settings(indexes=("flat",), data=str(small), ks=(10,), repeats=1))
    ResultFolder(tmpfs / "out", plan.identity)
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)

    line = command(small, tmpfs / "out")
    ended = subprocess.run(line, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "cannot be written: Read-only file system" in ended.stderr
    assert "truth of" not in ended.stderr


def test_cores_are_leased_to_one_holder_at_a_time(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(cores.LOCKS_VARIABLE, str(tmp_path))
    everything = len(hardware.core_groups())

    held = cores.lease(everything)

    assert held is not None
    assert sorted({core for group in hardware.core_groups() for core in group[:1]}) == sorted(held.cores)
    assert cores.lease(1) is None
    held.release()
    again = cores.lease(1)
    assert again is not None
    assert len(again.cores) == 1
    again.release()


def test_a_process_that_dies_gives_its_cores_back(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(cores.LOCKS_VARIABLE, str(tmp_path))
    everything = len(hardware.core_groups())
    code = f"from ra_bench.engine import cores; held = cores.lease({everything}); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert cores.lease(1) is None

    child.kill()
    child.communicate()

    assert cores.lease(1) is not None


def test_the_temporary_folder_of_a_killed_run_is_removed_by_the_next(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / "lock").touch()

    with scratch_folder() as mine:
        assert not left.exists()
        with scratch_folder():
            assert mine.exists(), "a folder in use is left alone"
    assert not list(tmp_path.iterdir())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
