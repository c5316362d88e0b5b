"""A dump holds what the model made, changes nothing that it computes, and is whole or absent."""

import contextlib
import errno
import functools
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface

from ra_bench.arguments import parse_tokens
from ra_bench.capture import ATTENTION_NAME, BackgroundWriter, observed
from ra_bench.dump import DumpSettings, dump, make_plan
from ra_bench.errors import RunError, UsageError
from ra_bench.prefill import prefill
from ra_bench.vectors import DataSet
from ra_bench.writer import HeadWriter

sys.path.append(str(Path(__file__).parent))
import tiny_model

N, STEPS, STRIDE = 64, 6, 4


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    return str(path)


@pytest.fixture
def model(tmp_path):
    return str(tiny_model.save_config(tmp_path / "model"))


@pytest.fixture
def settings(tmp_path, model, prompt):
    """Builds settings for the tiny model; keyword arguments change them."""

    def make(**changes):
        usual = {
            "model": model,
            "out": tmp_path / "dump",
            "prompts": (prompt,),
            "context_tokens": N,
            "decode_steps": STEPS,
            "query_stride": STRIDE,
            "device": "cpu",
            "random_weights": True,
        }
        return DumpSettings(**usual | changes)

    return make


def plain_run(model, ids, steps):
    """What a plain transformers run keeps and decodes: its cache, and the tokens fed to it."""
    with torch.inference_mode():
        out = model(ids, use_cache=True)
        for _ in range(steps):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], 1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return out.past_key_values, ids


# --- what is recorded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "cohere", "granite", "mistral", "gemma3_text"])
def test_the_hooked_models_logits_equal_the_plain_models(family, implementation):
    model = tiny_model.build(family)
    model.set_attn_implementation(implementation)
    ids = tiny_model.token_ids(N)
    calls = []
    with torch.inference_mode():
        plain = model(ids).logits
        with observed(model, lambda module, *_: calls.append(module.layer_idx)):
            hooked = model(ids).logits
        after = model(ids).logits
    assert calls == [0, 1, 2]
    assert torch.equal(plain, hooked)
    assert torch.equal(plain, after)
    assert model.config._attn_implementation == implementation


