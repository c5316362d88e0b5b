"""The whole path of `ra-bench decode`: samples, runs, rows and failures."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model
from decoding import CONTEXT, random_settings, run

from ra_bench.cli import app
from ra_bench.decode.answer import answer
from ra_bench.decode.measures import break_even
from ra_bench.decode.plan import Settings
from ra_bench.decode.step import Step
from ra_bench.decode.table import heading, tables
from ra_bench.errors import UsageError
from ra_bench.vectors import DataSet

PLANTED = Path(__file__).parent / "planted_indexes.py"


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory):
    return tiny_model.save_config(tmp_path_factory.mktemp("config"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_model.save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


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


def test_the_window_alone_has_rows_and_tables(config_folder, tmp_path):
    rows, _ = run(random_settings(config_folder, "window", baselines=()), tmp_path / "out")
    assert [(name, row["status"]) for name, row in rows.items()] == [(("window", 20, 0), "ok")]
    assert "RANDOM WEIGHTS" in heading(list(rows.values()))
    assert len(tables(list(rows.values()))) == 2


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


def test_wrappers_serve_what_they_wrap(config_folder, tmp_path):
    specs = ["tail(flat)", "tail(ivf:nlist=16:nprobe=1)", "softmaxlift(flat)"]
    rows, started = run(random_settings(config_folder, *specs, max_new_tokens=70), tmp_path / "out")
    assert sum(name.startswith("building") for name in started) == 4  # and that of the baseline
    exact, clusters, drawn = (rows[spec, 20, 0] for spec in specs)
    assert [row["inserted_tokens"] for row in (exact, clusters, drawn)] == [64] * 3
    assert exact["keys_read_share"] == drawn["keys_read_share"] == 1
    assert clusters["keys_read_share"] < 0.5
    assert json.loads(clusters["settings"])["inner"]["nlist"] == 16


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
