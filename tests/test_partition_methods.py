"""Methods of pages and clusters against a plain computation of their papers' steps."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench import registry
from ra_bench.attention import partial_attention
from ra_bench.head import Head
from ra_bench.registry import create

N, D, G, TOKENS = 600, 16, 2, 3
RNG = np.random.default_rng(0)
STEPS = RNG.normal(size=(N, D)) * 0.4
KEYS = (RNG.normal(size=D) + np.cumsum(STEPS, axis=0) / np.sqrt(1 + np.arange(N))[:, None]).astype(np.float32)
VALUES = RNG.normal(size=(N, D)).astype(np.float32)
QUERIES = RNG.normal(size=(TOKENS * G, D)).astype(np.float32)
LEARN = RNG.normal(size=(300 * G, D)).astype(np.float32)
ABOUT = Head(
    group=G, key_positions=np.arange(128, 128 + N), query_positions=np.repeat(np.arange(0, 900, 3), G)
)
METHODS = ["quest", "infllm:block=32:local_tokens=90", "clusterkv", "squeezed", "retroinfer"]


def built(spec: str, keys: np.ndarray = KEYS, values: np.ndarray = VALUES, about: Head = ABOUT):
    index = create(spec)
    index.build(keys, values, LEARN, about)
    return index


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def parts_of(index) -> list[np.ndarray]:
    """The keys of each part."""
    return [
        index.members[start : start + size]
        for start, size in zip(index.starts[:-1], index.sizes, strict=True)
    ]


def taken(ids: np.ndarray) -> set[int]:
    return set(ids[ids >= 0].tolist())


@pytest.mark.parametrize("spec", METHODS)
def test_every_key_is_in_one_part_and_stays_there_through_inserts_and_saving(spec: str, tmp_path):
    index = built(spec)
    np.testing.assert_array_equal(np.sort(index.members), np.arange(N))
    before = index._labels.copy()
    for start in range(0, 120, 24):
        index.insert(KEYS[start : start + 24], VALUES[start : start + 24])
    np.testing.assert_array_equal(index._labels[:N], before)
    np.testing.assert_array_equal(np.sort(index.members), np.arange(N + 120))
    index.save(tmp_path)
    loaded = registry.load(tmp_path)
    for one in (index, loaded):
        one.insert(KEYS[:40], VALUES[:40])
    np.testing.assert_array_equal(loaded.summaries, index.summaries)
    part, again = index.attend(QUERIES, 50), loaded.attend(QUERIES, 50)
    np.testing.assert_allclose(again.output, part.output, atol=1e-5)
    assert loaded.nbytes == index.nbytes


@pytest.mark.parametrize("spec", METHODS)
def test_a_budget_of_all_keys_is_dense_attention(spec: str):
    index = built(spec)
    part = index.attend(QUERIES, 10, budget=N)
    output, lse = partial_attention(QUERIES, KEYS, VALUES)
    np.testing.assert_allclose(part.output, output, atol=1e-4)
    np.testing.assert_allclose(part.lse, lse, atol=1e-4)
    assert (part.work.attended == N).all()


@pytest.mark.parametrize("spec", METHODS)
def test_summaries_of_half_keys_are_read_as_half(spec: str):
    whole, half = built(spec), built(spec, KEYS.astype(np.float16))
    assert half.summaries.dtype == np.float16
    none = np.zeros((G, D), np.float32)
    wide, narrow = (index.choose(none, 1).work.bytes_read / len(index.sizes) for index in (whole, half))
    np.testing.assert_allclose(wide, 2 * narrow)


class TestQuest:
    def test_a_page_bound_is_never_below_a_key_s_score(self):
        index = built("quest")
        bounds = index.score_parts(QUERIES)
        scores = QUERIES @ KEYS.T
        for page, members in enumerate(parts_of(index)):
            assert (bounds[:, page] >= scores[:, members].max(axis=1) - 1e-5).all()
        one_key = built("quest:page=1")
        np.testing.assert_allclose(one_key.score_parts(QUERIES), scores, atol=1e-5)

    def test_a_bound_takes_the_better_extreme_of_each_channel(self):
        keys = np.array([[1, -2], [3, 0], [-1, 5]], np.float32)
        index = create("quest:page=2")
        index.build(keys)
        np.testing.assert_array_equal(index.summaries, [[3, 0, 1, -2], [-1, 5, -1, 5]])
        bounds = index.score_parts(np.array([[2, -1], [-1, 0.5]], np.float32))
        np.testing.assert_array_equal(bounds, [[2 * 3 + 2, -2 - 5], [-1 + 0, 1 + 2.5]])

    def test_the_pages_of_the_largest_bounds_are_chosen_by_each_head_for_itself(self):
        found = built("quest").choose(QUERIES, 80)
        pages = [np.arange(start, min(start + 16, N)) for start in range(0, N, 16)]
        for row, query in enumerate(QUERIES):
            bounds = [
                np.maximum(query * KEYS[p].max(axis=0), query * KEYS[p].min(axis=0)).sum() for p in pages
            ]
            expected: set[int] = set()
            for page in np.argsort(-np.array(bounds)):
                if len(expected) < 80:
                    expected |= set(pages[page].tolist())
            assert taken(found.ids[row]) == expected
        assert (found.work.bytes_read == len(pages) * 2 * D * 4).all()

    def test_at_least_three_pages_are_read(self):
        assert (built("quest").choose(QUERIES, 1).ids >= 0).sum(axis=1).min() >= 40

    def test_an_inserted_key_widens_the_extremes_of_the_last_page(self):
        index = built("quest")
        index.insert(np.full((1, D), 100, np.float32), VALUES[:1])
        assert len(index.summaries) == 38
        np.testing.assert_array_equal(index.summaries[-1, :D], 100)
        np.testing.assert_array_equal(index.summaries[-1, D:], KEYS[592:].min(axis=0))


class TestInfLLM:
    SPEC = "infllm:block=32:local_tokens=90:representatives=3"

    def scores(self) -> np.ndarray:
        """Mean products (n, G) of each key with the learn queries of the 90 tokens after it, in loops."""
        out = np.zeros((N, G))
        asked = ABOUT.query_positions[::G]
        for i, position in enumerate(ABOUT.key_positions):
            start = min(position, asked[-1] - 90)
            for head in range(G):
                follow = [LEARN[G * t + head] for t, at in enumerate(asked) if start < at <= start + 90]
                out[i, head] = np.mean([KEYS[i] @ query for query in follow])
        return out

    def test_representatives_are_those_that_the_following_queries_like_best(self):
        index, scores = built(self.SPEC), self.scores()
        np.testing.assert_allclose(index._scores, scores, atol=1e-4)
        for block, members in enumerate(parts_of(index)):
            for head in range(G):
                best = members[np.argsort(-scores[members, head])[:3]]
                mean = index.summaries[block, head * D : (head + 1) * D]
                np.testing.assert_allclose(mean, KEYS[best].mean(axis=0), atol=1e-5)

    def test_a_block_scores_the_sum_over_query_heads_and_representatives(self):
        index = built(self.SPEC)
        expected = np.zeros((TOKENS, len(index.sizes)))
        for block in range(len(index.sizes)):
            for row, query in enumerate(QUERIES):
                head = row % G
                expected[row // G, block] += query @ index.summaries[block, head * D : (head + 1) * D]
        np.testing.assert_allclose(index.score_parts(QUERIES), expected, atol=1e-4)
        ids = index.choose(QUERIES, 64).ids
        for token in range(TOKENS):
            best = np.argsort(-expected[token])[:2]
            assert taken(ids[G * token]) == taken(ids[G * token + 1])
            assert set(ids[G * token] // 32) == set(best) or 18 in best  # the last block is shorter

    def test_fewer_keys_than_representatives_all_stand_for_their_block(self):
        index = built("infllm:block=32:representatives=40")
        for block, members in enumerate(parts_of(index)):
            mean = np.tile(KEYS[members].mean(axis=0), G)
            np.testing.assert_allclose(index.summaries[block], mean, atol=1e-4)

    def test_later_keys_are_judged_by_the_last_queries(self):
        index = built(self.SPEC)
        index.insert(KEYS[:50] + 1, VALUES[:50])
        last = LEARN.reshape(-1, G, D)[-30:].mean(axis=0)  # 90 tokens, every third of them learned
        np.testing.assert_allclose(index._scores[N:], (KEYS[:50] + 1) @ last.T, atol=1e-4)


def planted(sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Keys along as many axes, of any length, in any order."""
    rng = np.random.default_rng(seed)
    axis = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    keys = 0.01 * rng.normal(size=(len(axis), D))
    keys[np.arange(len(axis)), axis] += rng.uniform(1, 5, len(axis))
    return keys.astype(np.float32)