def test_without_a_mask_function_causality_would_be_lost():
    """The trap that `observed` avoids: it must show here, or the test above proves nothing."""
    model = tiny_model.build("llama")
    model.set_attn_implementation("eager")
    ids = tiny_model.token_ids(N)
    with torch.inference_mode():
        plain = model(ids).logits
        with observed(model, lambda *_: None):
            AttentionMaskInterface._global_mapping.pop(ATTENTION_NAME)
            maskless = model(ids).logits
    assert not torch.allclose(plain, maskless, atol=1e-2)
    assert ATTENTION_NAME in AttentionInterface._global_mapping


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "glm"])
def test_keys_and_values_are_those_of_a_plain_runs_cache(tmp_path, settings, prompt, family):
    folder = tiny_model.save_model(tmp_path / "weights", family)
    data = dump(settings(model=str(folder), random_weights=False, dtype="float32"))
    ids = AutoTokenizer.from_pretrained(folder)(Path(prompt).read_text(), return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cache, _ = plain_run(plain, ids[:, :N], STEPS)
    assert len(data.heads) == tiny_model.LAYERS * tiny_model.KV_HEADS
    for name in data.heads:
        head = data.load(name)
        layer = cache.layers[name.layer]
        np.testing.assert_array_equal(head.keys, layer.keys[0, name.kv_head].numpy())
        np.testing.assert_array_equal(head.values, layer.values[0, name.kv_head].numpy())
        np.testing.assert_array_equal(head.key_positions, np.arange(N + STEPS))


def test_queries_are_those_that_attention_got(settings, prompt):
    """Recomputed from the layer's input: projected, rotated, scaled."""
    data = dump(settings(dtype="float32", layers="0"))
    model = tiny_model.build("llama")
    _, ids = plain_run(model, torch.tensor([list(Path(prompt).read_bytes()[:N])]), STEPS)
    attention = model.model.layers[0].self_attn
    with torch.inference_mode():
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
        projected = attention.q_proj(hidden)[0].view(N + STEPS, tiny_model.HEADS, tiny_model.DIM).numpy()
    group = tiny_model.HEADS // tiny_model.KV_HEADS
    for name in data.heads:
        head = data.load(name)
        assert head.about.group == group
        for queries, positions, heads in (
            (head.prefill_queries, head.prefill_query_positions, head.prefill_query_heads),
            (head.decode_queries, head.decode_query_positions, head.decode_query_heads),
        ):
            expected = head.about.rope.apply(projected[positions, heads], positions) * tiny_model.DIM**-0.5
            np.testing.assert_allclose(queries, expected, atol=1e-5)
        np.testing.assert_array_equal(head.prefill_query_positions, np.repeat(np.arange(0, N, STRIDE), group))
        np.testing.assert_array_equal(head.decode_query_positions, np.repeat(np.arange(N, N + STEPS), group))
        np.testing.assert_array_equal(head.decode_steps, np.repeat(np.arange(STEPS), group))
        np.testing.assert_array_equal(
            np.unique(head.decode_query_heads), name.kv_head * group + np.arange(group)
        )


def test_the_models_own_softmax_scale_is_recorded(tmp_path, settings):
    folder = str(tiny_model.save_config(tmp_path / "granite", "granite"))
    data = dump(settings(model=folder, decode_steps=0))
    assert data.load(data.heads[0]).about.softmax_scale == 0.3


@pytest.mark.parametrize(
    ("family", "windows"), [("mistral", [24, 24, 24]), ("gemma3_text", [24, None, 24]), ("llama", [None] * 3)]
)
def test_sliding_layers_are_recorded_as_such_with_all_their_keys(tmp_path, settings, family, windows):
    data = dump(settings(model=str(tiny_model.save_config(tmp_path / family, family)), kv_heads="1"))
    for name, window in zip(data.heads, windows, strict=True):
        head = data.load(name)
        assert head.metadata.window == window
        assert head.about.layer_kind == ("full_attention" if window is None else "sliding_attention")
        np.testing.assert_array_equal(head.key_positions, np.arange(N + STEPS))


def test_a_part_of_the_layers_and_heads_is_what_the_whole_has(tmp_path, settings):
    whole = dump(settings())
    part = dump(settings(out=tmp_path / "part", layers="0,2", kv_heads="1", query_stride=1))
    assert part.heads == [("doc000", 0, 1), ("doc000", 2, 1)]
    for name in part.heads:
        np.testing.assert_array_equal(part.load(name).keys, whole.load(name).keys)
        every = part.load(name).prefill_queries.reshape(N, -1)
        np.testing.assert_array_equal(
            every[::STRIDE].reshape(-1, tiny_model.DIM), whole.load(name).prefill_queries
        )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 32])
def test_the_chunks_of_the_prefill_do_not_show(tmp_path, settings, monkeypatch, chunk_tokens):
    whole = dump(settings(dtype="float32"))
    monkeypatch.setattr("ra_bench.dump.prefill", functools.partial(prefill, chunk_tokens=chunk_tokens))
    chunked = dump(settings(out=tmp_path / "chunked", dtype="float32"))
    for name in whole.heads:
        one, other = whole.load(name), chunked.load(name)
        np.testing.assert_array_equal(one.prefill_query_positions, other.prefill_query_positions)
        for what in ("keys", "values", "prefill_queries", "decode_queries"):
            np.testing.assert_allclose(getattr(one, what), getattr(other, what), atol=1e-4, rtol=1e-4)


