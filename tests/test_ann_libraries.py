"""What is particular to the libraries of the extra `ann`: where one is missing, its tests are skipped."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench import registry
from ra_bench.conformance.subject import overlap, true_top
from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.registry import create

N, D, K = 3000, 64, 10


def rows(n: int, d: int = D, seed: int = 0, mean: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, (n, d)).astype(np.float32)


KEYS, VALUES, QUERIES = rows(N), rows(N, seed=1), rows(28, seed=2, mean=-0.2)
TRUTH = true_top(KEYS, QUERIES, K)


def built(spec: str, keys: np.ndarray = KEYS, **create_arguments):
    reason = registry.info(registry.parse(spec).name).reason
    if reason:
        pytest.skip(reason)
    index = create(spec, **create_arguments)
    index.build(keys, VALUES[: len(keys)] if keys.shape[1] == D else None)
    return index


@pytest.mark.parametrize("spec", ["scann", "scann:rows=bfloat16", "scann@lift", "lorann", "lorann@lift"])
def test_all_lists_and_many_exact_scores_are_nearly_an_exact_scan(spec: str):
    index = built(spec)
    assert overlap(TRUTH, index.search(QUERIES, K, nprobe=10**6, rerank=100).ids) > 0.97


@pytest.mark.parametrize("spec", ["scann", "lorann"])
def test_more_lists_and_more_exact_scores_find_more(spec: str):
    index = built(spec)

    def recall(nprobe: int, rerank: int) -> float:
        return overlap(TRUTH, index.search(QUERIES, K, nprobe=nprobe, rerank=rerank).ids)

    assert recall(2, 20) < recall(8, 20) < recall(54, 20)
    assert recall(54, 1) < recall(54, 20)


@pytest.mark.parametrize("spec", ["scann", "lorann"])
def test_two_threads_find_what_one_finds(spec: str):
    index = built(spec)
    by_one = index.search(QUERIES, K).ids
    index.use_threads(2)
    # Codes that tie fall otherwise in a batch of another size.
    assert overlap(by_one, index.search(QUERIES, K).ids) > 0.97


@pytest.mark.parametrize("spec", ["scann", "lorann"])
def test_ids_are_sorted_by_the_exact_inner_product(spec: str):
    ids = built(spec).search(QUERIES, K).ids
    scores = np.einsum("md,mkd->mk", QUERIES, KEYS[ids])
    assert (np.diff(scores, axis=1) <= 1e-3).all()


class TestScann:
    def test_few_keys_are_scanned_and_stay_so_after_inserts(self, tmp_path):
        index = built("scann", KEYS[:200])
        index.insert(KEYS[200:900], VALUES[200:900])
        expected = true_top(KEYS[:900], QUERIES, K)
        assert overlap(expected, index.search(QUERIES, K, nprobe=1, rerank=1).ids) == 1.0
        index.save(tmp_path)
        np.testing.assert_array_equal(
            registry.load(tmp_path).search(QUERIES, K, nprobe=1).ids, index.search(QUERIES, K).ids
        )

    def test_a_loaded_index_knows_the_leaves_it_was_built_with(self, tmp_path):
        index = built("scann", KEYS[:900])
        index.insert(KEYS[900:], VALUES[900:])
        index.save(tmp_path)
        loaded = registry.load(tmp_path)
        assert loaded.nbytes == index.nbytes
        loaded.insert(KEYS[:50] + 3, VALUES[:50])
        # All leaves, many exact scores: the library's tree starts at random, and a few may miss a key.
        assert loaded.search(30 * (KEYS[:50] + 3), 1, nprobe=10**6, rerank=200).ids[:, 0].min() >= N

    def test_fill_is_not_taken_for_key_0(self):
        ids = built("scann").search(QUERIES, 500, nprobe=1, rerank=1).ids
        count = (ids >= 0).sum(axis=1)
        assert (count < 500).all()
        assert all(len(set(row[:real])) == real for row, real in zip(ids.tolist(), count, strict=True))

    @pytest.mark.parametrize("setting", ["nlist=-1", "dims=0", "threshold=1.0"])
    def test_impossible_settings_are_refused(self, setting: str):
        with pytest.raises(UsageError, match=setting.split("=", maxsplit=1)[0]):
            create(f"scann:{setting}")


class TestUsearch:
    def test_the_rows_of_a_call_share_its_counts(self):
        index = built("usearch", KEYS.astype(np.float16))
        work = index.search(QUERIES, K, ef=60).work
        matches = index._graph.search(QUERIES, K, threads=1)
        assert work.exact.sum() == matches.computed_distances
        assert work.exact.max() - work.exact.min() <= 1
        assert (work.bytes_read - work.exact * 2 * D > 0).all(), "links are read too"

    def test_half_rows_take_half_the_memory(self):
        half, single = (built("usearch", KEYS.astype(kind)).nbytes.host for kind in (np.float16, np.float32))
        assert single - half == 2 * KEYS.size

    def test_fewer_found_than_asked_for_is_minus_one_for_one_query_and_for_many(self):
        index = built("usearch", KEYS[:7])
        for queries in (QUERIES[:1], QUERIES):
            ids = index.search(queries, 9).ids
            assert (np.sort(ids[:, :7]) == np.arange(7)).all()
            assert (ids[:, 7:] == -1).all()


class TestVamana:
    def test_unset_memory_is_no_find(self):
        pytest.importorskip("diskannpy")
        index = built("vamana", KEYS[:20])
        ids = np.tile(np.argsort(-(QUERIES @ KEYS[:20].T), axis=1), 1)
        distances = -np.take_along_axis(QUERIES @ KEYS[:20].T, ids, axis=1)
        ids[3, 15:], distances[3, 15:] = [4711, -1, 2, 2, 2], 0.0
        ids[5, 18:], distances[5, 18:] = ids[5, 0], distances[5, 0]

        cut = index._without_fill(QUERIES, ids, distances)

        assert (cut[3, 15:] == -1).all()
        assert (cut[5, 18:] == -1).all()
        cut[3, 15:], cut[5, 18:] = ids[3, 15:], ids[5, 18:]
        np.testing.assert_array_equal(cut, ids)

    def test_inserts_beyond_the_room_build_anew(self):
        pytest.importorskip("diskannpy")
        index = built("vamana@lift", KEYS[:900])
        index.insert(KEYS[900:1000], VALUES[900:1000])
        index.insert(KEYS[1000:1010], VALUES[1000:1010])
        truth = true_top(KEYS[:1010], QUERIES, K)
        assert overlap(truth, index.search(QUERIES, K, ef=300).ids) > 0.97


class TestLorann:
    def test_it_learns_from_queries(self):
        keys = rows(6000)
        keys[:, ::2] *= 8.0  # the loudest half of the channels, of which queries see nothing
        learn, queries = rows(12_000, seed=5, mean=0.0), rows(28, seed=6, mean=0.0)
        learn[:, ::2] = queries[:, ::2] = 0.0
        truth = true_top(keys, queries, K)

        def recall(learn: np.ndarray | None) -> float:
            index = built("lorann:nlist=12:rank=16")
            index.build(keys, None, learn, Head(group=1))
            return overlap(truth, index.search(queries, K, nprobe=12, rerank=2).ids)

        assert recall(learn) > recall(None) + 0.1

    def test_it_points_into_float32_keys_and_copies_others(self):
        keys = rows(N, 96)
        extra = built("lorann", keys.astype(np.float16)).nbytes.host - built("lorann", keys).nbytes.host
        assert extra == keys.nbytes
        narrow = rows(N, 24)
        truth = true_top(narrow, rows(28, 24, seed=2), K)
        ids = built("lorann", narrow).search(rows(28, 24, seed=2), K, nprobe=100, rerank=30).ids
        assert overlap(truth, ids) > 0.97
