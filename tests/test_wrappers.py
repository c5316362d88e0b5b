"""Wrappers: tail(SPEC) and softmaxlift(SPEC) against plain computations of what they estimate."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ra_bench.errors import UsageError
from ra_bench.index import Index
from ra_bench.measure import settings_of_index
from ra_bench.registry import create, index_class, parse

N, D, M, K = 400, 8, 4, 30
RNG = np.random.default_rng(0)
KEYS = RNG.normal(size=(N, D)).astype(np.float32)
VALUES = RNG.normal(size=(N, D)).astype(np.float32)
QUERIES = (0.7 * RNG.normal(size=(M, D))).astype(np.float32)


def built(spec: str, seed: int = 0, keys: np.ndarray = KEYS, values: np.ndarray = VALUES) -> Index:
    index = create(spec, seed=seed)
    index.build(keys, values)
    return index


def dense(keys: np.ndarray = KEYS, values: np.ndarray = VALUES) -> tuple[np.ndarray, np.ndarray]:
    """Weights' sums (M,) and weighted values (M, D) over all keys, in float64."""
    weights = np.exp(QUERIES.astype(np.float64) @ keys.T.astype(np.float64))
    return weights.sum(axis=1), weights @ values


def sums(part) -> tuple[np.ndarray, np.ndarray]:
    """The same of the result of `attend`."""
    total = np.exp(part.lse.astype(np.float64))
    return total, total[:, None] * part.output


@pytest.mark.parametrize("spec", ["tail(flat)", "tail(flat):estimate=mean", "softmaxlift(flat)"])
def test_where_all_keys_are_found_attention_is_exact(spec):
    total, weighted = sums(built(spec).attend(QUERIES, N))
    np.testing.assert_allclose(total, dense()[0], rtol=1e-4)
    np.testing.assert_allclose(weighted, dense()[1], rtol=1e-3, atol=1e-2)


# --- softmaxlift ------------------------------------------------------------------------------------------


def test_softmaxlift_weighs_the_keys_of_largest_priority_by_at_least_the_threshold():
    index = built("softmaxlift(flat)", seed=3)
    noise = index._noise
    assert (noise > 0).all()
    part = index.attend(QUERIES, K)
    for row, query in enumerate(QUERIES):
        weights = np.exp(KEYS.astype(np.float64) @ query)
        priorities = weights * np.exp(noise.astype(np.float64))
        order = np.argsort(-priorities)
        kept = np.maximum(weights[order[:K]], priorities[order[K]])
        assert part.lse[row] == pytest.approx(np.log(kept.sum()), abs=1e-4)
        np.testing.assert_allclose(part.output[row], kept @ VALUES[order[:K]] / kept.sum(), atol=1e-4)
    assert (part.work.attended == K).all()


def test_softmaxlift_is_right_on_average_over_seeds():
    draws = [sums(built("softmaxlift(flat)", seed).attend(QUERIES, K)) for seed in range(1500)]
    for place, exact in enumerate(dense()):
        drawn = np.array([draw[place] for draw in draws])
        error = drawn.mean(axis=0) - exact
        assert (np.abs(error) < 4 * drawn.std(axis=0) / len(draws) ** 0.5).all()
    top = sums(built("flat").attend(QUERIES, K))
    assert (np.abs(np.mean([draw[0] for draw in draws], axis=0) - dense()[0]) < 0.05 * dense()[0]).all()
    assert (top[0] < 0.9 * dense()[0]).all()  # what the exact top K misses


def test_softmaxlift_draws_anew_by_seed_and_for_inserted_keys():
    one, two = built("softmaxlift(flat)", 1), built("softmaxlift(flat)", 2)
    assert (one._noise != two._noise).all()
    for index in (one, two):
        index.insert(KEYS[:64], VALUES[:64])
        index.insert(KEYS[:64], VALUES[:64])
    assert len(np.unique(one._noise)) == N + 128
    total, _ = sums(one.attend(QUERIES, N + 128))
    np.testing.assert_allclose(
        total, dense(np.vstack([KEYS, KEYS[:64], KEYS[:64]]), np.ones((N + 128, D)))[0], rtol=1e-4
    )


def test_softmaxlift_takes_the_last_found_for_the_threshold_where_fewer_are_found():
    index = built("softmaxlift(ivf:nlist=8:nprobe=1)")
    part = index.attend(QUERIES, N - 1)
    assert (part.work.attended < N - 1).all()
    assert np.isfinite(part.lse).all()


# --- tail -------------------------------------------------------------------------------------------------


def rest_of_clusters(index, query: np.ndarray, found: set[int]) -> tuple[float, np.ndarray]:
    """Mass and weighted values of what is not in `found`, each cluster's rest as many keys like its mean."""
    total, weighted = 0.0, np.zeros(D)
    for cluster in range(len(index._centroids)):
        members = [key for key in np.flatnonzero(index._labels == cluster) if key not in found]
        if members:
            weight = len(members) * np.exp(KEYS[members].astype(np.float64).mean(axis=0) @ query)
            total += weight
            weighted += weight * VALUES[members].astype(np.float64).mean(axis=0)
    return total, weighted


