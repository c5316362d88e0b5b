"""Partial attention and its merge against dense softmax attention in float64."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ra_bench.attention import merge, partial_attention
from ra_bench.truth import exact_topk, scores_of


def dense(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    largest = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=1, keepdims=True)
    return (weights / total) @ values, np.log(total[:, 0]) + largest[:, 0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    scale=st.sampled_from([1, 50, 1000]),
)
def test_parts_in_any_split_equal_dense_attention(seed: int, cuts: list[int], scale: int) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(3, 8)).astype(np.float32) * scale
    keys, values = rng.normal(size=(2, 40, 8)).astype(np.float32)
    edges = [0, *sorted(cuts), 40]

    parts = [partial_attention(queries, keys[a:b], values[a:b]) for a, b in itertools.pairwise(edges)]

    output, lse = merge(parts)
    expected_output, expected_lse = dense(queries, keys, values)
    np.testing.assert_allclose(output, expected_output, atol=3e-3 if scale == 1000 else 1e-4)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-4)


def test_limits_hide_later_keys() -> None:
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(4, 8)).astype(np.float32)
    keys, values = rng.normal(size=(2, 10, 8)).astype(np.float32)
    limits = np.array([10, 3, 1, 0])

    output, lse = partial_attention(queries, keys, values, limits)

    for row in range(3):
        expected = dense(queries[row : row + 1], keys[: limits[row]], values[: limits[row]])
        np.testing.assert_allclose(output[row : row + 1], expected[0], atol=1e-5)
    assert lse[3] == -np.inf
    assert not output[3].any()


def test_merging_only_empty_parts_gives_an_empty_part() -> None:
    empty = (np.zeros((2, 4), np.float32), np.full(2, -np.inf, np.float32))

    output, lse = merge([empty, empty])

    assert not output.any()
    assert np.isneginf(lse).all()


def test_exact_topk_equals_a_full_sort(monkeypatch) -> None:
    monkeypatch.setattr("ra_bench.truth.BLOCK_ELEMENTS", 4 * 300 * 7)  # seven rows a block
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(50, 8)).astype(np.float32)
    keys = rng.normal(size=(300, 8)).astype(np.float16)

    ids, scores = exact_topk(queries, keys, 20)

    expected = np.argsort(-(queries @ keys.astype(np.float32).T), axis=1)[:, :20]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, scores_of(queries, keys, ids), rtol=1e-5)


def test_exact_topk_keeps_causality_and_pads() -> None:
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    keys = rng.normal(size=(6, 8)).astype(np.float32)

    ids, scores = exact_topk(queries, keys, 8, np.array([0, 1, 3, 6, 6]))

    assert [(row >= 0).sum() for row in ids] == [0, 1, 3, 6, 6]
    assert (ids[2][:3] < 3).all()
    assert (np.isfinite(scores) == (ids >= 0)).all()
