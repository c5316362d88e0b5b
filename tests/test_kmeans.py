"""K-means on a device, beside its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ra_bench.indexes._kmeans import kmeans


def slow_kmeans(rows, count, iterations, seed):
    rows = rows.astype(np.float64)
    centroids = rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]

    def nearest():
        return ((rows[:, None] - centroids[None]) ** 2).sum(2).argmin(1)

    for _ in range(iterations):
        labels = nearest()
        for c in set(labels.tolist()):
            centroids[c] = rows[labels == c].mean(0)
    return centroids, nearest()


@pytest.mark.parametrize(("n", "count", "iterations"), [(400, 13, 6), (50, 50, 2), (30, 1, 3), (200, 40, 0)])
def test_centroids_and_labels_are_those_of_the_definition(n, count, iterations):
    rows = np.random.default_rng(n).standard_normal((n, 7)).astype(np.float32)

    centroids, labels = kmeans(rows, count, iterations, 3)

    expected, nearest = slow_kmeans(rows, count, iterations, 3)
    np.testing.assert_allclose(centroids, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, nearest)


def test_a_centroid_that_loses_its_rows_stays():
    rows = np.repeat(np.float32([[0, 0], [5, 5]]), [30, 1], axis=0)

    centroids, labels = kmeans(rows, 5, 4, 0)

    assert np.isfinite(centroids).all()
    assert {tuple(row) for row in centroids.tolist()} <= {(0.0, 0.0), (5.0, 5.0)}
    assert len(np.unique(labels)) == len(np.unique(centroids[labels], axis=0))


def test_rows_that_cannot_be_written_to_and_threads_stay_as_they_are():
    rows = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    rows.setflags(write=False)
    before, threads = rows.copy(), torch.get_num_threads()

    kmeans(rows, 4, 2, 0, threads + 1)

    np.testing.assert_array_equal(rows, before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_of_lists_that_cannot_be_is_refused(count):
    with pytest.raises(ValueError, match=f"count must be from 1 to the 5 rows, got {count}"):
        kmeans(np.zeros((5, 2), np.float32), count, 1, 0)
