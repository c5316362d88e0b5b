"""The rotation of many keys at once is that of `Rope`, and heads of equal positions share it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ra_bench.head import Head, Rope


def rotary():
    import importlib

    return importlib.import_module("ra_bench.indexes._rotary")


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [8, 12])
def test_it_turns_as_rope_does(layout: str, dims: int):
    rope = Rope(np.geomspace(1, 1e-4, dims // 2).astype(np.float32), dims, layout, attention_factor=1.3)
    positions = np.array([3, 500, 70_000, 131_071])
    rows = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    turn = rotary().rotary(rope, positions)
    np.testing.assert_allclose(
        turn.apply(torch.tensor(rows), slice(0, 4)).numpy(), rope.apply(rows, positions), atol=1e-6
    )
    places = torch.tensor([2, 0])
    np.testing.assert_allclose(
        turn.apply(torch.tensor(rows[:2]), places).numpy(), rope.apply(rows[:2], positions[[2, 0]]), atol=1e-6
    )
    again = rotary().from_arrays(rotary().to_arrays(turn))
    assert again is turn, "heads with equal positions share the tables"


def test_without_a_known_rotation_there_is_none():
    rope = Rope(np.ones(2, np.float32), 4)
    stage_pre = Rope(np.ones(2, np.float32), 4, stage="pre")
    find = rotary().rotary_of
    assert find(None) is None
    assert find(Head(rope=None, key_positions=np.arange(3))) is None
    assert find(Head(rope=stage_pre, key_positions=np.arange(3))) is None
    assert find(Head(rope=rope, key_positions=np.arange(3))) is not None
    assert rotary().to_arrays(None) == {}
    assert rotary().from_arrays({}) is None
