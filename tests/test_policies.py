"""Methods that keep keys whatever the query, against plain computations of their papers' rules."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench import registry
from ra_bench.attention import partial_attention
from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.registry import create

N, D, G, K = 400, 16, 2, 20
RNG = np.random.default_rng(0)
KEYS = RNG.normal(size=(N, D)).astype(np.float32)
VALUES = RNG.normal(size=(N, D)).astype(np.float32)
LEARN = RNG.normal(size=(160, D)).astype(np.float32)
QUERIES = RNG.normal(size=(6, D)).astype(np.float32)
POSITIONS = np.arange(128, 128 + N)
ASKED = np.repeat(np.arange(528, 528 - 80, -1)[::-1], G)  # the learn queries' positions: all but 80 keys seen


def head(first: int = 128) -> Head:
    return Head(group=G, key_positions=np.arange(first, first + N), query_positions=ASKED)


def built(spec: str, about: Head | None = None, learn: np.ndarray | None = LEARN):
    index = create(spec)
    index.build(KEYS, VALUES, learn, head() if about is None else about)
    return index


def kept(index, tokens: int, **effort) -> set[int]:
    ids = index.choose(QUERIES, tokens, **effort).ids
    assert (ids == ids[0]).all(), "the same keys whatever the query"
    assert len(set(ids[0].tolist())) == tokens
    return set(ids[0].tolist())


def causal_weights(queries: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Softmax weights of each query over the keys at its position and before, one query at a time."""
    weights = np.zeros((len(queries), N))
    for row, (query, position) in enumerate(zip(queries, asked, strict=True)):
        seen = position >= POSITIONS
        exponentials = np.exp(KEYS[seen].astype(float) @ query)
        weights[row, seen] = exponentials / exponentials.sum()
    return weights


def newest(n: int, count: int) -> set[int]:
    return set(range(n - count, n))


class TestStreaming:
    def test_sinks_are_the_first_positions_of_the_text_and_the_rest_are_the_newest(self):
        index = built("streaming:sinks=4", head(first=1))  # the index holds positions 1, 2 and 3 of the four
        assert kept(index, 10) == {0, 1, 2} | newest(N, 7)
        assert kept(built("streaming"), 10) == newest(N, 10), "the harness holds the sinks"
        assert kept(index, 2) == {0, 1}

    def test_a_window_in_the_settings_replaces_k(self):
        index = built("streaming:recent=50", head(first=0))
        assert (index.attend(QUERIES, K).work.attended == 54).all()
        assert index.effort_sweep(N, K) == [{}]
        assert (index.attend(QUERIES, K, budget=8).work.attended == 8).all()
        assert (built("streaming").attend(QUERIES, K).work.attended == K).all()
        assert (built("streaming").attend(QUERIES, None).work.attended == N).all(), (
            "2000, but there are fewer"
        )

    def test_it_is_the_floor_under_the_paper_s_name(self):
        index, floor = built("streaming"), built("window")
        np.testing.assert_allclose(
            index.attend(QUERIES, K).output, floor.attend(QUERIES, K).output, atol=1e-5
        )

    def test_later_keys_push_the_oldest_out_of_the_window(self, tmp_path):
        index = built("streaming", head(first=1))
        index.insert(KEYS[:5], VALUES[:5])
        index.save(tmp_path)
        for one in (index, registry.load(tmp_path)):
            assert kept(one, 10) == {0, 1, 2} | newest(N + 5, 7)