def test_the_same_inputs_give_the_same_bytes(tmp_path, settings):
    one, two = dump(settings()), dump(settings(out=tmp_path / "again"))
    assert one.hash == two.hash
    for path in one.path.iterdir():
        assert path.read_bytes() == (two.path / path.name).read_bytes()
    assert dump(settings(out=tmp_path / "seed", seed=1)).hash != one.hash


def test_several_prompts_are_several_documents(tmp_path, settings, prompt, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Another text. " * 10))
    data = dump(settings(prompts=(prompt, "-"), layers="1"))
    assert [name.document for name in data.heads] == ["doc000"] * 2 + ["doc001"] * 2
    one, two = data.load(("doc000", 1, 0)), data.load(("doc001", 1, 0))
    assert (one.metadata.prompt, two.metadata.prompt) == ("file prompt.txt", "standard input")
    assert one.metadata.token_hash != two.metadata.token_hash
    assert not np.array_equal(one.keys, two.keys)


def test_the_default_text_is_pythons_own_sources(settings):
    data = dump(settings(prompts=(), layers="0", kv_heads="0"))
    assert data.load(data.heads[0]).metadata.prompt.startswith("Python 3.")


def test_the_record_of_the_run_names_no_folder_of_this_machine(tmp_path, settings):
    data = dump(settings())
    text = (data.path / "dump.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["settings"]["model"] == "model"
    assert data.settings["random_weights"]
    assert data.load(data.heads[0]).metadata.random_weights


def test_rope_scaling_lengthens_the_context_and_is_recorded(settings):
    with pytest.raises(UsageError, match="must be at most 512 tokens"):
        make_plan(settings(context_tokens=600))
    assert make_plan(settings(context_tokens=600, rope_scaling="linear:2")).shape.max_tokens == 1024
    data = dump(settings(rope_scaling="yarn:4", layers="0"))
    rope = data.load(data.heads[0]).about.rope
    assert rope.scaling == "yarn"
    assert rope.attention_factor > 1


def test_progress_counts_layers_and_steps_and_comes_with_an_estimate(settings):
    seen = []
    data = dump(settings(), seen.append)
    assert [p.done for p in seen if p.stage == "prefill"] == [1, 2, 3]
    assert [p.done for p in seen if p.stage == "decode"] == list(range(1, STEPS + 1))
    vectors = sum(
        2 * data.load(name).keys.nbytes + 2 * data.load(name).decode_queries.nbytes for name in data.heads
    )
    assert seen[0].stage == "estimate"
    assert vectors < seen[0].total < 10 * vectors


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "3"}, "--layers 3 does not exist: the model has 0-2"),
        ({"layers": "0,x"}, "--layers must be numbers and ranges"),
        ({"layers": ""}, "--layers must be numbers"),
        ({"layers": "2-1"}, "--layers: a range must rise"),
        ({"kv_heads": "0-2"}, "--kv-heads 2 does not exist: the model has 0-1"),
        ({"seed": -1}, r"--seed must be at least 0 and below 1,000,000,000, got -1"),
        ({"context_tokens": 1 << 31}, r"--context and --decode-steps must be below 2\^31 tokens"),
        ({"decode_steps": -1}, "--decode-steps must be at least 0, got -1"),
        ({"query_stride": 0}, "--query-stride must be at least 1, got 0"),
        ({"learn_share": 0.0}, "--learn-share must be more than 0 and at most 1, got 0"),
        ({"learn_share": 0.5}, "--learn-share and --query-stride choose the same queries"),
        ({"context_tokens": 0}, "--context must be at least 1, got 0"),
        ({"context_tokens": 510}, "must be at most 512 tokens for model, got 516"),
        ({"dtype": "bfloat16"}, "--dtype must be float16 or float32"),
        ({"device": "tpu"}, "--device must be auto, cpu or cuda"),
        ({"rope_scaling": "ntk:2"}, "--rope-scaling must be one of linear, yarn"),
        ({"rope_scaling": "yarn"}, "a factor above 1"),
        ({"rope_scaling": "yarn:0.5"}, "a factor above 1"),
        ({"model": "./nowhere"}, "--model ./nowhere does not exist"),
        ({"model": "absent.gguf"}, "--model absent.gguf does not exist"),
        ({"prompts": ("absent.txt",)}, "--prompt absent.txt cannot be read"),
        ({"prompts": ("-", "-")}, "standard input"),
        ({"context_tokens": 400}, "has 180 tokens, fewer than --context 400"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(settings, changes, message):
    with pytest.raises(UsageError, match=message) as error:
        dump(settings(**changes))
    assert "\n" not in str(error.value)
    assert not settings().out.exists()


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_is_refused(settings, prompt, text):
    Path(prompt).write_text(text)
    with pytest.raises(UsageError, match="is empty"):
        dump(settings())


def test_a_prompt_that_is_not_text_is_refused(settings, prompt):
    Path(prompt).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        dump(settings())


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path, settings, prompt):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"without config\.json"):
        dump(settings(model=str(tmp_path / "empty")))
    with pytest.raises(UsageError, match="must be a hub name, a folder or a GGUF file"):
        dump(settings(model=prompt))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nothing more")
    with pytest.raises(RunError, match=r"bad\.gguf could not be loaded") as error:
        dump(settings(model=str(tmp_path / "bad.gguf")))
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_line(settings, monkeypatch):
    def offline(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with pytest.raises(RunError, match="model org/name could not be loaded: We couldn't connect") as error:
        dump(settings(model="org/name"))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_refused(settings):
    with pytest.raises(UsageError, match="--device cuda: torch finds no CUDA device"):
        dump(settings(device="cuda"))


@pytest.mark.parametrize(
    ("family", "what"), [("gemma2", "soft-cap"), ("gpt_oss", "sinks"), ("deepseek_v3", "MLA")]
)
def test_models_whose_logits_are_more_than_q_times_k_are_refused(tmp_path, settings, family, what):
    folder = tmp_path / family
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UsageError, match=what):
        dump(settings(model=str(folder)))


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias"])
def test_a_layer_that_changes_its_logits_is_refused_when_it_is_tried(settings, argument, monkeypatch):
    def probed(model, observe):
        def with_argument(module, query, key, value, kwargs):
            observe(module, query, key, value, kwargs | {argument: torch.ones(1)})

        return observed(model, with_argument)

    monkeypatch.setattr("ra_bench.capture.observed", probed)
    with pytest.raises(UsageError, match=r"layer 0 has .* not supported yet"):
        dump(settings())


