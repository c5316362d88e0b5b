"""Captured steps against eager ones, on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from decoding import TOKENS, Decoding

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
STEPS = 70  # one insertion
CAPTURED = {"auto": "graphs", "compiled": "compiled", "eager": "eager"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Decoding(tmp_path_factory.mktemp("llama"), steps=STEPS, device="cuda", head_dim=64)


def cache_of(llama, kind):
    if kind == "indexed":
        return llama.indexed(llama.build("flat"), k=10 * TOKENS)
    return getattr(llama.maker, kind)()


@pytest.mark.parametrize("kind", ["dense", "dense_host", "indexed"])
@pytest.mark.parametrize("capture", ["auto", "compiled"])
def test_captured_steps_decode_as_eager_ones_do(kind, capture, llama):
    logits = {}
    for how in ("eager", capture):
        llama.capture = how
        cache = cache_of(llama, kind)
        logits[how], made = llama.run(cache)
        assert cache.track.capture == CAPTURED[how], cache.track.note
        for step in made.steps:
            assert min(step.parts.values()) >= 0, step.parts
            assert step.parts["gpu_attention"] > 0
    off = np.linalg.norm(logits[capture] - logits["eager"]) / np.linalg.norm(logits["eager"])
    assert off < (1e-2 if capture == "auto" else 5e-2)


def test_all_keys_by_an_index_give_dense_s_logits(llama):
    llama.capture = "auto"
    logits = {kind: llama.run(cache_of(llama, kind))[0] for kind in ("dense", "indexed")}
    assert np.linalg.norm(logits["indexed"] - logits["dense"]) / np.linalg.norm(logits["dense"]) < 5e-2
