"""The rotation that a dump records is the one that its model applies."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from ra_bench.capture import observed, probe
from ra_bench.head import Rope
from ra_bench.rope import watch_unrotated_keys

sys.path.append(str(Path(__file__).parent))
import tiny_model

LENGTH = 40
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def captured_keys(model):
    """Keys (layers, H, n, d) that reach attention, and what the key modules made before."""
    keys = {}

    def observe(module, query, key, value, kwargs):
        keys[module.layer_idx] = key[0].numpy()

    with torch.inference_mode(), watch_unrotated_keys(model) as outputs, observed(model, observe):
        model(tiny_model.token_ids(LENGTH), use_cache=False)
    return keys, {module.layer_idx: out for module, out in outputs.items()}


@pytest.mark.parametrize(
    ("family", "changes", "layout", "rotary_dims", "source"),
    [
        ("llama", {}, "half", 16, "k_proj"),
        ("llama", {"rope_parameters": YARN}, "half", 16, "k_proj"),
        ("llama", {"rope_parameters": LLAMA3}, "half", 16, "k_proj"),
        ("qwen3", {}, "half", 16, "k_norm"),
        ("olmo2", {}, "half", 16, "k_norm"),
        ("cohere", {}, "interleaved", 16, "k_proj"),
        ("cohere", {"use_qk_norm": True}, "interleaved", 16, "k_norm"),
        ("glm", {}, "interleaved", 8, "k_proj"),
        ("phi", {}, "half", 8, "k_proj"),
        ("stablelm", {}, "half", 4, "k_proj"),
        ("mistral", {}, "half", 16, "k_proj"),
        ("gemma3_text", {}, "half", 16, "k_norm"),
    ],
)
def test_undoing_the_rotation_gives_the_projected_keys(family, changes, layout, rotary_dims, source):
    model = tiny_model.build(family, **changes)
    facts = probe(model, (0, 1, 2), 300)
    keys, outputs = captured_keys(model)
    for layer in range(tiny_model.LAYERS):
        rope = facts[layer].rotation.read()
        assert (rope.layout, rope.rotary_dims) == (layout, rotary_dims)
        before = outputs[layer][source]
        before = before.reshape(LENGTH, -1, tiny_model.DIM) if before.ndim == 3 else before[0]
        if before.shape[0] != LENGTH:
            before = before.transpose(0, 1)
        for head, rotated in enumerate(keys[layer]):
            undone = rope.undo(rotated, np.arange(LENGTH))
            np.testing.assert_allclose(undone, before[:, head].numpy(), atol=2e-5)


def test_a_fused_projection_is_understood():
    rope = probe(tiny_model.build("phi3"), (1,), 300)[1].rotation.read()
    assert rope.layout == "half"


@pytest.mark.parametrize(
    ("family", "layout"), [("llama", "half"), ("qwen3", "half"), ("cohere", "interleaved")]
)
def test_the_layout_is_found_in_bfloat16_too(family, layout):
    facts = probe(tiny_model.build(family).to(torch.bfloat16), (0, 1, 2), 300)
    assert {facts[layer].rotation.layout for layer in facts} == {layout}


def test_scalings_are_read_from_the_model():
    yarn = probe(tiny_model.build("llama", rope_parameters=YARN), (0,), 300)[0].rotation.read()
    assert yarn.scaling == "yarn"
    assert yarn.attention_factor == pytest.approx(0.1 * np.log(4) + 1)  # arXiv 2309.00071
    plain = probe(tiny_model.build("llama"), (0,), 300)[0].rotation.read()
    assert yarn.inverse_frequencies[-1] == pytest.approx(plain.inverse_frequencies[-1] / 4)


def test_each_kind_of_layer_has_its_own_frequencies():
    facts = probe(tiny_model.build("gemma3_text"), (0, 1), 300)
    local, full = (facts[layer].rotation.read() for layer in (0, 1))
    assert local.inverse_frequencies[1] == pytest.approx(1e4 ** (-2 / 16))
    assert full.inverse_frequencies[1] == pytest.approx(1e6 ** (-2 / 16))


def test_an_unknown_rotation_is_none_with_its_reason(monkeypatch):
    model = tiny_model.build("llama")
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k * 2 + 1)
    )
    rotation = probe(model, (0,), 300)[0].rotation
    assert rotation.read() is None
    assert "no rotation of k_proj" in rotation.note


def test_a_layer_without_rotation_is_none_with_its_reason(monkeypatch):
    model = tiny_model.build("llama")
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k)
    )
    rotation = probe(model, (0,), 300)[0].rotation
    assert rotation.read() is None
    assert rotation.note == "keys are not rotated after k_proj"


def test_frequencies_that_change_with_the_length_are_noticed():
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    rotation = probe(tiny_model.build("llama", rope_parameters=dynamic), (0,), 300)[0].rotation
    assert not rotation.changes_within(100, 200)
    assert rotation.changes_within(500, 600)
    assert not rotation.changes_within(600, 600)
    assert not probe(tiny_model.build("llama"), (0,), 300)[0].rotation.changes_within(500, 600)


@pytest.mark.parametrize("position", [0, 1, 31_743, 131_071])
def test_angles_are_as_inexact_as_the_models(position):
    """At 128K tokens a float32 angle is off by 0.004 radians: undoing must undo that too."""
    rotary = LlamaRotaryEmbedding(
        tiny_model.config(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    )
    keys = torch.randn(1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    _, rotated = apply_rotary_pos_emb(keys, keys, *rotary(keys, torch.tensor([[position]])))
    rope = Rope(rotary.inv_freq.numpy(), 16)
    np.testing.assert_allclose(rope.apply(keys[0, 0].numpy(), np.array([position])), rotated[0, 0], atol=1e-6)
    np.testing.assert_allclose(rope.undo(rotated[0, 0].numpy(), np.array([position])), keys[0, 0], atol=1e-6)