class TestSnapKV:
    @pytest.mark.parametrize(("pooling", "pool"), [("mean", 5), ("max", 7), ("mean", 1)])
    def test_keys_are_kept_by_pooled_weights_of_the_last_queries(self, pooling: str, pool: int):
        index = built(f"snapkv:observed_tokens=8:pool={pool}:pooling={pooling}")
        summed = causal_weights(LEARN, ASKED)[-8 * G :].sum(axis=0)
        padded = np.pad(summed, pool // 2)
        windows = np.lib.stride_tricks.sliding_window_view(padded, pool)
        pooled = windows.mean(axis=1) if pooling == "mean" else windows.max(axis=1)
        best = np.lexsort((-np.arange(N), -pooled.astype(np.float32)))[:K]
        assert kept(index, K) == set(best.tolist())

    def test_a_query_says_nothing_of_keys_after_it(self):
        weights = causal_weights(LEARN, ASKED)
        index = built("snapkv:observed_tokens=1:pool=1")
        assert ASKED[-1] == 528
        assert ASKED[0] < POSITIONS[-1]
        np.testing.assert_allclose(index._importance, weights[-G:].sum(axis=0), rtol=1e-4, atol=1e-7)
        whole = built("snapkv:observed_tokens=80:pool=1")
        np.testing.assert_allclose(whole._importance, weights.sum(axis=0), rtol=1e-4, atol=1e-6)

    def test_attention_is_exact_over_what_is_kept(self):
        index = built("snapkv")
        ids = sorted(kept(index, K))
        part = index.attend(QUERIES, K)
        output, lse = partial_attention(QUERIES, KEYS[ids], VALUES[ids])
        np.testing.assert_allclose(part.output, output, atol=1e-5)
        np.testing.assert_allclose(part.lse, lse, atol=1e-5)

    def test_tokens_that_leave_the_window_later_are_kept_first(self):
        index = built("snapkv")
        before = kept(index, K)
        index.insert(KEYS[:5], VALUES[:5])
        after = kept(index, K)
        assert newest(N + 5, 5) <= after
        assert after - newest(N + 5, 5) <= before

    def test_without_queries_the_newest_are_kept(self):
        assert kept(built("snapkv", learn=None), K) == newest(N, K)

    @pytest.mark.parametrize("setting", ["pool=4", "pool=0", "observed_tokens=0", "pooling=median"])
    def test_a_setting_that_cannot_be_is_refused(self, setting: str):
        with pytest.raises(UsageError, match=setting.split("=", maxsplit=1)[0]):
            create(f"snapkv:{setting}")


class TestH2O:
    def test_half_are_the_heaviest_and_half_the_newest(self):
        index = built("h2o")
        weights = causal_weights(LEARN, ASKED).sum(axis=0)
        heavy = set(np.argsort(-weights[: N - K // 2])[: K // 2].tolist())
        assert kept(index, K) == heavy | newest(N, K // 2)
        assert (index.attend(QUERIES, None).work.attended == N // 5).all(), "by itself it keeps a fifth"

    def test_a_sampled_token_stands_for_those_between(self):
        weights = causal_weights(LEARN, ASKED).sum(axis=0)
        tokens_each = 529 / 80  # 80 tokens sampled of 0 to 528
        np.testing.assert_allclose(built("h2o")._weights, tokens_each * weights, rtol=1e-4, atol=1e-5)

    def test_observed_steps_add_weights_to_what_is_kept_and_to_nothing_else(self):
        index = built("h2o")
        before, ids = index._weights.copy(), np.sort(list(kept(index, N // 5)))
        index.observe(QUERIES[:G])
        exponentials = np.exp(QUERIES[:G].astype(float) @ KEYS[ids].T)
        added = (exponentials / exponentials.sum(axis=1, keepdims=True)).sum(axis=0)
        np.testing.assert_allclose(index._weights[ids] - before[ids], added, rtol=1e-3, atol=1e-4)
        others = np.setdiff1d(np.arange(N), ids)
        np.testing.assert_array_equal(index._weights[others], before[others])

    def test_what_is_observed_changes_what_is_kept_and_a_search_does_not(self):
        index = built("h2o:recent_share=0")
        before = kept(index, K)
        for _ in range(5):
            index.attend(20 * KEYS[:4], K)
            assert kept(index, K) == before
        lightest = min(kept(index, N // 5) - before, key=lambda key: index._weights[key])
        for _ in range(100):
            index.observe(np.tile(10 * KEYS[lightest], (G, 1)))
        assert lightest in kept(index, K)
        assert len(kept(index, K) - before) == 1

    def test_a_token_that_fell_out_never_comes_back(self):
        index, out = built("h2o"), set()
        for step in range(60):
            index.observe(RNG.normal(size=(G, D)).astype(np.float32))
            index.insert(KEYS[step : step + 1], VALUES[step : step + 1])
            now = kept(index, N // 5)
            assert newest(N + step + 1, N // 10) <= now
            assert not now & out
            out = set(range(N + step + 1)) - now

    def test_small_budgets_from_what_is_kept_are_those_from_all(self):
        index = built("h2o")
        for step in range(20):
            index.observe(RNG.normal(size=(G, D)).astype(np.float32))
            index.insert(KEYS[step : step + 1], VALUES[step : step + 1])
        every = np.arange(len(index.keys), dtype=np.int32)
        for tokens in (1, 7, 40, N // 5):
            assert kept(index, tokens) == set(index._best(every, tokens).tolist())

    def test_state_is_saved_and_restored(self, tmp_path):
        index = built("h2o")
        index.save(tmp_path)
        before = {tokens: kept(index, tokens) for tokens in (K, N // 5, 300)}
        for row in range(50):
            index.observe(3 * KEYS[row : row + G])
        index.insert(KEYS[:30], VALUES[:30])
        assert kept(index, K) != before[K]
        index.restore(tmp_path)
        assert {tokens: kept(index, tokens) for tokens in before} == before

    @pytest.mark.parametrize("setting", ["share=0", "recent_share=1.5"])
    def test_a_setting_that_cannot_be_is_refused(self, setting: str):
        with pytest.raises(UsageError, match=setting.split("=", maxsplit=1)[0]):
            create(f"h2o:{setting}")
