"""Eigen, ThinK and ShadowKV: what their smaller forms keep, and that nothing lost means dense attention."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench import registry
from ra_bench.attention import partial_attention
from ra_bench.head import Head, Rope
from ra_bench.registry import create

N, D, G, STEPS = 600, 16, 2, 3
RNG = np.random.default_rng(0)
ROPE = Rope((1000.0 ** (-np.arange(D // 2) / (D // 2))).astype(np.float32), D, "half")


def low_rank(n: int, rank: int, noise: float = 0.02) -> np.ndarray:
    rows = RNG.normal(size=(n, rank)) @ RNG.normal(size=(rank, D)) + noise * RNG.normal(size=(n, D))
    return rows.astype(np.float32)


BASE = RNG.normal(size=(5, D))  # queries and keys before rotation lie near these five directions
UNROTATED = (RNG.normal(size=(N, 5)) @ BASE + 0.05 * RNG.normal(size=(N, D))).astype(np.float32)
KEYS = ROPE.apply(UNROTATED, np.arange(128, 128 + N))
VALUES = low_rank(N, 6)
ASKED = np.repeat(np.arange(800, 800 + STEPS), G)
QUERIES = ROPE.apply((RNG.normal(size=(STEPS * G, 5)) @ BASE / 8).astype(np.float32), ASKED)
LEARNED = np.repeat(np.arange(200, 300), G)
LEARN = ROPE.apply((RNG.normal(size=(200, 5)) @ BASE / 8).astype(np.float32), LEARNED)


def head(rope: Rope | None = ROPE) -> Head:
    return Head(group=G, rope=rope, key_positions=np.arange(128, 128 + N), query_positions=LEARNED)


def built(spec: str, about: Head | None = None):
    index = create(spec)
    index.build(KEYS, VALUES, LEARN, head() if about is None else about)
    return index


@pytest.mark.parametrize("rope", [ROPE, None])
@pytest.mark.parametrize("spec", ["eigen:rank=16", "eigen:error=0", "think:pruned=0"])
def test_with_nothing_lost_attention_is_dense(spec: str, rope: Rope | None):
    part = built(spec, head(rope)).attend(QUERIES, None)
    output, lse = partial_attention(QUERIES, KEYS, VALUES)
    np.testing.assert_allclose(part.output, output, atol=1e-3)
    np.testing.assert_allclose(part.lse, lse, atol=1e-3)
    assert (part.work.attended == N).all()


@pytest.mark.parametrize("spec", ["eigen", "think", "shadowkv"])
def test_the_smaller_form_survives_inserts_and_saving(spec: str, tmp_path):
    index = built(spec)
    more = ROPE.apply(UNROTATED[:60], np.arange(128 + N, 188 + N))
    index.insert(more[:7], VALUES[:7])
    index.insert(more[7:], VALUES[7:60])
    part = index.attend(QUERIES, 60)
    index.save(tmp_path)
    again = registry.load(tmp_path).attend(QUERIES, 60)
    np.testing.assert_allclose(again.output, part.output, atol=1e-5)
    np.testing.assert_array_equal(again.work.bytes_read, part.work.bytes_read)


class TestEigen:
    @pytest.mark.parametrize("rank", [3, 5, 11])
    def test_what_is_lost_is_the_discarded_singular_values(self, rank: int):
        index = built(f"eigen:rank={rank}")
        queries = ROPE.undo(LEARN, LEARNED)
        stacked = np.vstack([UNROTATED, queries])
        for rows, basis in ((stacked, index.key_basis), (VALUES, index.value_basis)):
            lost = np.linalg.norm(rows - rows @ basis @ basis.T) ** 2
            discarded = (np.linalg.svd(rows, compute_uv=False)[rank:] ** 2).sum()
            np.testing.assert_allclose(lost, discarded, rtol=0.01, atol=1e-4)

    def test_the_budget_decides_the_ranks(self):
        tight, wide = built("eigen:error=0.0001:least=0"), built("eigen:error=0.5:least=0")
        assert wide.key_basis.shape[1] < tight.key_basis.shape[1] <= D
        assert wide.token_bytes < tight.token_bytes
        dense, _ = partial_attention(QUERIES, KEYS, VALUES)
        errors = [
            np.linalg.norm(index.attend(QUERIES, None).output - dense) / np.linalg.norm(dense)
            for index in (tight, wide)
        ]
        assert errors[0] < errors[1] < 0.7

    def test_no_rank_falls_below_the_floor(self):
        index = built("eigen:error=1000:least=0.75")
        assert index.key_basis.shape == (D, 12)
        assert index.value_basis.shape == (D, 12)

    def test_the_rank_is_how_many_values_stay_below_the_threshold(self):
        eigen = __import__("sys").modules[type(built("eigen")).__module__]
        sizes = np.array([4.0, 3.0, 2.0, 1.0])  # cumulative shares .4 .7 .9 1
        assert [eigen._rank(sizes, threshold) for threshold in (1.0, 0.95, 0.71, 0.5, 0.1)] == [4, 3, 2, 1, 1]

    @pytest.mark.parametrize("basis", ["layer", "head"])
    def test_the_heads_of_a_layer_share_a_basis_unless_told_otherwise(self, basis: str):
        heads = [create(f"eigen:rank=8:basis={basis}") for _ in range(2)]
        keys = [KEYS, KEYS[:, ::-1].copy()]
        type(heads[0]).build_layer(heads, keys, [VALUES] * 2, [LEARN] * 2, [head()] * 2)
        assert np.array_equal(heads[0].key_basis, heads[1].key_basis) == (basis == "layer")

    def test_inserted_keys_are_rotated_to_the_positions_that_follow(self):
        index = built("eigen:rank=16")
        more = ROPE.apply(UNROTATED[:40], np.arange(128 + N, 168 + N))
        for start in range(0, 40, 8):
            index.insert(more[start : start + 8], VALUES[start : start + 8])
        part = index.attend(QUERIES, None)
        output, lse = partial_attention(QUERIES, np.vstack([KEYS, more]), np.vstack([VALUES, VALUES[:40]]))
        np.testing.assert_allclose(part.output, output, atol=1e-3)
        np.testing.assert_allclose(part.lse, lse, atol=1e-3)


class TestThink:
    def test_inserted_keys_lose_the_same_channels(self):
        index = built("think")
        index.insert(2 * KEYS[:90], VALUES[:90])
        expected = np.vstack([KEYS, 2 * KEYS[:90]])[:, index.channels].T
        np.testing.assert_array_equal(index._kept.filled.numpy(), expected)

    def test_channels_are_those_of_the_largest_product_of_norms_in_the_last_queries(self):
        index = built("think:pruned=0.5:observed_tokens=4")
        scores = [
            np.linalg.norm(np.outer(LEARN[-4 * G :, j], KEYS[:, j])) for j in range(D)
        ]  # the paper's Frobenius norm
        np.testing.assert_array_equal(index.channels, np.sort(np.argsort(scores)[-8:]))
        logits = QUERIES[:, index.channels] @ KEYS[:, index.channels].T
        part = index.attend(QUERIES, None)
        np.testing.assert_allclose(part.lse, np.log(np.exp(logits).sum(axis=1)), atol=1e-3)
        assert (part.work.bytes_read == N * (8 + D) * 4).all()


class TestShadowKV:
    def test_chunks_are_chosen_by_the_groups_largest_weight_on_their_means(self):
        index = built("shadowkv:outliers=0")
        means = KEYS.reshape(-1, 8, D).mean(axis=1)
        for token in range(STEPS):
            logits = QUERIES[G * token : G * token + G] @ means.T
            weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            best = np.argsort(-weights.max(axis=0))[:5]
            chosen = index.choose(QUERIES, 40).ids[G * token : G * token + G]
            np.testing.assert_array_equal(chosen[0].reshape(5, 8) // 8, np.repeat(best[:, None], 8, axis=1))
            np.testing.assert_array_equal(chosen[0], chosen[1])

    def test_outliers_are_the_chunks_with_the_least_alike_key(self):
        index = built("shadowkv:outliers=6")
        means = KEYS.reshape(-1, 8, D).mean(axis=1)
        cosines = np.einsum("pcd,pd->pc", KEYS.reshape(-1, 8, D), means)
        cosines /= np.linalg.norm(KEYS.reshape(-1, 8, D), axis=2) * np.linalg.norm(means, axis=1)[:, None]
        worst = np.argsort(cosines.min(axis=1))[:6]
        np.testing.assert_array_equal(index._outliers, worst)
        first = index.choose(QUERIES, 320).ids[:, : 6 * 8].reshape(len(QUERIES), 6, 8) // 8
        assert all(set(row.ravel().tolist()) == set(worst.tolist()) for row in first)

    def test_full_rank_attention_is_exact_over_the_chosen(self):
        index = built("shadowkv:rank_share=1")
        ids = index.choose(QUERIES, 80).ids
        part = index.attend(QUERIES, 80)
        for row, query in enumerate(QUERIES):
            output, lse = partial_attention(query[None], KEYS[ids[row]], VALUES[ids[row]])
            np.testing.assert_allclose(part.output[row], output[0], atol=1e-3)
            np.testing.assert_allclose(part.lse[row], lse[0], atol=1e-3)

    def test_keys_are_rebuilt_as_well_as_their_rank_allows(self):
        index = built("shadowkv:rank_share=0.25:outliers=3")
        left, sizes, right = np.linalg.svd(UNROTATED, full_matrices=False)
        expected = ROPE.apply((left[:, :4] * sizes[:4]) @ right[:4], np.arange(128, 128 + N))
        exact = np.isin(np.arange(N) // 8, index._outliers)
        expected[exact] = KEYS[exact]
        np.testing.assert_allclose(index._rebuilt(np.arange(N)[None])[0], expected, atol=2e-3)

    def test_inserted_keys_stay_exact(self):
        index = built("shadowkv:rank_share=0.1")
        index.insert(KEYS[:21] + 1, VALUES[:21])
        np.testing.assert_array_equal(index._rebuilt(np.arange(N, N + 21)[None])[0], KEYS[:21] + 1)
        assert len(index.summaries) == -(-(N + 21) // 8)

    def test_a_layer_shares_one_form_of_all_its_heads(self):
        heads = [create("shadowkv:rank_share=0.25") for _ in range(2)]
        other = ROPE.apply(UNROTATED @ np.linalg.qr(RNG.normal(size=(D, D)))[0], np.arange(128, 128 + N))
        keys = [KEYS, other.astype(np.float32)]  # a rotation of the same five directions: rank 5 holds both
        type(heads[0]).build_layer(heads, keys, [VALUES] * 2, None, [head()] * 2)
        assert heads[0]._coefficients is heads[1]._coefficients
        assert heads[0]._coefficients.shape == (N, 8)
        for one, rows in zip(heads, keys, strict=True):
            lost = np.abs(one._rebuilt(np.arange(N)[None])[0] - rows).max()
            alone = create("shadowkv:rank_share=0.25")
            alone.build(rows, VALUES, None, head())
            assert lost < 0.5 * np.abs(alone._rebuilt(np.arange(N)[None])[0] - rows).max()

    def test_bytes_are_landmarks_coefficients_outliers_and_values(self):
        index = built("shadowkv:rank_share=0.25:outliers=1")
        work = index.attend(QUERIES, 80).work
        landmarks, values = N // 8 * D * 4, 80 * D * 4
        assert (work.bytes_read == landmarks + values + 72 * 4 * 4 + 8 * D * 4).all()
        assert (work.exact == 8).all()
