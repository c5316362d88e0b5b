"""Methods of approximate scores against a plain computation of their papers' steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ra_bench import registry
from ra_bench.attention import merge
from ra_bench.head import Head
from ra_bench.registry import create
from ra_bench.scoring import largest

N, D, G, K = 700, 16, 2, 20
RNG = np.random.default_rng(0)
KEYS = (RNG.normal(size=(N, D)) * np.geomspace(3, 0.1, D)).astype(np.float32)
VALUES = RNG.normal(size=(N, D)).astype(np.float32)
LEARN = (RNG.normal(size=(300, D)) * np.geomspace(0.2, 2, D)).astype(np.float32)
QUERIES = RNG.normal(size=(6, D)).astype(np.float32)
METHODS = ["double_sparsity", "infinigen", "loki", "pqcache", "sparq"]


def built(spec: str, learn: np.ndarray | None = LEARN, group: int = G):
    index = create(spec)
    index.build(KEYS, VALUES, learn, Head(group=group))
    return index


def top(scores: np.ndarray, k: int = K) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(ids: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, float]:
    logits = KEYS[ids] @ query
    return softmax(logits) @ VALUES[ids], float(np.log(np.exp(logits).sum()))


@pytest.mark.parametrize("spec", METHODS)
def test_a_budget_is_attended_and_its_best_are_found(spec: str):
    index = built(spec)
    wide = {"alpha": 1e6} if spec == "infinigen" else {}
    np.testing.assert_array_equal(index.search(QUERIES, K, budget=N, **wide).ids, top(QUERIES @ KEYS.T))
    found = index.search(QUERIES, K, budget=4 * K, **wide)
    assert (found.work.exact == 4 * K).all()
    assert (found.work.keys_read == N).all()
    part = index.attend(QUERIES, K, budget=4 * K, **wide)
    assert (part.work.attended == 4 * K).all()
    assert (part.work.bytes_read - found.work.bytes_read == 4 * K * D * 4).all(), "the values of the budget"


@pytest.mark.parametrize("spec", METHODS)
def test_what_was_learned_survives_inserts_and_saving(spec: str, tmp_path):
    index = built(spec)
    index.insert(KEYS[:100] + 0.5, VALUES[:100])
    before = [code.clone() for code in index.codes]
    index.save(tmp_path)
    loaded = registry.load(tmp_path)
    for one, two in zip(before, loaded.codes, strict=True):
        assert one.shape[1] == N + 100
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    for block in np.array_split(np.arange(N), 13):
        loaded.insert(KEYS[block], VALUES[block])
    np.testing.assert_array_equal(loaded.codes[0][:, : N + 100].numpy(), before[0].numpy())
    np.testing.assert_array_equal(loaded.codes[0][:, N + 100 :].numpy(), before[0][:, :N].numpy())


@pytest.mark.parametrize("ordered", [True, False])
def test_the_largest_scores_are_selected(ordered: bool):
    scores = RNG.normal(size=(5, 90)).astype(np.float32)
    values, places = largest(torch.tensor(scores), 7, ordered)
    np.testing.assert_array_equal(np.take_along_axis(scores, places, axis=1), values)
    if not ordered:
        values = -np.sort(-values)
    np.testing.assert_array_equal(values, -np.sort(-scores)[:, :7])


def test_queries_of_a_token_stay_together_when_scores_are_cut_into_blocks(monkeypatch):
    expected = built("pqcache").choose(QUERIES, K).ids
    monkeypatch.setattr("ra_bench.scoring.BLOCK_ELEMENTS", 3 * N)  # a block of three would cut a token's two
    np.testing.assert_array_equal(built("pqcache").choose(QUERIES, K).ids, expected)


class TestDoubleSparsity:
    def test_the_channels_are_those_of_the_largest_products(self):
        mean = np.abs(LEARN).mean(axis=0) * np.abs(KEYS).mean(axis=0)
        index = built("double_sparsity:share=0.5")
        np.testing.assert_array_equal(index.channels.numpy(), np.sort(np.argsort(-mean)[:8]))
        np.testing.assert_array_equal(
            built("double_sparsity:importance=q").channels.numpy(), np.arange(8, 16)
        )
        np.testing.assert_array_equal(built("double_sparsity:importance=k").channels.numpy(), np.arange(8))
        np.testing.assert_array_equal(built("double_sparsity", learn=None).channels.numpy(), np.arange(8))

    @pytest.mark.parametrize("share", [0.5, 0.56])  # of 16: 8 channels, and 9, which leaves half a byte
    def test_four_bits_are_the_nearest_of_sixteen_levels_between_a_keys_extremes(self, share: float):
        index = built(f"double_sparsity:share={share}")
        labels = KEYS[:, index.channels.numpy()]
        low, high = labels.min(axis=1, keepdims=True), labels.max(axis=1, keepdims=True)
        step, offset = ((high - low) / 15).astype(np.float16), low.astype(np.float16)
        levels = np.clip(np.round((labels - offset) / step.astype(np.float32)), 0, 15)
        rounded = offset + levels * step.astype(np.float32)
        assert (np.abs(rounded - labels) <= 0.51 * (high - low) / 15 + 2e-3).all()
        expected = QUERIES[:, index.channels.numpy()] @ rounded.T
        scores = index.approximate_scores(index._tensor(QUERIES)).numpy()
        np.testing.assert_allclose(scores, expected, atol=2e-3)
        assert index.key_bytes == -(-labels.shape[1] // 2) + 4

    def test_without_quantization_it_is_the_product_over_the_channels(self):
        index = built("double_sparsity:bits=32")
        part = index.channels.numpy()
        expected = top(QUERIES[:, part] @ KEYS[:, part].T)
        np.testing.assert_array_equal(np.sort(index.choose(QUERIES, K).ids), np.sort(expected))
        assert index.key_bytes == 8 * 4


class TestLoki:
    def test_scores_are_those_of_the_leading_components(self):
        index = built("loki:share=0.5")
        _, _, components = np.linalg.svd(KEYS - KEYS.mean(axis=0), full_matrices=False)
        projection = components[:8].T @ components[:8]
        expected = QUERIES @ projection @ KEYS.T
        np.testing.assert_allclose(
            index.approximate_scores(index._tensor(QUERIES)).numpy(), expected, atol=1e-3
        )

    def test_all_components_are_exact(self):
        ids = built("loki:share=1").choose(QUERIES, K).ids
        np.testing.assert_array_equal(np.sort(ids), np.sort(top(QUERIES @ KEYS.T)))


class TestInfiniGen:
    def test_the_rotation_keeps_products_and_gathers_the_queries(self):
        index = built("infinigen:share=1")
        scores = index.approximate_scores(index._tensor(QUERIES)).numpy()
        np.testing.assert_allclose(scores, QUERIES @ KEYS.T, atol=1e-4)
        _, _, singular = np.linalg.svd(LEARN, full_matrices=False)
        alike = np.abs(singular @ index.basis.numpy())  # a permutation, up to sign
        np.testing.assert_allclose(np.sort(alike, axis=1)[:, -1], 1.0, atol=1e-3)

    def test_keys_far_below_the_best_are_left_out(self):
        index = built("infinigen:share=1")
        scores = QUERIES @ KEYS.T
        ids = index.search(QUERIES, K, alpha=1.0).ids
        within = np.minimum((scores > scores.max(axis=1, keepdims=True) - 1.0).sum(axis=1), K)
        np.testing.assert_array_equal((ids >= 0).sum(axis=1), within)

    def test_without_a_k_it_takes_at_most_a_fifth(self):
        assert built("infinigen").search(QUERIES, None, alpha=1e6).ids.shape == (6, N // 5)
        assert built("infinigen").attend(QUERIES, None, alpha=1e6).work.attended[0] == N // 5


class TestPQCache:
    def test_codes_are_the_nearest_centroids_and_scores_their_tables(self):
        index = built("pqcache:parts=4:bits=3")
        books, codes = index.centroids.numpy(), index.codes[0].numpy()
        assert books.shape == (4, 8, 4)
        logits = np.zeros((len(QUERIES), N))
        for part in range(4):
            piece = slice(4 * part, 4 * part + 4)
            distances = ((KEYS[:, None, piece] - books[part][None]) ** 2).sum(axis=2)
            np.testing.assert_array_equal(codes[part], distances.argmin(axis=1))
            logits += QUERIES[:, piece] @ books[part][codes[part]].T
        summed = softmax(logits).reshape(-1, G, N).sum(axis=1).repeat(G, axis=0)
        ids = index.choose(QUERIES, K).ids
        found = np.sort(np.take_along_axis(summed, ids, 1))
        np.testing.assert_allclose(found, np.sort(summed)[:, -K:], rtol=1e-4)
        np.testing.assert_array_equal(ids[::2], ids[1::2])  # a group shares its keys

    def test_a_centroid_for_each_key_is_exact(self):
        index = create("pqcache:parts=1:bits=8")
        index.build(KEYS[:200], VALUES[:200])
        ids = index.choose(QUERIES, K).ids
        np.testing.assert_array_equal(np.sort(ids), np.sort(top(QUERIES @ KEYS[:200].T)))


class TestSparQ:
    @pytest.mark.parametrize("channels", [4, 16])
    def test_follows_the_paper_step_by_step(self, channels: int):
        index = built("sparq")
        part = index.attend(QUERIES, K, channels=channels)
        for token in range(len(QUERIES) // G):
            queries = QUERIES[G * token : G * token + G]
            chosen = np.argsort(-np.abs(queries).sum(axis=0))[:channels]
            ratio = np.abs(queries[:, chosen]).sum(axis=1) / np.abs(queries).sum(axis=1)
            weights = softmax(queries[:, chosen] @ KEYS[:, chosen].T / np.sqrt(ratio)[:, None])
            ids = np.argsort(-weights.sum(axis=0))[:K]
            for head in range(G):
                share = weights[head][ids].sum()
                output, lse = attention(ids, queries[head])
                row = G * token + head
                expected = share * output + (1 - share) * VALUES.mean(axis=0)
                np.testing.assert_allclose(part.output[row], expected, atol=1e-4)
                np.testing.assert_allclose(part.lse[row], lse - np.log(share), atol=1e-3)
        assert (part.work.bytes_read == N * channels * 4 + K * D * 8).all()

    def test_with_all_channels_the_log_sum_exp_is_that_of_all_keys(self):
        index = built("sparq")
        part = index.attend(QUERIES, K, channels=D)
        dense = np.log(np.exp(QUERIES @ KEYS.T).sum(axis=1))
        np.testing.assert_allclose(part.lse, dense, atol=1e-3)
        merged, _ = merge([(part.output, part.lse), (np.zeros((6, D), np.float32), np.full(6, -np.inf))])
        np.testing.assert_allclose(merged, part.output, atol=1e-6)

    def test_inserted_values_count_in_the_mean(self):
        index = built("sparq")
        index.insert(KEYS[:50], 100 + VALUES[:50])
        expected = np.concatenate([VALUES, 100 + VALUES[:50]]).mean(axis=0)
        np.testing.assert_allclose(index._value_sum / len(index.keys), expected, rtol=1e-5)
