"""Partial attention and its merge against dense softmax attention in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ra_bench.indexes._native import _native

from ra_bench.attention import merge, partial_attention, tensor_attention
from ra_bench.truth import exact_topk, scores_of


def dense(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    largest = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=1, keepdims=True)
    return (weights / total) @ values, np.log(total[:, 0]) + largest[:, 0]


def problem(seed: int, largest_logit: float, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries (3, 8), keys and values (n, 8) in float32 whose largest logit, or its negative, is as given."""
    rng = np.random.default_rng(seed)
    queries, keys, values = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (3, n, n))
    return queries * np.float32(largest_logit / np.abs(queries @ keys.T).max()), keys, values


# A logit of 1e4 has an error of 1e-3 in float32, and so have the weights and what they weigh.
LARGEST_LOGITS = [1.0, 50.0, 1e4]
PARTS = st.lists(st.integers(0, 4), min_size=40, max_size=40)  # the part that each key belongs to


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), part_of=PARTS, largest_logit=st.sampled_from(LARGEST_LOGITS))
def test_parts_in_any_split_equal_dense_attention(
    seed: int, part_of: list[int], largest_logit: float
) -> None:
    queries, keys, values = problem(seed, largest_logit)
    places = [np.flatnonzero(np.array(part_of) == part) for part in range(5)]  # some are empty

    output, lse = merge([partial_attention(queries, keys[place], values[place]) for place in places])

    expected_output, expected_lse = dense(queries, keys, values)
    np.testing.assert_allclose(output, expected_output, atol=5e-3 if largest_logit == 1e4 else 1e-4)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), part_of=PARTS, largest_logit=st.sampled_from(LARGEST_LOGITS))
def test_tensors_in_any_split_equal_dense_attention(
    dtype: torch.dtype, seed: int, part_of: list[int], largest_logit: float
) -> None:
    queries, keys, values = (torch.tensor(rows).to(dtype) for rows in problem(seed, largest_logit))
    places = [torch.tensor(part_of) == part for part in range(5)]

    output, lse = merge([tensor_attention(queries, keys[place], values[place]) for place in places])

    assert output.dtype == lse.dtype == torch.float32
    expected = dense(*(rows.float().numpy() for rows in (queries, keys, values)))
    np.testing.assert_allclose(output, expected[0], atol=5e-3 if largest_logit == 1e4 else 1e-4)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    part_of=st.lists(PARTS, min_size=3, max_size=3),
    largest_logit=st.sampled_from(LARGEST_LOGITS),
    key_type=st.sampled_from([np.float16, np.float32]),
    padding=st.integers(0, 3),
)
def test_ids_in_any_split_and_any_padding_equal_dense_attention(
    seed: int, part_of: list[list[int]], largest_logit: float, key_type: type, padding: int
) -> None:
    """Every query splits the keys its own way; ids are shuffled and padded with -1, some rows are empty."""
    queries, keys, values = problem(seed, largest_logit)
    keys, values = keys.astype(key_type), values.astype(key_type)
    rng = np.random.default_rng(seed)
    parts = []
    for part in range(5):
        rows = [rng.permutation(np.flatnonzero(np.array(split) == part)) for split in part_of]
        width = max(map(len, rows)) + padding
        ids = np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in rows])
        parts.append(_native.gather_attention(queries, ids.astype(np.int32), keys, values))

    output, lse = merge(parts)

    expected_output, expected_lse = dense(queries, keys.astype(np.float32), values.astype(np.float32))
    np.testing.assert_allclose(output, expected_output, atol=5e-3 if largest_logit == 1e4 else 1e-4)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("far", [2e4, 1e30])
def test_a_part_far_below_another_adds_nothing_and_breaks_nothing(far: float) -> None:
    near = np.ones((2, 4), np.float32), np.full(2, far, np.float32)
    below = np.full((2, 4), 7, np.float32), np.full(2, -far, np.float32)

    for parts in ([near, below], [below, near]):
        output, lse = merge(parts)
        np.testing.assert_array_equal(output, near[0])
        np.testing.assert_array_equal(lse, near[1])


def test_one_part_is_itself() -> None:
    output, lse = np.random.default_rng(4).normal(size=(2, 3, 3)).astype(np.float32)
    lse = lse[:, 0]

    merged = merge([(output, lse)])

    np.testing.assert_allclose(merged[0], output, rtol=1e-6)
    np.testing.assert_allclose(merged[1], lse, rtol=1e-6)


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

    for parts in ([empty, empty], [tuple(map(torch.tensor, empty))] * 3):
        output, lse = merge(parts)
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
