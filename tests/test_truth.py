"""Exact top-k against a plain reference: ties, causal limits, more results than keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ra_bench import truth


def slow_topk(queries, keys, k, limit):
    """Scores (m, k), best first, -inf where a query sees fewer keys; one query at a time."""
    out = np.full((len(queries), k), -np.inf, np.float32)
    for i, query in enumerate(queries):
        seen = np.sort(keys[: limit[i]].astype(np.float32) @ query)[::-1][:k]
        out[i, : len(seen)] = seen
    return out


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("values", ["real", "few"])  # few: small integers, so that most scores tie
@pytest.mark.parametrize("k", [1, 7, 100, 3000])
@pytest.mark.parametrize("n", [1, 31, 33, 2000, 5000, 5056])
def test_topk_is_exact(n, k, values, limited, monkeypatch):
    monkeypatch.setattr(truth, "BLOCK_ELEMENTS", 1 << 16)  # several blocks of queries
    rng = np.random.default_rng(n + k)
    real = values == "real"
    keys = (rng.standard_normal((n, 6)) if real else rng.integers(-2, 3, (n, 6))).astype(np.float32)
    queries = (rng.standard_normal((13, 6)) if real else rng.integers(-2, 3, (13, 6))).astype(np.float32)
    limit = rng.integers(0, n + 1, 13) if limited else np.full(13, n)
    ids, scores = truth.exact_topk(queries, keys, k, limit if limited else None)
    assert ids.dtype == np.int32
    assert ids.shape == scores.shape == (13, k)
    np.testing.assert_allclose(scores, slow_topk(queries, keys, k, limit), rtol=1e-5, atol=1e-5)
    for i, row in enumerate(ids):
        found = row[row >= 0]
        assert len(np.unique(found)) == len(found) == min(k, limit[i])
        assert (found < limit[i]).all()
        np.testing.assert_allclose(keys[found] @ queries[i], scores[i, : len(found)], rtol=1e-5, atol=1e-5)


def test_the_largest_scores_may_share_one_group_or_follow_the_last():
    keys = np.ones((5000, 1), np.float32)
    keys[3200:3230] = 9  # within one group
    keys[4992:] = 8  # after the last whole group
    ids, scores = truth.exact_topk(np.ones((1, 1), np.float32), keys, 38)
    assert sorted(ids[0]) == [*range(3200, 3230), *range(4992, 5000)]
    assert scores[0].tolist() == [9.0] * 30 + [8.0] * 8


def test_no_keys_and_no_queries_give_nothing():
    assert (
        truth.exact_topk(np.ones((2, 3), np.float32), np.ones((5, 3), np.float32), 2, np.zeros(2, int))[0]
        == -1
    ).all()
    assert truth.exact_topk(np.ones((0, 3), np.float32), np.ones((5, 3), np.float32), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("apart", [False, True])
def test_groups_of_neighbours_and_groups_apart_find_the_same(apart):
    scores = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 5017)).astype(np.float32))
    values, columns = truth._topk_of_rows(scores, 30, apart)
    torch.testing.assert_close(values, torch.topk(scores, 30).values)
    torch.testing.assert_close(torch.gather(scores, 1, columns), values)


def test_nearest_keys_are_those_at_the_least_distance_on_the_lifted_sphere():
    rng = np.random.default_rng(3)
    keys = (rng.standard_normal((300, 5)) * rng.uniform(0.3, 2, (300, 1))).astype(np.float32)
    found = truth.nearest_keys(keys, 7)
    assert found.shape == (300, 8)
    extra = np.sqrt(np.maximum(0, (keys**2).sum(1).max() - (keys**2).sum(1)))
    lifted = np.column_stack([keys, extra]).astype(np.float64)
    distances = ((lifted[:, None] - lifted[None]) ** 2).sum(2)
    np.testing.assert_array_equal(found[:, 0], np.arange(300))
    best = np.sort(distances, axis=1)[:, :8]
    np.testing.assert_allclose(np.take_along_axis(distances, found, 1), best, atol=1e-4)
    assert (truth.nearest_keys(keys[:3], 5)[:, 3:] == -1).all()