def test_a_folder_in_use_is_refused_unless_forced(settings):
    out = settings().out
    out.mkdir()
    (out / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files already"):
        dump(settings())
    dump(settings(force=True))
    with pytest.raises(UsageError, match="holds a finished dump already"):
        dump(settings())
    data = dump(settings(force=True, layers="1"))
    assert {name.layer for name in data.heads} == {1}
    assert sorted(path.name for path in out.iterdir() if "_layer1_" not in path.name) == [
        "dump.json",
        "note.txt",
    ]


def test_a_disk_too_small_is_refused_before_the_model_is_loaded(settings, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"needs about .* bytes, 1000 are free"):
        dump(settings())


def test_too_few_open_files_are_refused_or_asked_for(settings, monkeypatch):
    asked = []
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 10_000))
    make_plan(settings())
    assert asked == [(256 + 3 * 6, 10_000)]
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 200))
    with pytest.raises(UsageError, match="need 274 open files, the system allows 200"):
        make_plan(settings())


# --- what is left when it ends early ----------------------------------------------------------------------


def leaves_nothing(settings):
    with pytest.raises(UsageError, match="no such folder"):
        DataSet.open(settings.out)
    assert not settings.out.exists()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".parquet"}


@pytest.mark.parametrize(("stage", "kept"), [("prefill", 0), ("prefill", 2), ("decode", 2)])
def test_after_an_interruption_the_same_settings_go_on_and_give_the_same_bytes(
    settings, tmp_path, stage, kept
):
    def interrupt(progress):
        if progress.stage == stage and progress.done == kept + 1:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        dump(settings(), interrupt)
    with pytest.raises(UsageError):
        DataSet.open(settings().out)
    left = files_of(settings().out) if settings().out.exists() else {}
    stamps = {name: (settings().out / name).stat().st_mtime_ns for name in left}
    assert not [name for name in left if "decode" in name]
    assert len(left) >= 6 * (kept - 1)  # the last layer was perhaps still in the writer's hands
    dump(settings())
    whole = dump(settings(out=tmp_path / "whole"))
    assert files_of(settings().out) == files_of(whole.path)
    assert stamps == {name: (settings().out / name).stat().st_mtime_ns for name in left}
    assert DataSet.open(settings().out).hash == whole.hash
    assert sorted(path.suffix for path in settings().out.iterdir() if path.suffix != ".parquet") == [".json"]