class TestClusterKV:
    def test_keys_of_one_direction_are_one_cluster_whatever_their_length(self):
        keys = planted((30, 50, 40))
        index = built("clusterkv:cluster_tokens=40", keys, keys, Head(group=G))
        found = {frozenset(part.tolist()) for part in parts_of(index)}
        assert found == {frozenset(np.nonzero(keys.argmax(axis=1) == axis)[0].tolist()) for axis in range(3)}
        for part, mean in zip(parts_of(index), index.summaries, strict=True):
            np.testing.assert_allclose(mean, keys[part].mean(axis=0), atol=1e-5)

    def test_clusters_are_ranked_by_each_head_and_the_last_is_cut_at_the_budget(self):
        index = built("clusterkv:cluster_tokens=20")
        parts, ids = parts_of(index), index.choose(QUERIES, 100).ids
        means = np.stack([KEYS[part].mean(axis=0) for part in parts])
        for row, query in enumerate(QUERIES):
            order = np.concatenate([parts[part] for part in np.argsort(-(means @ query))])
            np.testing.assert_array_equal(ids[row], order[:100])

    def test_an_inserted_block_makes_clusters_of_its_own(self):
        index = built("clusterkv")
        before = index.summaries.copy()
        index.insert(KEYS[:64] + 3, VALUES[:64])
        np.testing.assert_array_equal(index.summaries[: len(before)], before)
        assert len(before) == 8
        assert len(before) < len(index.summaries) <= len(before) + 8
        assert index._labels[N:].min() == len(before)


