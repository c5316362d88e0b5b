"""The whole path of `ra-bench decode`: samples, runs, rows, failures, resuming and refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model

from ra_bench.cli import app
from ra_bench.decode import harness, runner
from ra_bench.decode.answer import answer
from ra_bench.decode.arms import make_arms
from ra_bench.decode.deaths import Deaths
from ra_bench.decode.harness import run_plan
from ra_bench.decode.measures import break_even
from ra_bench.decode.plan import Settings, make_plan
from ra_bench.decode.rows import COLUMNS
from ra_bench.decode.step import Step
from ra_bench.decode.table import ended, tables
from ra_bench.errors import RaBenchError, UsageError
from ra_bench.registry import parse
from ra_bench.results import ResultFolder
from ra_bench.vectors import DataSet

PLANTED = Path(__file__).parent / "planted_indexes.py"
CONTEXT = 1500


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory):
    return tiny_model.save_config(tmp_path_factory.mktemp("config"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_model.save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


class Watching:
    """Keeps what a run tells its watcher."""

    def __init__(self):
        self.started = []

    def start(self, name):
        self.started.append(name)

    def end(self, name, status, reason):
        assert name in self.started, f"{name} ended and never started: its time is unknown"


def random_settings(folder, *indexes, **changes):
    defaults = {"context_tokens": CONTEXT, "limit": 1, "max_new_tokens": 4, "device": "cpu", "threads": 1}
    defaults |= {"random_weights": True, "ks": (20,)}
    return Settings(str(folder), indexes, **defaults | changes)


def run(settings, folder, force=False):
    plan = make_plan(settings)
    watching = Watching()
    rows = run_plan(plan, ResultFolder(folder, plan.identity, COLUMNS), watching, force)
    return {(row["index"], row["k"], row["sample"]): row for row in rows}, [
        name.partition(", ")[0] for name in watching.started
    ]


def test_every_run_has_a_row_with_its_costs(config_folder, tmp_path):
    rows, _ = run(random_settings(config_folder, "ra:learn_queries=512", max_new_tokens=6), tmp_path / "out")
    names = {name for name, _, _ in rows}
    assert names == {"dense", "dense-host", "window", "flat", "ra:learn_queries=512"}
    skipped = rows.pop(("dense-host", None, 0))
    assert skipped["status"] == "skipped"
    assert "no GPU" in skipped["reason"]
    for row in rows.values():
        assert row["status"] == "ok", row["reason"]
        assert row["random_weights"]
        assert row["capture"] == "eager"
        assert row["score"] is None
        assert row["answer_tokens"] == 6
        assert len(row["step_ms_samples"]) == 6  # the question's one, five of the answer
        parts = sum(
            row[f"{part}_ms"] for part in ("model", "copy", "gpu_attention", "merge", "insert", "harness")
        )
        parts += row["search_ms"] + row["cpu_attention_ms"]
        assert parts == pytest.approx(np.mean(row["step_ms_samples"]), rel=1e-3)
        assert row["tokens_per_s"] == pytest.approx(1e3 / np.mean(row["step_ms_samples"]), rel=1e-3)
    flat, ra = rows["flat", 20, 0], rows["ra:learn_queries=512", 20, 0]
    assert flat["indexed_keys"] == flat["keys_read"] == CONTEXT - 1 - 128 - 512
    assert flat["keys_read_share"] == 1
    assert flat["attended"] == 20
    assert 0 < ra["keys_read_share"] < 1
    assert ra["learn_queries"] == 512
    assert ra["build_s"] > 0
    longer_s = ra["ttft_build_s"] - ra["ttft_s"]  # neighbours are found while the layer before is built
    assert longer_s > max(ra["build_s"], ra["knn_s"])
    assert ra["index_bytes"] > 0
    # Keys and values of 3 layers and 2 heads, d 16: float16 on the host, float32 on the device.
    assert ra["host_kv_bytes"] == 2 * 3 * 2 * (CONTEXT - 1) * 16 * 2
    assert ra["device_kv_bytes"] == 2 * 3 * 2 * (128 + 512 + 7) * 16 * 4


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


def test_an_attention_that_is_not_finite_fails(config_folder, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        f"import sys; sys.path.insert(0, {str(PLANTED.parent)!r})\n"
        "import planted_indexes\n"
        "@dataclass\n"
        "class Broken(planted_indexes.Prefix):\n"
        "    def attend(self, queries, k, **effort):\n"
        "        part = super().attend(queries, k, **effort)\n"
        "        part.output[:] = float('nan')\n"
        "        return part\n"
    )
    rows, _ = run(random_settings(config_folder, f"{file}::Broken", baselines=("dense",)), tmp_path / "out")
    assert "not finite" in rows[f"{file}::Broken", 20, 0]["reason"]


def test_fidelity_is_perfect_with_all_keys_and_worse_with_one(model_folder, tmp_path):
    settings = Settings(
        str(model_folder),
        ("random",),
        tasks=("fidelity",),
        context_tokens=1200,
        limit=1,
        ks=(1, 5000),
        dtype="float32",
        device="cpu",
        threads=1,
    )
    rows, _ = run(settings, tmp_path / "out")
    exact, poor = rows["flat", 5000, 0], rows["random", 1, 0]
    assert rows["dense", None, 0]["kl"] == 0
    assert exact["kl"] < 1e-6
    assert exact["top1_agreement"] == 1
    assert abs(exact["delta_nll"]) < 1e-4
    assert poor["kl"] > exact["kl"] + 1e-3
    assert exact["question_tokens"] == 149
    assert exact["inserted_tokens"] == 128
    assert exact["keys_read"] > exact["indexed_keys"]
    assert exact["keys_read_share"] == pytest.approx(1)  # of the keys that were there at each step
    assert {row["tail"] for row in rows.values() if row["index"] == "random"} == {"inserted"}


@pytest.mark.parametrize("protocol", ["question-sparse", "question-dense"])
def test_scores_are_paired_with_dense(model_folder, tmp_path, protocol):
    settings = Settings(
        str(model_folder),
        ("flat",),
        tasks=("passkey",),
        context_tokens=1500,
        limit=2,
        ks=(5000,),
        protocol=protocol,
        baselines=("dense",),
        dtype="float32",
        device="cpu",
        threads=1,
    )
    rows, _ = run(settings, tmp_path / "out")
    for sample in range(2):
        dense, flat = rows["dense", None, sample], rows["flat", 5000, sample]
        assert dense["score"] is not None
        assert flat["dense_score"] == dense["score"]
        assert flat["text"] == dense["text"]  # the same tokens, whatever they mean
        assert flat["prefill_s"] == dense["prefill_s"]
        decoded = flat["question_tokens"]
        assert (decoded == 0) == (protocol == "question-dense")
        assert json.loads(flat["expected"])
    assert len(tables(list(rows.values()))) == 3


def test_the_effort_is_the_cheapest_that_reads_enough(config_folder, tmp_path):
    spec = f"{PLANTED}::Prefix"
    settings = random_settings(config_folder, spec, min_keys_read=0.4, baselines=())
    rows, _ = run(settings, tmp_path / "out")
    row = rows[spec, 20, 0]
    assert json.loads(row["effort"]) == {"share": 0.5}
    assert row["keys_read_share"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("ra:ef=7", {"ef": 7}),
        ("ra:together=1", {"ef": 10, "together": 1}),
        ("hnsw:ef=33@lift", {"ef": 33}),  # hides what it reads
        ("hnsw@lift", {}),
    ],
)
def test_an_effort_fixed_in_part_is_chosen_for_the_rest(spec, chosen, config_folder, tmp_path):
    settings = random_settings(config_folder, spec, min_keys_read=0.01, baselines=())
    rows, _ = run(settings, tmp_path / "out")
    assert [json.loads(row["effort"]) for row in rows.values()] == [chosen]


def test_efforts_of_one_method_share_a_build(config_folder, tmp_path):
    specs = [f"{PLANTED}::Prefix:share={share}" for share in (0.25, 0.5)]
    rows, started = run(random_settings(config_folder, *specs, baselines=()), tmp_path / "out")
    assert sum(name.startswith("building") for name in started) == 1
    for spec, share in zip(specs, (0.25, 0.5), strict=True):
        assert rows[spec, 20, 0]["keys_read_share"] == pytest.approx(share, abs=0.01)


def test_record_writes_a_dump_of_what_the_first_index_decoded(config_folder, tmp_path):
    settings = random_settings(config_folder, "ivf", record=tmp_path / "dump", baselines=("dense",))
    run(settings, tmp_path / "out")
    data = DataSet.open(tmp_path / "dump")
    assert data.settings["decoded_by"] == "ivf k=20"
    assert len(data.heads) == 3 * 2
    head = data.load(data.heads[0])
    assert len(head.keys) == CONTEXT - 1 + 4  # the question's token and three of the answer
    assert len(head.decode_queries) == 4 * 2
    assert head.metadata.random_weights


@dataclass
class Scripted:
    """A stepper that answers as it is told."""

    script: list
    fed: list

    def step(self, token):
        self.fed.append(token)
        return Step(self.script.pop(0), 0.5, {})


def test_an_answer_begins_after_the_question_and_ends_at_a_stop_token():
    logits = np.zeros((1, 9), np.float32)
    logits[0, 8] = 1
    fed = []
    made = answer(Scripted([5, 6, 7, 2, 3], fed), logits, [1, 1], 10, frozenset({2}))
    assert (made.tokens, fed) == ([6, 7], [1, 1, 6, 7])
    assert made.question_s == 1.0
    fed = []
    made = answer(Scripted([5, 6], fed), logits, [], 3, frozenset())
    assert (made.tokens, fed) == ([8, 5, 6], [8, 5])
    made = answer(Scripted([], []), logits, [], 3, frozenset({8}))
    assert made.tokens == []


def test_break_even_is_where_the_build_is_paid_back():
    dense = {"tpot_ms": 100.0, "ttft_build_s": 10.0}
    assert break_even({"tpot_ms": 50.0, "ttft_build_s": 20.0}, dense) == pytest.approx(200)
    assert break_even({"tpot_ms": 150.0, "ttft_build_s": 20.0}, dense) is None
    assert break_even({"tpot_ms": 50.0, "ttft_build_s": 20.0}, None) is None


def test_baselines_come_first_and_flat_once():
    arms = make_arms([parse("flat"), parse("ra")], [10, 20], ("dense", "flat", "window"))
    assert [str(arm) for arm in arms] == [
        *("dense", "window k=10", "window k=20"),
        *("flat k=10", "flat k=20", "ra k=10", "ra k=20"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_tokens": 8192}, "can hold 4096"),
        ({"context_tokens": 600}, "an index needs more than the 640"),
        ({"ks": (0,)}, "--k must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"part": (3, 2)}, "--part must be I/N with I from 1 to N and N at most --limit 1, got 3/2"),
        ({"part": (1, 2)}, "--part must be I/N with I from 1 to N and N at most --limit 1, got 1/2"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, got 0"),
        ({"min_keys_read": 2.0}, "--min-keys-read must be a share above 0, at most 1, got 2"),
        ({"baselines": ("dens",)}, "unknown baseline 'dens'. Did you mean 'dense'"),
        ({"tasks": ("passkey",)}, "--random-weights cannot answer"),
        ({"tasks": ("passkei",), "random_weights": False}, "unknown task 'passkei'. Did you mean 'passkey'"),
        ({"indexes": ("iwf",)}, "unknown index 'iwf'"),
        ({"device": "cuda"}, "--device cuda: torch finds no CUDA device"),
        ({"dense_layers": (7,)}, "--dense-layers 7 does not exist: the model has 3"),
        ({"dense_layers": (0, 1, 2)}, "no layer left for an index"),
        ({"protocol": "sparse"}, "--protocol must be one of question-sparse, question-dense, got 'sparse'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(config_folder, changes, message):
    indexes = changes.pop("indexes", ("ivf",))
    with pytest.raises(UsageError, match=None) as refused:
        make_plan(random_settings(config_folder, *indexes, **changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_context_that_memory_cannot_hold_is_refused_with_the_numbers(tmp_path, monkeypatch):
    folder = tiny_model.save_config(tmp_path / "wide", max_position_embeddings=1 << 20)
    monkeypatch.setattr("ra_bench.decode.plan._available_bytes", lambda: 50_000_000)
    settings = random_settings(folder, "ivf", context_tokens=100_000)
    # 3 layers, 2 heads, d 16, keys and values: 100,000 tokens in float32 (77 MB) and float16 (38 MB).
    with pytest.raises(UsageError, match=r"100000 tokens need 0\.1 GB of host memory .* 0\.1 GB are free"):
        make_plan(settings)


def test_a_recorded_dump_must_not_be_there(config_folder, tmp_path):
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "file").touch()
    with pytest.raises(UsageError, match=r"--record .* must be a new folder"):
        make_plan(random_settings(config_folder, "ivf", record=tmp_path / "dump"))


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_models_whose_logits_are_not_q_k_are_refused(family, tmp_path):
    folder = tiny_model.save_config(tmp_path / family, family, max_position_embeddings=4096)
    with pytest.raises(RaBenchError, match="not supported"):
        make_plan(random_settings(folder, "ivf"))


def test_the_command_prints_tables_and_refuses_another_run_s_folder(config_folder, tmp_path):
    arguments = ["decode", "--model", str(config_folder), "--random-weights", "--indexes", "ivf", "--k", "20"]
    arguments += ["--context", str(CONTEXT), "--limit", "1", "--max-new-tokens", "3", "--threads", "1"]
    arguments += ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "with RANDOM WEIGHTS on CPU in float32" in result.stdout
    assert "5 rows in" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--json"])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["index"] for row in rows] == ["dense", "dense-host", "window", "flat", "ivf"]
    result = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert isinstance(result.exception, UsageError)
    assert "holds another run" in str(result.exception)


@pytest.mark.parametrize("text", ["2", "1/x", "-1/2", "/", "1/2/3"])
def test_a_part_that_is_no_part_is_refused(text, config_folder):
    command = ["decode", "--model", str(config_folder), "--random-weights", "--indexes", "ivf"]
    result = CliRunner().invoke(app, [*command, "--part", text])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == f"--part must be I/N such as 2/4, got '{text}'"


def test_harness_loads_no_model_for_a_finished_plan(config_folder, tmp_path, monkeypatch):
    run(random_settings(config_folder, "random"), tmp_path / "out")
    monkeypatch.setattr(harness.dump, "start", None)
    rows, _ = run(random_settings(config_folder, "random"), tmp_path / "out")
    assert len(rows) == 5