def test_a_finished_document_is_not_prefilled_again(settings, prompt):
    def interrupt(progress):
        if progress.document == "doc001":
            raise KeyboardInterrupt

    both = {"prompts": (prompt, prompt)}
    with contextlib.suppress(KeyboardInterrupt):
        dump(settings(**both), interrupt)
    seen = set()
    dump(settings(**both), lambda progress: seen.add(progress.document))
    assert seen == {"", "doc001"}


def test_an_unfinished_dump_of_other_settings_is_refused_unless_forced(settings):
    def interrupt(progress):
        if progress.stage == "decode":
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        dump(settings(), interrupt)
    with pytest.raises(
        UsageError, match="holds an unfinished dump of another kind: its seed is 0, not 1; --force"
    ):
        dump(settings(seed=1))
    dump(settings(seed=1, force=True))


def test_a_share_of_the_prefills_queries_is_kept_evenly_and_decode_queries_whole(settings):
    head = dump(settings(learn_share=0.4, query_stride=1)).load(("doc000", 0, 0))
    tokens = head.prefill_query_positions[:: head.about.group]
    assert len(tokens) == int(N * 0.4)
    assert set(np.diff(tokens)) == {2, 3}
    assert len(head.decode_queries) == STEPS * head.about.group


def test_a_dump_above_max_bytes_is_refused_before_the_model_is_loaded(settings):
    size = make_plan(settings()).estimated_bytes
    make_plan(settings(max_bytes=size))
    with pytest.raises(
        UsageError, match=rf"--max-bytes must be at least the dump's {size} bytes, got {size - 1}"
    ):
        dump(settings(max_bytes=size - 1))


def test_a_full_disk_leaves_nothing_and_says_so(settings, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
    with pytest.raises(RunError, match="the disk is full"):
        dump(settings())
    leaves_nothing(settings())


def test_keys_that_float16_cannot_hold_are_refused(settings, monkeypatch):
    append = HeadWriter.append

    def append_more(self, vectors, *rest):
        append(self, vectors.astype(np.float32) * 1e9, *rest)

    monkeypatch.setattr(HeadWriter, "append", append_more)
    with pytest.raises(RunError, match="not finite as float16; dump as float32"):
        dump(settings())
    leaves_nothing(settings())


def test_the_writers_error_stops_the_model():
    def fail(_):
        raise OSError(errno.EIO, "broken")

    writer = BackgroundWriter(fail)
    calls = 0
    with contextlib.suppress(OSError), writer:
        for _ in range(100):
            writer.wait_for_room()
            writer.put(object())
            calls += 1
    assert calls < 5


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("32k", 32768), ("128K", 131072), ("2m", 2097152)]
)
def test_a_context_is_written_in_tokens_or_k(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "0", "4 k", "32g", "²"])
def test_another_context_is_refused(text):
    with pytest.raises(UsageError, match="--context must be a number of tokens"):
        parse_tokens(text)
