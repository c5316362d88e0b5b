"""What the caches of live decoding attend to, against a plain forward and against each other."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from decoding import TOKENS, Decoding

from ra_bench.attention import merge, partial_attention
from ra_bench.decode.cache import DenseLayer, WindowLayer
from ra_bench.decode.device_attention import CHUNK_TOKENS, long_attention, masked_attention, merge_two
from ra_bench.decode.indexed import INSERT_BLOCK_TOKENS, IndexedLayer
from ra_bench.decode.slots import Slots
from ra_bench.errors import UsageError
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS

LAYERS, KV_HEADS, GROUP, DIM = 3, 2, 2, 16


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Decoding(tmp_path_factory.mktemp("llama"), steps=150)


def random_rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_masked_attention_is_the_reference_over_what_is_not_hidden():
    queries, keys, values = random_rows(2, 3, 8), random_rows(2, 50, 8, seed=1), random_rows(2, 50, 8, seed=2)
    hidden = torch.arange(50) % 3 == 1
    output, lse = masked_attention(queries, keys, values, 0.25, hidden)
    for head in range(2):
        seen_keys, seen_values = keys[head][~hidden].numpy(), values[head][~hidden].numpy()
        expected = partial_attention(queries[head].numpy() * np.float32(0.25), seen_keys, seen_values)
        np.testing.assert_allclose(output[head], expected[0], atol=1e-5)
        np.testing.assert_allclose(lse[head], expected[1], atol=1e-5)


def test_attention_in_bfloat16_keeps_its_logits_in_float32():
    queries, keys, values = (random_rows(1, 64, 8, seed=seed).bfloat16() for seed in range(3))
    output, lse = masked_attention(queries[:, :2], keys, values, 30.0)
    expected = masked_attention(queries[:, :2].float(), keys.float(), values.float(), 30.0)
    assert output.dtype == lse.dtype == torch.float32
    np.testing.assert_allclose(lse, expected[1], rtol=1e-6)
    np.testing.assert_allclose(output, expected[0], atol=2e-2)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_merge_two_is_the_exact_merge(size):
    outputs, lses = random_rows(2, 2, 3, 8), random_rows(2, 2, 3, seed=1) * size
    lses[1, 0, 0] = -torch.inf
    outputs[1, 0, 0] = 0
    merged = merge_two(outputs[0], lses[0], outputs[1], lses[1])
    for head in range(2):
        parts = [(outputs[part, head].numpy(), lses[part, head].numpy()) for part in range(2)]
        np.testing.assert_allclose(merged[head], merge(parts)[0], atol=1e-5)


def test_long_attention_takes_strided_views_of_whole_chunks():
    keys, values = random_rows(2, CHUNK_TOKENS + 30, 8), random_rows(2, CHUNK_TOKENS + 30, 8, seed=1)
    queries = random_rows(2, 3, 8, seed=2)
    found = long_attention(queries, keys[:, :CHUNK_TOKENS], values[:, :CHUNK_TOKENS], 0.3)
    expected = masked_attention(
        queries, keys[:, :CHUNK_TOKENS].clone(), values[:, :CHUNK_TOKENS].clone(), 0.3
    )
    torch.testing.assert_close(found, expected)


def test_slots_hide_what_is_not_there_and_what_left_the_window_but_no_sink():
    slots = Slots(filled=6, capacity=9, device="cpu", sinks=2, window=3)
    seen = []
    for _ in range(3):
        slots.begin()
        seen.append(torch.nonzero(~slots.hidden)[:, 0].tolist())
        slots.end()
    assert seen == [[0, 1, 4, 5, 6], [0, 1, 5, 6, 7], [0, 1, 6, 7, 8]]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text", "granite", "phi3"])
def test_dense_decoding_gives_the_logits_of_a_plain_forward(family, tmp_path):
    changes = {"layer_types": None} if family == "mistral" else {}
    if family == "mistral":  # its layers all slide: give the index one to serve
        changes = {"sliding_window": None}
    tiny = Decoding(tmp_path, family, **changes)
    logits, _ = tiny.run(tiny.maker.dense())
    np.testing.assert_allclose(logits, tiny.reference(), atol=1e-4)


def test_sliding_layers_stay_as_they_are(tmp_path):
    tiny = Decoding(tmp_path, "gemma3_text")
    assert tiny.plan.indexed_layers == (1,)
    cache = tiny.indexed(tiny.build("flat"), k=TOKENS)
    kinds = [type(layer) for layer in cache.layers]
    assert kinds == [WindowLayer, IndexedLayer, WindowLayer]
    assert tiny.prefilled.layers[0].keys.shape[1] == 24
    logits, _ = tiny.run(cache)
    np.testing.assert_allclose(logits, tiny.reference(), atol=1e-4)


def test_flat_with_all_keys_gives_dense_logits_and_tokens_also_across_insertions(llama):
    dense, _ = llama.run(llama.maker.dense())
    cache = llama.indexed(llama.build("flat"), k=10 * TOKENS)
    logits, made = llama.run(cache)
    np.testing.assert_allclose(logits, dense, atol=1e-4)
    np.testing.assert_allclose(logits, llama.reference(), atol=1e-4)
    top = np.sort(dense, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-4
    assert clear.mean() > 0.9
    assert (logits.argmax(1) == dense.argmax(1))[clear].all()
    layer = cache.layers[0]
    assert layer.inserted_tokens == 150 // INSERT_BLOCK_TOKENS * INSERT_BLOCK_TOKENS
    assert len(layer.indexes[0].keys) == TOKENS - SINK_TOKENS - RECENT_TOKENS + layer.inserted_tokens
    assert sum(step.parts["insert"] > 0 for step in made.steps) == 150 // INSERT_BLOCK_TOKENS


def test_tokens_stay_exact_where_an_index_cannot_insert(llama):
    dense, _ = llama.run(llama.maker.dense())
    built = llama.build(f"{Path(__file__).parent / 'planted_indexes.py'}::Prefix")
    assert not built.can_insert
    cache = llama.indexed(built, k=TOKENS)
    logits, _ = llama.run(cache)
    np.testing.assert_allclose(logits, dense, atol=1e-4)
    assert cache.layers[0].inserted_tokens == 0
    assert cache.layers[0].slots.capacity == SINK_TOKENS + RECENT_TOKENS + 150


def test_an_index_that_finds_little_changes_the_logits(llama):
    dense, _ = llama.run(llama.maker.dense(), steps=4)
    logits, _ = llama.run(llama.indexed(llama.build("random"), k=1), steps=4)
    assert np.abs(logits - dense).max() > 1e-2


def test_the_window_baseline_attends_to_sinks_and_the_last_tokens_only(llama):
    """Against a plain forward whose mask hides the rest."""
    k = 50
    logits, _ = llama.run(llama.maker.window(k), steps=3)
    model, ids = llama.session.model, torch.from_numpy(llama.ids[: TOKENS + 1])[None]
    mask = torch.full((TOKENS + 1, TOKENS + 1), -torch.inf).triu(1)
    mask[TOKENS, SINK_TOKENS : TOKENS + 1 - RECENT_TOKENS - k] = -torch.inf
    with torch.inference_mode():
        expected = model(ids, attention_mask=mask[None, None]).logits[0, -1]
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)


def test_dense_layers_keep_exact_attention(tmp_path):
    tiny = Decoding(tmp_path, dense_layers=(0, 2))
    cache = tiny.indexed(tiny.build("random"), k=1)
    assert [type(layer) for layer in cache.layers] == [DenseLayer, IndexedLayer, DenseLayer]
    everywhere = Decoding(tmp_path, dense_layers=(0, 1))
    assert everywhere.plan.indexed_layers == (2,)


@pytest.mark.parametrize("more", [True, False])
def test_insertions_are_undone_between_runs(llama, more):
    """From what was saved where more runs were to follow, else by building anew."""
    built = llama.build("ra:learn_queries=0")
    first, _ = llama.run(llama.indexed(built, k=20, ef=40), steps=8)
    before_step = built.lend(more)
    llama.run(llama.indexed(built, k=20, ef=40), steps=70, before_step=before_step)
    assert built.tokens == TOKENS - SINK_TOKENS - RECENT_TOKENS + INSERT_BLOCK_TOKENS
    built.lend(more)
    assert built.tokens == TOKENS - SINK_TOKENS - RECENT_TOKENS
    again, _ = llama.run(llama.indexed(built, k=20, ef=40), steps=8)
    np.testing.assert_array_equal(first, again)
    built.close()


def test_a_batch_or_two_tokens_a_step_are_refused(llama):
    cache = llama.maker.dense()
    for shape in ((2, 1), (1, 2)):
        ids = torch.zeros(shape, dtype=torch.long)
        with torch.inference_mode(), cache.serving(llama.session.model):
            cache.begin()
            with pytest.raises(UsageError, match="one token of one text a step"):
                llama.session.model(ids, position_ids=torch.zeros_like(ids), past_key_values=cache)


def test_what_is_read_is_counted_for_each_query(llama):
    cache = llama.indexed(llama.build("flat"), k=10)
    llama.run(cache, steps=3)
    works = cache.layers[0].works
    assert len(works) == 3  # the rehearsal does not count
    assert all(len(step) == KV_HEADS for step in works)
    np.testing.assert_array_equal(works[0][0].keys_read, [TOKENS - SINK_TOKENS - RECENT_TOKENS] * GROUP)


def test_a_model_without_the_interface_s_keys_is_refused(llama):
    cache = llama.maker.dense()
    with torch.inference_mode(), cache.serving(llama.session.model):
        cache.begin()
        cache.layers[1].update = lambda key, value, *_: (key.clone(), value)
        with pytest.raises(UsageError, match="keys of another layer"):
            llama.session.model(
                torch.zeros(1, 1, dtype=torch.long), position_ids=cache.position, past_key_values=cache
            )
    del cache.layers[1].update
