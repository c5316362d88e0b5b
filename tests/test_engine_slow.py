"""Studies that are disturbed for minutes: killed parents and workers, a thousand units, a Ray cluster."""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from faults import children, facts, finish, kill, landed, start, wait_for

from ra_bench.compare import Settings, make_plan
from ra_bench.measure import Job, measure
from ra_bench.prepare import Request, prepare

pytestmark = pytest.mark.slow
UNITS_A_HEAD = 4  # flat, ivf and the two floors


@pytest.fixture
def small(make_dump):
    """Makes a dump of so many small heads."""
    return lambda heads: make_dump(kv_heads=heads, prefill_tokens=1200, decode_steps=8)


def own_work_s(dump: Path, folder: Path) -> float:
    """Mean time of a unit's own work: in this process, where nothing starts and nothing is sent."""
    request = Request(str(dump), ("doc000", 3, 0), "honest", 1024, 10, False, {}, 0)
    prepare(request, folder)
    took = []
    for _ in range(4):
        for spec in ("flat", "ivf", "window", "random"):
            began = time.perf_counter()
            measure(Job(spec, str(folder), (10,), 1, 1, 0, 1.0), lambda _: None)
            took.append(time.perf_counter() - began)
    return sum(took[UNITS_A_HEAD:]) / len(took[UNITS_A_HEAD:])


def cpu_of_children_s() -> float:
    """CPU time of all processes that this one started and that have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_thousand_units_with_three_kills_give_the_rows_of_an_undisturbed_run(small, tmp_path) -> None:
    dump = small(250)
    wall_s, cpu_s = -time.monotonic(), -cpu_of_children_s()
    finish(dump, tmp_path / "calm", "--workers", "2", "--progress", "quiet")
    wall_s, cpu_s = wall_s + time.monotonic(), cpu_s + cpu_of_children_s()

    out = tmp_path / "disturbed"
    parent = start(dump, out, "--workers", "2", "--progress", "quiet")
    for share in (0.2, 0.4):
        wait_for(lambda share=share: landed(out) > share * 1000, 600)
        kill(random.Random(landed(out)).choice(children(parent.pid)))
    wait_for(lambda: landed(out) > 600, 600)
    kill(parent.pid)
    parent.wait()
    finish(dump, out, "--workers", "2", "--progress", "quiet")

    assert landed(tmp_path / "calm") == landed(out) == 1000
    assert facts(out) == facts(tmp_path / "calm")
    assert max(facts(out).values()) == 1
    own_s = own_work_s(dump, tmp_path / "bundle")
    overhead_s = wall_s * 2 / 1000 - own_s
    print(f"1000 units: {wall_s:.0f} s on two workers, {cpu_s:.0f} CPU s")
    print(f"a unit: own work {own_s:.3f} s, beyond it {overhead_s:.3f} s, truths and starts included")
    assert overhead_s < 0.5  # wall time: other work on the machine counts against it


def test_fifty_kills_of_parents_and_workers_lose_and_double_nothing(small, tmp_path) -> None:
    dump = small(12)
    finish(dump, tmp_path / "calm", "--workers", "2")
    rng = random.Random(8)
    out = tmp_path / "disturbed"
    kills = 0
    while kills < 50:
        parent = start(
            dump, out, "--workers", "2", *(["--force"] if landed(out) == 12 * UNITS_A_HEAD else [])
        )
        while parent.poll() is None and kills < 50:
            time.sleep(rng.uniform(0.0, 3.0))
            victims = children(parent.pid)
            if victims and rng.random() < 0.7:
                kill(rng.choice(victims))
            else:
                kill(parent.pid)
                parent.wait()
            kills += 1
        parent.kill()
        parent.wait()
    finish(dump, out, "--workers", "2")

    assert facts(out) == facts(tmp_path / "calm")
    assert max(facts(out).values()) == 1


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Ray cluster of two one-core machines, as far as Ray is concerned."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 2 << 30})
    made.add_node(num_cpus=1, memory=2 << 30)
    yield made.address
    made.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_cluster_of_two_gives_the_same_rows_as_this_machine(small, tmp_path, cluster) -> None:
    dump = small(3)
    finish(dump, tmp_path / "local")

    finish(dump, tmp_path / "ray", "--engine", "ray", "--address", cluster)

    assert facts(tmp_path / "ray") == facts(tmp_path / "local")


@pytest.mark.filterwarnings("ignore")
def test_ray_repeats_the_unit_of_a_worker_that_was_killed(small, tmp_path, cluster) -> None:
    dump = small(3)
    finish(dump, tmp_path / "local")
    out = tmp_path / "ray"
    parent = start(dump, out, "--engine", "ray", "--address", cluster)
    wait_for(lambda: landed(out) >= 2, 240)

    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            mine = str(tmp_path) in (process / "cwd").resolve().as_posix()
        except OSError:
            continue
        if name.startswith(b"ray::") and b" on doc" in name and mine:  # not the agents of the cluster
            kill(int(process.name))

    assert parent.wait(240) == 0
    assert facts(out) == facts(tmp_path / "local")


def test_the_plan_of_such_a_study_is_made_in_seconds(small, tmp_path) -> None:
    dump = small(250)
    began = time.monotonic()

    plan = make_plan(Settings(indexes=("flat", "ivf"), data=str(dump), ks=(10,)))

    assert len(plan.units) == 1000
    assert time.monotonic() - began < 10