class TestSqueezed:
    def test_weights_are_the_softmax_of_keys_that_are_as_their_means(self):
        index = built("squeezed:clusters=0.1")
        logits = np.zeros((len(QUERIES), N))
        for part in parts_of(index):
            logits[:, part] = (QUERIES @ KEYS[part].mean(axis=0))[:, None]
        expected = softmax(logits)
        for i, part in enumerate(parts_of(index)):
            np.testing.assert_allclose(index.score_parts(QUERIES)[:, i], expected[:, part[0]], rtol=1e-4)

    @pytest.mark.parametrize("tokens", [1, 30, 300])
    def test_the_threshold_is_the_quantile_of_the_mean_weights_of_the_last_queries(self, tokens: int):
        index = built("squeezed:clusters=0.1:observed_tokens=50")
        weights = np.zeros((50 * G, N))
        for i, part in enumerate(parts_of(index)):
            weights[:, part] = index.score_parts(LEARN[-50 * G :])[:, i : i + 1]
        mean = weights.mean(axis=0)
        quantile = np.quantile(mean, 1 - tokens / N, method="higher")
        np.testing.assert_allclose(index.threshold(tokens), quantile, rtol=1e-4)

    def test_exactly_the_clusters_above_the_threshold_are_chosen_and_the_best_always(self):
        index = built("squeezed:clusters=0.1")
        ids, weights = index.choose(QUERIES, 40).ids, index.score_parts(QUERIES)
        for row in range(len(QUERIES)):
            above = [part for i, part in enumerate(parts_of(index)) if weights[row, i] >= index.threshold(40)]
            best = parts_of(index)[weights[row].argmax()]
            assert taken(ids[row]) == taken(np.concatenate([*above, best]))

    def test_a_query_with_many_alike_weights_reads_more_than_one_with_a_few_large_ones(self):
        index = built("squeezed:clusters=0.1")
        middle = 10 * KEYS[300] / np.linalg.norm(KEYS[300])
        sharp, soft = ((index.choose(rate * middle[None], 100).ids >= 0).sum() for rate in (2.0, 0.1))
        assert sharp < soft

    def test_the_heads_of_a_layer_share_a_threshold(self):
        heads = [create("squeezed:clusters=0.1") for _ in range(2)]
        alone = [built("squeezed:clusters=0.1"), built("squeezed:clusters=0.1", 3 * KEYS)]
        keys = [KEYS, 3 * KEYS]
        type(heads[0]).build_layer(heads, keys, [VALUES] * 2, [LEARN] * 2, [ABOUT] * 2)
        shared, *others = [index.threshold(60) for index in (*heads[:1], *alone)]
        assert heads[1].threshold(60) == shared
        assert min(others) < shared < max(others)
        all_weights = np.concatenate(
            [np.repeat(index.score_parts(LEARN[-100 * G :]).mean(axis=0), index.sizes) for index in alone]
        )
        expected = np.quantile(all_weights, 1 - 60 / N, method="higher")
        np.testing.assert_allclose(shared, expected, rtol=1e-4)


