"""Difficulty is what its definitions say, and does not depend on how keys are cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench import attention
from ra_bench.attention import partial_attention
from ra_bench.difficulty import difficulty
from ra_bench.truth import exact_topk

N, D, M = 800, 12, 40


@pytest.fixture
def head():
    rng = np.random.default_rng(0)
    keys = (rng.lognormal(0, 0.4, (N, 1)) * rng.normal(0.5, 1, (N, D))).astype(np.float16)
    return keys, rng.normal(-1, 1.5, (M, D)).astype(np.float32)


def test_masses_and_nearest_keys_equal_a_plain_count(head):
    keys, queries = head
    wide = keys.astype(np.float64)
    scores = queries.astype(np.float64) @ wide.T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    entropy = -(weights * np.log(weights)).sum(axis=1)
    held = np.cumsum(-np.sort(-weights, axis=1), axis=1)
    gram = wide @ wide.T

    found = difficulty(keys, queries, 1.0)

    assert found.effective_keys == pytest.approx(np.median(np.exp(entropy)), rel=1e-3)
    assert found.keys_for_mass == pytest.approx(np.median((held < 0.9).sum(axis=1) + 1), rel=0.02, abs=1)
    assert found.not_own_nearest == pytest.approx(
        (gram.max(axis=1) > np.diag(gram) * 1.0001).mean(), abs=0.003
    )
    norms = np.linalg.norm(wide, axis=1)
    assert found.norm_cv == pytest.approx(norms.std() / norms.mean(), rel=1e-4)
    assert found.mahalanobis_keys == pytest.approx(D**0.5, rel=0.15)


def test_queries_from_elsewhere_are_farther_than_keys_and_the_softmax_scale_does_not_move_them(head):
    keys, queries = head
    far = difficulty(keys, queries, 1.0).mahalanobis_queries
    assert far > 1.5 * difficulty(keys, keys[:M].astype(np.float32), 1.0).mahalanobis_queries
    assert difficulty(keys, queries * 0.25, 0.25).mahalanobis_queries == pytest.approx(far, rel=1e-5)


def test_without_a_softmax_scale_masses_are_not_known(head):
    found = difficulty(*head, None)
    assert found.effective_keys is None
    assert found.keys_for_mass is None
    assert found.hubness > 0


def test_truth_and_difficulty_do_not_depend_on_how_keys_are_cut(head, monkeypatch):
    keys, queries = head
    values = np.random.default_rng(1).normal(size=(N, D)).astype(np.float16)
    limits = np.linspace(0, N, M).astype(np.int64)
    whole = exact_topk(queries, keys, 30), exact_topk(queries, keys, 30, limits)
    attended = partial_attention(queries, keys, values, limits)
    measured = difficulty(keys, queries, 1.0)
    monkeypatch.setitem(attention.KEY_ELEMENTS, "cpu", 37 * D)
    cut = exact_topk(queries, keys, 30), exact_topk(queries, keys, 30, limits)
    for (ids, scores), (cut_ids, cut_scores) in zip(whole, cut, strict=True):
        np.testing.assert_allclose(cut_scores, scores, rtol=1e-5)
        assert (np.sort(cut_ids) == np.sort(ids)).mean() > 0.999
        np.testing.assert_array_equal(np.isneginf(cut_scores), cut_ids == -1)
    for one, other in zip(partial_attention(queries, keys, values, limits), attended, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    again = difficulty(keys, queries, 1.0)
    for name, value in measured.row().items():
        assert again.row()[name] == pytest.approx(value, rel=1e-3), name