def test_tail_adds_each_cluster_without_its_found_members():
    index = built("tail(flat):cluster_tokens=16")
    part = index.attend(QUERIES, K)
    ids = index.search(QUERIES, K).ids
    for row, query in enumerate(QUERIES):
        exact = np.exp(KEYS[ids[row]].astype(np.float64) @ query)
        mass, weighted = rest_of_clusters(index, query.astype(np.float64), set(ids[row].tolist()))
        total = exact.sum() + mass
        assert part.lse[row] == pytest.approx(np.log(total), abs=1e-4)
        np.testing.assert_allclose(part.output[row], (exact @ VALUES[ids[row]] + weighted) / total, atol=1e-4)


def test_tail_never_estimates_more_than_there_is_and_comes_closer_with_smaller_clusters():
    masses = [
        sums(built(f"tail(flat):cluster_tokens={size}").attend(QUERIES, K))[0] for size in (400, 64, 8, 1)
    ]
    bounded = [sums(built("flat").attend(QUERIES, K))[0], *masses]
    assert all((less <= more * (1 + 1e-4)).all() for less, more in pairwise(bounded))
    np.testing.assert_allclose(masses[-1], dense()[0], rtol=1e-4)  # each key by itself


def test_tail_by_the_mean_knows_the_mass_of_normal_keys():
    rng = np.random.default_rng(1)
    keys = rng.normal(0.3, 1, size=(20000, D)).astype(np.float32)
    values = rng.normal(size=keys.shape).astype(np.float32)
    mean, clusters, found = (
        sums(built(spec, keys=keys, values=values).attend(0.5 * QUERIES, 1))[0]
        for spec in ("tail(flat):estimate=mean", "tail(flat):cluster_tokens=20000", "flat")
    )
    exact = np.exp(0.5 * QUERIES.astype(np.float64) @ keys.T).sum(axis=1)
    np.testing.assert_allclose(mean, exact, rtol=0.05)
    assert (clusters < 0.95 * exact).all()
    assert (found < 0.05 * exact).all()


def test_tail_by_the_mean_takes_the_rest_for_a_normal_below_the_least_that_was_found():
    index = built("tail(flat):estimate=mean")
    part, ids = index.attend(QUERIES, K), index.search(QUERIES, K).ids
    covariance = np.cov(KEYS.astype(np.float64).T, bias=True)
    for row, query in enumerate(QUERIES.astype(np.float64)):
        logits, others = KEYS[ids[row]] @ query, np.setdiff1d(np.arange(N), ids[row])
        normal = np.random.default_rng(row).normal(
            (KEYS[others] @ query).mean(), np.sqrt(query @ covariance @ query), 400_000
        )
        rest = len(others) * np.exp(normal[normal < logits.min()]).mean()
        assert np.exp(part.lse[row]) == pytest.approx(np.exp(logits).sum() + rest, rel=0.01)


def test_tail_counts_inserted_keys_in_their_clusters():
    index = built("tail(flat):cluster_tokens=16")
    index.insert(KEYS[:64] + 0.01, VALUES[:64])
    index.insert(KEYS[64:96] + 0.01, VALUES[64:96])
    again = built("tail(flat):cluster_tokens=16")
    again.keys, again.values = index.keys, index.values
    again._labels = np.concatenate([again._labels, index._labels[N:]])
    np.testing.assert_array_equal(index._labels[N:], index._labels[:96])  # beside the keys that they resemble
    again._sum()
    for name in ("_sizes", "_key_sums", "_value_sums"):
        np.testing.assert_allclose(getattr(index, name), getattr(again, name), rtol=1e-4, atol=1e-4)


def test_tail_counts_its_sums_as_read():
    plain, wrapped = (
        built("flat").attend(QUERIES, K).work,
        built("tail(flat):cluster_tokens=16").attend(QUERIES, K).work,
    )
    assert plain.bytes_read is not None
    assert wrapped.bytes_read is not None
    clusters = round(N / 16)
    assert (wrapped.bytes_read - plain.bytes_read == 4 * clusters * (1 + 2 * D) + 4 * K).all()
    np.testing.assert_array_equal(wrapped.keys_read, plain.keys_read)


# --- specs ------------------------------------------------------------------------------------------------


def test_a_wrapper_keeps_the_efforts_and_settings_of_what_it_wraps():
    index = create("tail(ivf:nlist=16:nprobe=3):cluster_tokens=50")
    assert all(effort["nprobe"] == 3 for effort in index.effort_sweep(N, K))
    assert settings_of_index(index)["inner"]["nlist"] == 16
    assert settings_of_index(index)["cluster_tokens"] == 50
    assert str(parse("tail(ivf:nprobe=3):cluster_tokens=50")) == "tail(ivf:nprobe=3):cluster_tokens=50"
    assert str(create("softmaxlift").inner.spec) == index_class("softmaxlift").default_inner


@pytest.mark.parametrize("spec", ["tail(eigen)", "softmaxlift(think)", "tail(softmaxlift(flat))"])
def test_what_has_no_search_cannot_be_wrapped(spec):
    inner = spec.partition("(")[2][:-1]
    with pytest.raises(UsageError, match="must wrap one that searches") as refused:
        create(spec)
    assert str(refused.value) == f"index '{spec}' must wrap one that searches, got '{inner}'"


@pytest.mark.parametrize("setting", ["cluster_tokens=0", "iterations=0", "estimate=none"])
def test_a_setting_that_cannot_be_is_refused(setting):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        create(f"tail(flat):{setting}")