class TestRetroInfer:
    @pytest.mark.parametrize("budget", [1, 20, N])
    def test_with_a_key_a_cluster_estimating_all_the_rest_is_dense_attention(self, budget: int):
        index = built("retroinfer:cluster_tokens=1")
        assert len(index.sizes) == N
        part = index.attend(QUERIES, 1, budget=budget, estimated=1.0)
        output, lse = partial_attention(QUERIES, KEYS, VALUES)
        np.testing.assert_allclose(part.output, output, atol=1e-4)
        np.testing.assert_allclose(part.lse, lse, atol=1e-4)

    def test_the_second_zone_weighs_means_by_counts_and_adds_up_values(self):
        index = built("retroinfer")
        parts, part = parts_of(index), index.attend(QUERIES, 30)
        means = np.stack([KEYS[members].mean(axis=0) for members in parts])
        shares = softmax(QUERIES @ means.T).reshape(TOKENS, G, -1).sum(axis=1)
        zone = round(0.232 * len(parts))
        for row, query in enumerate(QUERIES):
            order, exact, i = np.argsort(-shares[row // G]), [], 0
            while len(exact) < 30:
                exact += parts[order[i]].tolist()
                i += 1
            weights = np.exp(KEYS[exact] @ query)
            total, output = weights.sum(), weights @ VALUES[exact]
            for cluster in order[i : i + zone]:
                weight = np.exp(means[cluster] @ query)
                total += weight * len(parts[cluster])
                output += weight * VALUES[parts[cluster]].sum(axis=0)
            np.testing.assert_allclose(part.output[row], output / total, atol=1e-4)
            np.testing.assert_allclose(part.lse[row], np.log(total), atol=1e-4)
            assert part.work.attended[row] == len(exact)
            read = len(parts) * (D + 1) * 4 + len(exact) * 2 * D * 4 + zone * 2 * (D + 1) * 4
            assert part.work.bytes_read[row] == read

    def test_an_estimate_is_never_more_than_the_true_weight(self):
        index = built("retroinfer")
        _, lse = partial_attention(QUERIES, KEYS, VALUES)
        estimates = [index.attend(QUERIES, 1, budget=16, estimated=share).lse for share in (0.0, 0.2, 1.0)]
        assert (estimates[0] < estimates[1]).all()
        assert (estimates[1] < estimates[2]).all()
        assert (estimates[2] <= lse + 1e-5).all()

    def test_keys_are_clustered_in_segments_and_assigned_over_all(self):
        index = built("retroinfer:segment=200")
        assert len(index.sizes) == pytest.approx(N / 16, abs=6)
        apart = np.repeat(10 * np.eye(3, D, dtype=np.float32), 200, axis=0)
        drift = built("retroinfer:segment=200", KEYS + apart)
        segments = [set((part // 200).tolist()) for part in parts_of(drift)]
        assert all(len(one) == 1 for one in segments)

    def test_without_a_k_it_retrieves_the_paper_s_share(self):
        index = built("retroinfer")
        attended = index.attend(QUERIES, None).work.attended
        assert (attended >= round(0.018 * N)).all()
        assert (attended < round(0.018 * N) + index.sizes.max()).all()

    def test_later_values_count_in_the_estimate(self):
        index = built("retroinfer")
        index.insert(KEYS[:64] - 1, VALUES[:64] + 50)
        for part, mean in zip(parts_of(index), index._mean_values, strict=True):
            np.testing.assert_allclose(mean[:-1], index.values[part].mean(axis=0), rtol=1e-4, atol=1e-4)
