"""A prefill in chunks, layer by layer, is the plain forward: logits, keys, values and queries."""

import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache

from ra_bench.attention_hook import attending
from ra_bench.capture import observed
from ra_bench.errors import UsageError
from ra_bench.prefill import chunk_attention, prefill

sys.path.append(str(Path(__file__).parent))
import tiny_model

N = 61  # above the sliding window of 24, and prime

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "gemma3_text": {},
    "phi": {},
    "phi3": {},
    "cohere": {},
    "gpt_neox": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma2": {"attn_logit_softcapping": None, "sliding_window": 24},
    "qwen2_windows": {
        "family": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 24,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
}


def build(name):
    changes = dict(FAMILIES[name])
    return tiny_model.build(changes.pop("family", name), **changes)


def plain_run(model, ids):
    """Last logits, and by layer the queries, keys and values that attention got, of one forward."""
    seen = {}

    def observe(module, query, key, value, _):
        seen[module.layer_idx] = query[0], key[0], value[0]

    with torch.inference_mode(), observed(model, observe):
        return model(ids, use_cache=False).logits[:, -1], seen


def chunked_run(model, ids, chunk_tokens, **arguments):
    received, queries = {}, {}

    def receive(layer, keys, values):
        assert layer not in received
        received[layer] = keys, values

    def observe(layer, start, chunk):
        assert start == sum(part.shape[1] for part in queries.get(layer, []))
        queries.setdefault(layer, []).append(chunk)

    logits = prefill(model, ids, receive, observe, chunk_tokens, **arguments)
    return logits, {layer: (torch.cat(queries[layer], 1), *pair) for layer, pair in received.items()}


@pytest.mark.parametrize("chunk_tokens", [1, 7, N])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_queries_keys_and_values_are_a_plain_forwards(family, chunk_tokens):
    model, ids = build(family), tiny_model.token_ids(N)
    logits, seen = plain_run(model, ids)
    chunked_logits, chunked = chunked_run(model, ids, chunk_tokens)
    assert chunked_logits.shape == (1, model.config.vocab_size)
    torch.testing.assert_close(chunked_logits, logits, atol=2e-4, rtol=1e-4)
    assert list(chunked) == list(seen) == [0, 1, 2]
    for layer, plain in seen.items():
        for one, other in zip(chunked[layer], plain, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


def test_a_window_matters_to_the_families_that_have_one():
    """Else the test above would not tell whether windows are obeyed."""
    ids = tiny_model.token_ids(N)
    for family in ("mistral", "gemma3_text", "gemma2"):
        narrow, _ = plain_run(build(family), ids)
        wide, _ = plain_run(tiny_model.build(family, **FAMILIES[family] | {"sliding_window": 100}), ids)
        assert (narrow - wide).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_cache_given_is_as_a_plain_forward_leaves_it(family):
    model, ids = build(family), tiny_model.token_ids(N)
    with torch.inference_mode():
        plain = model(ids, use_cache=True)
        cache = DynamicCache(config=model.config)
        logits = prefill(model, ids, lambda *_: None, chunk_tokens=7, cache=cache)
        token = logits.argmax(-1, keepdim=True)
        for one, other in zip(cache.layers, plain.past_key_values.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(one.values, other.values, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(
            model(token, past_key_values=cache).logits,
            model(token, past_key_values=plain.past_key_values).logits,
            atol=2e-4,
            rtol=1e-4,
        )


def test_layers_with_a_recurrent_state_run_in_one_piece_and_keep_it():
    model = tiny_model.build(
        "lfm2", layer_types=["conv", "full_attention", "conv"], conv_L_cache=3, block_auto_adjust_ff_dim=False
    )
    ids = tiny_model.token_ids(N)
    logits, seen = plain_run(model, ids)
    cache = DynamicCache(config=model.config)
    chunked_logits, chunked = chunked_run(model, ids, 7, cache=cache)
    torch.testing.assert_close(chunked_logits, logits, atol=2e-4, rtol=1e-4)
    assert list(chunked) == [1]
    torch.testing.assert_close(chunked[1], seen[1], atol=2e-4, rtol=1e-4)
    token = logits.argmax(-1, keepdim=True)
    with torch.inference_mode():
        step = model(token, past_key_values=cache).logits[:, -1]
        whole = model(torch.cat([ids, token], 1)).logits[:, -1]
    torch.testing.assert_close(step, whole, atol=2e-4, rtol=1e-4)


def test_a_chunk_is_all_that_a_layer_ever_gets():
    model = build("llama")
    widths = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    model.lm_head.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    prefill(model, tiny_model.token_ids(20), lambda *_: None, chunk_tokens=8)
    assert widths == [8, 8, 4] * 3 + [1]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_layers_keys_are_gone_before_the_next_layer_runs_unless_kept(keeps):
    earlier, gone, kept = [], [], []

    def receive(_, keys, values):
        gone.append([storage.expired() for storage in earlier])
        earlier[:] = [StorageWeakRef(keys.untyped_storage()), StorageWeakRef(values.untyped_storage())]
        if keeps:
            kept.append((keys, values))

    prefill(build("llama"), tiny_model.token_ids(20), receive, chunk_tokens=8)
    assert gone == [[], [not keeps] * 2, [not keeps] * 2]


def test_afterwards_the_model_is_as_before_also_when_a_receiver_fails():
    model, ids = build("llama"), tiny_model.token_ids(20)
    before, _ = plain_run(model, ids)

    def fail(*_):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        prefill(model, ids, fail)
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(layer) for layer in model.model.layers)
    assert torch.equal(plain_run(model, ids)[0], before)


def test_an_attention_that_was_left_is_not_kept_alive():
    model, held = build("llama"), torch.empty(3)

    def attention(*_, **__):
        raise AssertionError(held)

    gone = weakref.ref(attention)
    with attending(model, "ra_bench_test", attention, attention):
        del attention
        assert gone() is not None
    assert gone() is None


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize(("tokens", "n"), [(1, 1), (1, 40), (6, 40), (40, 40)])
def test_chunk_attention_equals_softmax_with_a_mask(tokens, n, window):
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(4, tokens, 8, generator=generator)
    keys, values = torch.randn(2, 2, n, 8, generator=generator)
    rows, columns = torch.arange(n - tokens, n)[:, None], torch.arange(n)[None]
    seen = columns <= rows
    arguments = {"scale": 0.7}
    if window is not None:
        seen = seen & (columns > rows - window)
        arguments["sees"] = lambda _, __, query, key: (key <= query) & (key > query - window)
    scores = queries @ keys.repeat_interleave(2, 0).transpose(1, 2) * 0.7
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    output = chunk_attention(queries, keys, values, **arguments)
    torch.testing.assert_close(output, weights @ values.repeat_interleave(2, 0))


@pytest.mark.parametrize("shape", [(2, 5), (1, 0), (5,)])
def test_other_than_one_prompt_is_refused(shape):
    with pytest.raises(UsageError, match="ids must be one prompt"):
        prefill(build("llama"), torch.ones(shape, dtype=torch.long), lambda *_: None)


def test_a_chunk_of_no_tokens_is_refused():
    with pytest.raises(UsageError, match="chunk_tokens must be at least 1, got 0"):
        prefill(build("llama"), tiny_model.token_ids(4), lambda *_: None, chunk_tokens=0)


def test_a_soft_cap_is_refused():
    with pytest.raises(UsageError, match="layer 0 has attention soft-cap"):
        prefill(tiny_model.build("gemma2"), tiny_model.token_ids(4), lambda *_: None)
