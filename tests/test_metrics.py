"""Metrics against cases worked out by hand and against slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench import metrics


def found(ids: list, scores: list) -> np.ndarray:
    return metrics.distinct_scores(np.array([ids], np.int32), np.array([scores], np.float32))


def test_recall_counts_the_exact_top_k_that_was_found() -> None:
    true = np.array([[9.0, 8.0, 7.0, 6.0]], np.float32)

    assert metrics.recall(found([1, 2, 3, 4], [9, 8, 7, 6]), true) == [1.0]
    assert metrics.recall(found([1, 2, 5, 6], [9, 8, 1, 0]), true) == [0.5]
    assert metrics.recall(found([5, 6, 7, 8], [1, 0, 0, 0]), true) == [0.0]


def test_recall_allows_a_tie_with_the_last_true_one() -> None:
    true = np.array([[9.0, 7.0]], np.float32)

    assert metrics.recall(found([1, 99], [9.0, 7.0]), true) == [1.0]
    assert metrics.recall(found([1, 99], [9.0, 6.99]), true) == [0.5]


def test_recall_counts_a_repeated_key_once() -> None:
    true = np.array([[9.0, 8.0]], np.float32)

    assert metrics.recall(found([4, 4], [9.0, 9.0]), true) == [0.5]


def test_recall_ignores_missing_results() -> None:
    true = np.array([[9.0, 8.0]], np.float32)

    assert metrics.recall(found([4, -1], [9.0, -np.inf]), true) == [0.5]


def test_recall_with_fewer_keys_than_k_asks_for_all_of_them() -> None:
    true = np.array([[9.0, 8.0, -np.inf]], np.float32)

    assert metrics.recall(found([0, 1, -1], [9.0, 8.0, -np.inf]), true) == [1.0]


def test_mass_is_the_share_of_the_softmax() -> None:
    scores = np.array([[1.0, 2.0, 3.0]], np.float32)
    lse = np.log(np.exp(scores).sum(axis=1))

    assert metrics.mass(scores, lse) == pytest.approx([1.0])
    one = np.where([[False, False, True]], scores, -np.inf)
    assert metrics.mass(one, lse) == pytest.approx(np.exp(3.0 - lse))


def test_output_error_is_zero_for_equal_and_one_for_nothing() -> None:
    exact = np.array([[3.0, 4.0]], np.float32)

    assert metrics.output_error(exact, exact) == [0.0]
    assert metrics.output_error(exact * 0, exact) == pytest.approx([1.0])
    assert metrics.output_error(np.array([[3.0, 4.5]]), exact) == pytest.approx([0.1])


def test_distinct_scores_keeps_the_first_of_each_key() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(-1, 6, (50, 8)).astype(np.int32)
    scores = rng.normal(size=(50, 8)).astype(np.float32)

    distinct = metrics.distinct_scores(ids, scores)

    for row in range(50):
        seen: set[int] = set()
        for column in range(8):
            key = int(ids[row, column])
            keep = key >= 0 and key not in seen
            assert np.isfinite(distinct[row, column]) == keep
            seen.add(key)
