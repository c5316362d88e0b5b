"""What `ra-bench decode` does again and what it does not, after an end, an interruption or a failure."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model
from decoding import CONTEXT, random_settings, run

from ra_bench.decode import harness, runner
from ra_bench.decode.arms import CacheMaker
from ra_bench.decode.deaths import Deaths
from ra_bench.decode.plan import make_plan
from ra_bench.decode.rows import COLUMNS
from ra_bench.decode.table import ended
from ra_bench.errors import RunError
from ra_bench.results import ResultFolder

PLANTED = Path(__file__).parent / "planted_indexes.py"


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory):
    return tiny_model.save_config(tmp_path_factory.mktemp("config"), max_position_embeddings=4096)


def test_the_same_command_goes_on_where_it_stopped(config_folder, tmp_path):
    out = tmp_path / "out"
    first, started = run(random_settings(config_folder, "ivf"), out)
    assert any(name.startswith("prefill of") for name in started)
    again, started = run(random_settings(config_folder, "ivf"), out)
    assert started == []
    assert again == first
    more, started = run(random_settings(config_folder, "ivf", "random", limit=2), out)
    assert sum(name.startswith("prefill of") for name in started) == 2
    assert started.count("ivf k=20") == 1  # the first sample's has landed
    assert started.count("random k=20") == 2
    assert more["ivf", 20, 0] == first["ivf", 20, 0]


def test_parts_of_the_samples_land_in_one_folder_as_the_whole_would(config_folder, tmp_path):
    out = tmp_path / "out"
    odd, _ = run(random_settings(config_folder, "ivf", limit=3, part=(2, 2)), out)
    assert {sample for _, _, sample in odd} == {1}
    even, _ = run(random_settings(config_folder, "ivf", limit=3, part=(1, 2)), out)
    assert {sample for _, _, sample in even} == {0, 2}
    whole, started = run(random_settings(config_folder, "ivf", limit=3), out)
    assert started == []
    assert whole == even | odd


def test_an_interrupted_run_keeps_what_has_landed(config_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    original = runner.Runner.run

    def interrupted(self, arm, *arguments, **named):
        if arm.name == "flat":
            raise KeyboardInterrupt
        return original(self, arm, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(runner.Runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(random_settings(config_folder, "ivf"), out)
    _, started = run(random_settings(config_folder, "ivf"), out)
    assert "dense" not in started
    assert {"flat k=20", "ivf k=20"} <= set(started)


def test_an_index_that_fails_is_a_row_and_the_run_goes_on(config_folder, tmp_path):
    out = tmp_path / "out"
    settings = random_settings(config_folder, f"{PLANTED}::Raises", f"{PLANTED}::Brackets", "ivf")
    rows, _ = run(settings, out)
    decoding, building = rows[f"{PLANTED}::Raises", 20, 0], rows[f"{PLANTED}::Brackets", 20, 0]
    assert decoding["status"] == building["status"] == "failed"
    assert decoding["reason"] == "decoding: RuntimeError: planted failure"
    assert building["reason"] == "build: ValueError: wrong [/x] shape [float32]"
    assert rows["ivf", 20, 0]["status"] == "ok"
    lines = ended(list(rows.values()), ["failed"])
    assert f"{PLANTED}::Raises k=20: failed on 1 sample: decoding: RuntimeError: planted failure" in lines
    _, started = run(settings, out)
    assert f"{PLANTED}::Raises k=20" in started  # what failed is tried again
    assert "ivf k=20" not in started


def test_the_mark_of_a_run_stays_where_the_process_dies_in_it(tmp_path):
    deaths = Deaths(tmp_path)
    with pytest.raises(ValueError, match="planted"), deaths.watched("one"):
        raise ValueError("planted")
    assert Deaths(tmp_path).of("one") == 0  # an exception is no death
    for died in range(1, 3):
        with Deaths(tmp_path).watched("one"):
            mark = (tmp_path / "running-one").read_bytes()
        (tmp_path / "running-one").write_bytes(mark)  # as a process that is killed leaves it
        assert Deaths(tmp_path).of("one") == died
        assert Deaths(tmp_path).of("other") == 0
    Deaths(tmp_path).forget("one")
    assert Deaths(tmp_path).of("one") == 0


@pytest.mark.slow
def test_the_same_command_goes_on_past_an_index_that_kills_the_process(config_folder, tmp_path):
    settings = random_settings(config_folder, f"{PLANTED}::Crashes", "ivf", baselines=("dense",))
    specs = f"{PLANTED}::Crashes,ivf"
    command = [sys.executable, "-m", "ra_bench", "decode", "--model", str(config_folder), "--random-weights"]
    command += ["--context", str(CONTEXT), "--limit", "1", "--max-new-tokens", "4", "--device", "cpu"]
    command += ["--threads", "1", "--k", "20", "--indexes", specs, "--baselines", "dense"]
    command += ["--out", str(tmp_path / "out")]
    codes = [subprocess.run(command, check=False, capture_output=True).returncode for _ in range(3)]
    assert codes == [-signal.SIGSEGV, -signal.SIGSEGV, 1]
    plan = make_plan(settings)
    folder = ResultFolder(tmp_path / "out", plan.identity, COLUMNS)
    rows = folder.read(plan.address(plan.samples[0], arm) for arm in plan.arms)
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("ok", ""),
        ("failed", "the process died in it 2 times"),
        ("ok", ""),
    ]


FAILS = """
from ra_bench.registry import index_class

