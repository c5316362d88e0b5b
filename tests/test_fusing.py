"""The compiled parts of a model; the compiler's back end is left out, since only a GPU gains from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model
from torch._dynamo.utils import counters

from ra_bench.decode.fusing import ROTARY, fused


@pytest.mark.parametrize(
    ("family", "parts"), [("llama", 3), ("qwen3", 5)]
)  # qwen3: norms of queries and keys
def test_a_fused_model_answers_alike_and_is_left_as_it_was(family, parts, tmp_path):
    tiny_model.save_config(tmp_path, family)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    file = sys.modules[type(model).__module__]
    rotary = getattr(file, ROTARY)
    ids = torch.tensor([[3]])
    with torch.inference_mode():
        plain = model(ids).logits
        counters.clear()
        with fused(model, backend="eager"):
            found = model(ids).logits
        assert counters["stats"]["unique_graphs"] == parts  # once for all layers
        again = model(torch.tensor([[3, 4, 5]])).logits[:, 0]
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(again, plain[:, 0])
    assert counters["stats"]["unique_graphs"] == parts
    assert getattr(file, ROTARY) is rotary
    assert all(module._compiled_call_impl is None for module in model.modules())
