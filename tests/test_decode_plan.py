"""What `ra-bench decode` plans and refuses, and by what its rows are addressed."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model
from decoding import random_settings

from ra_bench import decode, models
from ra_bench.cli import app
from ra_bench.decode import plan as plan_module
from ra_bench.decode.arms import make_arms
from ra_bench.decode.fingerprint import MEASURING, model_fingerprint
from ra_bench.decode.plan import make_plan
from ra_bench.errors import RaBenchError, UsageError
from ra_bench.registry import parse


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory):
    return tiny_model.save_config(tmp_path_factory.mktemp("config"), max_position_embeddings=4096)


def test_baselines_come_first_and_flat_once():
    arms = make_arms([parse("flat"), parse("ra")], [10, 20], ("dense", "flat", "window"))
    assert [str(arm) for arm in arms] == [
        *("dense", "window k=10", "window k=20"),
        *("flat k=10", "flat k=20", "ra k=10", "ra k=20"),
    ]


@pytest.mark.parametrize("baselines", [(), ("window",)])
def test_a_named_window_is_the_baseline(baselines):
    arms = make_arms([parse("window"), parse("ra")], [10, 20], baselines)
    assert [str(arm) for arm in arms] == ["window k=10", "window k=20", "ra k=10", "ra k=20"]
    assert arms[0].spec is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_tokens": 8192}, "can hold 4096"),
        ({"context_tokens": 600}, "an index needs more than the 640"),
        ({"ks": (0,)}, "--k must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"limit": 99_999_999_999}, "--limit must be at most 100000, got 99999999999"),
        ({"threads": 10**6}, "--threads must be at most "),
        ({"text": Path("nosuch.txt")}, "--text is for the task fidelity, here the tasks are random"),
        (
            {"text": Path("nosuch.txt"), "random_weights": False, "tasks": ("passkey", "vt")},
            "--text is for the task fidelity, here the tasks are passkey, vt",
        ),
        ({"indexes": (), "baselines": ()}, "nothing to run: --indexes names no index"),
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
    monkeypatch.setattr("ra_bench.decode.room._available_bytes", lambda: 50_000_000)
    settings = random_settings(folder, "ivf", context_tokens=100_000)
    # 3 layers, 2 heads, d 16, keys and values: 100,000 tokens in float32 (77 MB) and float16 (38 MB).
    with pytest.raises(UsageError, match=r"100000 tokens need 0\.1 GB of host memory .* 0\.1 GB are free"):
        make_plan(settings)


def test_a_context_is_refused_before_its_samples_are_made(config_folder, tmp_path):
    tokens = 99_999_999 * 2**20
    with pytest.raises(UsageError, match=r"can hold 4096"):
        make_plan(random_settings(config_folder, "ivf", context_tokens=tokens))
    folder = tiny_model.save_config(tmp_path / "wide", max_position_embeddings=1 << 50)
    with pytest.raises(UsageError, match=r"GB of host memory"):
        make_plan(random_settings(folder, "ivf", context_tokens=tokens))


def test_a_random_sample_is_the_same_whichever_others_are_made(config_folder):
    few = make_plan(random_settings(config_folder, "ivf", limit=2)).samples
    many = make_plan(random_settings(config_folder, "ivf", limit=5)).samples
    assert many[:2] == few
    assert len({sample.context_ids for sample in many}) == 5


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


@pytest.mark.parametrize("text", ["2", "1/x", "-1/2", "/", "1/2/3"])
def test_a_part_that_is_no_part_is_refused(text, config_folder):
    command = ["decode", "--model", str(config_folder), "--random-weights", "--indexes", "ivf"]
    result = CliRunner().invoke(app, [*command, "--part", text])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == f"--part must be I/N such as 2/4, got '{text}'"


# --- by what rows are addressed ----------------------------------------------------------------------------


def fingerprint(folder, random_weights=False):
    source = models.find(str(folder))
    return model_fingerprint(source, models.load_config(source), random_weights)


def test_models_of_one_name_are_told_apart(tmp_path):
    plans = []
    for layers in (2, 4):
        size = {"num_hidden_layers": layers, "max_position_embeddings": 4096}
        folder = tiny_model.save_config(tmp_path / str(layers) / "tiny", **size)
        plans.append(make_plan(random_settings(folder, "ivf")))
    first, second = plans
    assert first.identity["model"] == second.identity["model"] == "tiny"
    assert first.identity != second.identity
    [sample], [dense, *_] = first.samples, first.arms
    assert first.address(sample, dense) != second.address(sample, dense)


def test_weights_count_where_they_are_read_and_the_folder_does_not(tmp_path):
    first = tiny_model.save_model(tmp_path / "first", seed=0)
    same = Path(shutil.copytree(first, tmp_path / "moved"))
    other = tiny_model.save_model(tmp_path / "other", seed=1)
    assert fingerprint(same) == fingerprint(first)
    assert fingerprint(other) != fingerprint(first)
    assert fingerprint(other, random_weights=True) == fingerprint(first, random_weights=True)
    with (same / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        last = weights.read(1)
        weights.seek(-1, 2)
        weights.write(bytes([last[0] ^ 1]))
    assert fingerprint(same) != fingerprint(first)


def test_large_weights_are_read_at_their_begin_and_end_and_between(tmp_path):
    folder = tiny_model.save_config(tmp_path)
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(1 << 32)  # sparse: no disk, but too long to read whole
    before = fingerprint(folder)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek((1 << 32) - 1)
        weights.write(b"1")
    assert fingerprint(folder) != before


def test_the_commit_of_a_hub_model_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source, config = models.Source("some/model", "some/model"), tiny_model.config()
    found = set()
    for commit in ("a" * 40, "b" * 40):
        repository = tmp_path / "models--some--model"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").touch()
        found.add(model_fingerprint(source, config, random_weights=False))
    assert len(found) == 2


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_another_version_of_what_runs_the_model_is_another_run(library, config_folder, monkeypatch):
    plan = make_plan(random_settings(config_folder, "ivf"))
    before = [plan.address(plan.samples[0], arm) for arm in plan.arms]
    facts = plan_module.environment()
    newer = facts | {"versions": facts["versions"] | {library: "99"}}
    monkeypatch.setattr(plan_module, "environment", lambda: newer)
    after = [plan.address(plan.samples[0], arm) for arm in plan.arms]
    assert not set(before) & set(after)


# What decode imports and what yet decides nothing that a row says; what these import is not looked at.
NOT_MEASURING = {
    "arguments": "reads numbers of the command line",
    "budgets": "of `measure`, which gives decode the settings of an index only",
    "compare": "for its hash of a method's code",
    "data": "of `prepare`, which tells decode what an index wants only",
    "difficulty": "of `prepare`",
    "dump_plan": "holds the model's plan, and refuses",
    "environment": "a part of the address itself",
    "errors": "only says what failed",
    "hardware": "counts cores; their number is in the identity",
    "head_file": "files of a data set, which decode does not read",
    "indexes": "the methods: each is hashed for its own rows",
    "index_cache": "of `measure`",
    "metrics": "of `truth`, which gives decode neighbours only",
    "remote": "reads data sets from elsewhere",
    "results": "the folder of rows",
    "table": "shows rows",
    "timing": "of `measure`",
    "vector_set": "data sets, which decode does not read",
    "writer": "writes dumps",
}


def test_every_module_that_decode_imports_is_hashed_or_excepted_for_a_reason():
    package = Path(decode.__file__).parent.parent
    seen, files = {"decode"}, sorted((package / "decode").rglob("*.py"))
    while files:
        new = imported(files.pop()) - seen
        seen |= new
        files += [package / f"{name}.py" for name in new - set(NOT_MEASURING)]
    seen -= {"decode", *NOT_MEASURING}
    assert sorted(seen - set(MEASURING)) == []
    assert sorted(set(MEASURING) - seen) == []


def imported(file):
    """The modules and packages directly in ra_bench that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ra_bench.")}