class Fails(index_class("flat")):
    first = 0

    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)
        self.first = len(keys)

    def search(self, queries, k):
        if k == 1 and len(self.keys) > self.first:
            raise RuntimeError("planted failure")
        return super().search(queries, k)
"""


def test_a_run_that_fails_leaves_nothing_in_the_indexes_of_the_next(config_folder, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    spec = f"{tmp_path / 'fails.py'}::Fails"
    rows, _ = run(
        random_settings(config_folder, spec, ks=(1, 2), max_new_tokens=70, baselines=()), tmp_path / "out"
    )
    failed, following = rows[spec, 1, 0], rows[spec, 2, 0]
    assert failed["reason"] == "decoding: RuntimeError: planted failure"
    assert following["status"] == "ok", following["reason"]
    assert following["indexed_keys"] == CONTEXT - 1 - 128 - 512
    assert following["inserted_tokens"] == 64


def test_a_damaged_row_of_dense_is_measured_again(config_folder, tmp_path):
    out, settings = tmp_path / "out", random_settings(config_folder, "ivf")
    run(settings, out)
    plan = make_plan(settings)
    file = out / "rows" / f"{plan.address(plan.samples[0], plan.arms[0])}.parquet"
    file.write_bytes(file.read_bytes()[:100])
    rows, started = run(settings, out)
    assert rows["dense", None, 0]["status"] == "ok"
    assert "dense" in started
    assert "ivf k=20" not in started


# --- fidelity, which is measured against dense's logits ----------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_model.save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


def fidelity_settings(folder, *indexes, **changes):
    asked = {"context_tokens": 1200, "random_weights": False, "tasks": ("fidelity",), "max_new_tokens": None}
    return random_settings(folder, *indexes, **asked | {"baselines": ("dense",)} | changes)


def test_fidelity_of_an_index_that_is_added_later_is_measured(model_folder, tmp_path):
    out = tmp_path / "out"
    first, _ = run(fidelity_settings(model_folder, "flat"), out)
    both, started = run(fidelity_settings(model_folder, "flat", "random"), out)
    assert both["dense", None, 0] == first["dense", None, 0]  # not written anew
    assert both["flat", 20, 0] == first["flat", 20, 0]
    assert "truth of fidelity 0 by dense" in started
    assert "dense" not in started
    whole, started = run(fidelity_settings(model_folder, "flat", "random"), tmp_path / "whole")
    assert "truth of fidelity 0 by dense" not in started  # dense runs anyway
    for quantity in ("kl", "top1_agreement", "delta_nll"):
        later = both["random", 20, 0][quantity]
        assert later == pytest.approx(whole["random", 20, 0][quantity], rel=1e-6, abs=1e-9)
    assert both["random", 20, 0]["kl"] > 0


def test_fidelity_needs_no_row_of_dense(model_folder, tmp_path):
    rows, _ = run(fidelity_settings(model_folder, "random", baselines=("window",)), tmp_path / "out")
    assert set(rows) == {("window", 20, 0), ("random", 20, 0)}
    assert all(row["kl"] > 0 for row in rows.values())


def test_fidelity_fails_and_is_tried_again_where_dense_failed(model_folder, tmp_path, monkeypatch):
    def no_room(self):
        raise RunError("planted")

    settings = fidelity_settings(model_folder, "random")
    with monkeypatch.context() as patch:
        patch.setattr(CacheMaker, "dense", no_room)
        rows, _ = run(settings, tmp_path / "out")
    assert {row["status"] for row in rows.values()} == {"failed"}
    reason = rows["random", 20, 0]["reason"]
    assert reason == "nothing to compare with: dense: decoding: RunError: planted"
    rows, _ = run(settings, tmp_path / "out")
    assert rows["random", 20, 0]["kl"] > 0


def test_harness_loads_no_model_for_a_finished_plan(config_folder, tmp_path, monkeypatch):
    run(random_settings(config_folder, "random"), tmp_path / "out")
    monkeypatch.setattr(harness.dump, "start", None)
    rows, _ = run(random_settings(config_folder, "random"), tmp_path / "out")
    assert len(rows) == 5
