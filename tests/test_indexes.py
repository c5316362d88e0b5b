"""What is particular to each method: its counters, its corner cases, the traps of its library."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from ra_bench import registry
from ra_bench.conformance.subject import overlap, true_top
from ra_bench.registry import create

N, D, K = 2000, 24, 10


def rows(n: int, d: int = D, seed: int = 0, mean: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, (n, d)).astype(np.float32)


KEYS, VALUES, QUERIES = rows(N), rows(N, seed=1), rows(30, seed=2, mean=-0.2)
TRUTH = true_top(KEYS, QUERIES, K)


def built(spec: str, keys: np.ndarray = KEYS, values: np.ndarray | None = VALUES, **create_arguments):
    index = create(spec, **create_arguments)
    index.build(keys, values if values is not None and values.shape == keys.shape else None)
    return index


class TestFlat:
    @pytest.mark.parametrize("kind", [np.float16, np.float32])
    @pytest.mark.parametrize("d", [1, 7, 24, 64])
    def test_finds_the_true_top(self, kind: type, d: int):
        keys, queries = rows(500, d).astype(kind), rows(40, d, seed=2)
        scores = np.einsum("md,nd->mn", queries, keys.astype(np.float32))
        for block in (queries[:7], queries):
            ids = built("flat", keys).search(block, 20).ids
            found = np.take_along_axis(scores[: len(block)], ids, axis=1)
            np.testing.assert_allclose(found, -np.sort(-scores[: len(block)])[:, :20], rtol=1e-4, atol=1e-4)

    def test_scans_the_rows_where_they_lie(self):
        keys = KEYS.copy()
        index = built("flat", keys)
        assert index.nbytes.host == 4 * len(keys), "its list of ids"
        assert np.shares_memory(index.keys, keys)
        keys[17] = 100 * QUERIES[0]  # the caller may not do this; that it shows proves that there is no copy
        assert index.search(QUERIES[:1], 1).ids[0, 0] == 17

    def test_sorts_all_keys_where_no_k_is_given(self):
        ids = built("flat").search(QUERIES[:2], None).ids
        assert np.array_equal(np.sort(ids), np.tile(np.arange(N), (2, 1)))

    def test_sees_rows_that_an_insert_moved(self):
        index = built("flat", KEYS[:10], VALUES[:10])
        for start in range(10, 200, 30):
            index.insert(KEYS[start : start + 30], VALUES[start : start + 30])
        expected = true_top(KEYS[: len(index.keys)], QUERIES, K)
        assert overlap(expected, index.search(QUERIES, K).ids) == 1.0


class TestIvf:
    @pytest.mark.parametrize("spec", ["ivf", "ivf:codes=float32", "ivfpq"])
    def test_keys_read_is_the_size_of_the_probed_lists(self, spec: str):
        index = built(spec)
        index.insert(rows(100, seed=5), rows(100, seed=6))
        width = index._index.d
        centroids = index._quantizer.reconstruct_n(0, index._index.nlist)
        keys = np.pad(index.keys, ((0, 0), (0, width - D))).astype(np.float64)
        queries = np.pad(QUERIES, ((0, 0), (0, width - D)))
        nearest = ((keys[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
        sizes = np.bincount(nearest, minlength=len(centroids))
        for nprobe in (1, 5, 40):
            probed = np.argsort(-(queries @ centroids.T), axis=1)[:, :nprobe]
            work = index.search(QUERIES, K, nprobe=nprobe).work
            assert np.array_equal(work.keys_read, sizes[probed].sum(axis=1))

    @pytest.mark.parametrize(
        ("codes", "kind", "number_bytes"),
        [("keys", np.float32, 4), ("keys", np.float16, 2), ("float16", np.float32, 2)],
    )
    def test_bytes_are_lists_and_centroids(self, codes: str, kind: type, number_bytes: int):
        index = built(f"ivf:nlist=10:codes={codes}", KEYS.astype(kind))
        work = index.search(QUERIES, K, nprobe=10).work
        stored = 32 * number_bytes + 8  # 24 dimensions are kept as 32
        assert (work.bytes_read == N * stored + 10 * 32 * 4).all()
        assert index.nbytes.host - (N * stored + 10 * 32 * 4) < 1000

    @pytest.mark.parametrize("spec", ["ivf", "ivf:codes=float32", "ivf@lift"])
    def test_all_lists_are_an_exact_scan(self, spec: str):
        index = built(spec)
        assert overlap(TRUTH, index.search(QUERIES, K, nprobe=10**6).ids) > 0.99

    def test_more_iterations_bring_the_centroids_nearer_to_the_keys(self):
        def distance(iterations: int) -> float:
            index = built(f"ivf:nlist=40:iterations={iterations}", rows(N, 16))
            centroids = index._quantizer.reconstruct_n(0, 40)
            return ((index.keys[:, None] - centroids[None]) ** 2).sum(axis=2).min(axis=1).mean()

        assert distance(10) < distance(3) < distance(1)

    def test_more_lists_than_keys_are_as_many_as_keys(self):
        index = built("ivf:nlist=100000", KEYS[:50])
        assert index._index.nlist == 50

    def test_insert_after_loading_goes_to_the_nearest_list(self, tmp_path):
        index = built("ivf")
        index.save(tmp_path)
        loaded = registry.load(tmp_path)
        for one in (index, loaded):
            one.insert(rows(60, seed=7), rows(60, seed=8))
        again, before = loaded.search(QUERIES, K, nprobe=9), index.search(QUERIES, K, nprobe=9)
        assert np.array_equal(again.ids, before.ids)
        assert np.array_equal(again.work.keys_read, before.work.keys_read)

    def test_too_few_probed_keys_leave_minus_one(self):
        found = built("ivf").search(QUERIES, 500, nprobe=1)
        assert np.array_equal((found.ids >= 0).sum(axis=1), found.work.keys_read)


class TestIvfPq:
    def test_reranking_everything_is_an_exact_scan(self):
        found = built("ivfpq").search(QUERIES, K, nprobe=10**6, rerank=N // K)
        scores = QUERIES @ KEYS.T
        got = np.take_along_axis(scores, found.ids, axis=1)
        np.testing.assert_allclose(got, -np.sort(-scores)[:, :K], rtol=1e-4, atol=1e-4)
        assert (found.work.keys_read == N).all()

    def test_returns_true_inner_products_best_first(self):
        ids = built("ivfpq", KEYS.astype(np.float16)).search(QUERIES, K).ids
        scores = np.take_along_axis(QUERIES @ KEYS.astype(np.float16).astype(np.float32).T, ids, axis=1)
        assert (np.diff(scores, axis=1) <= 1e-4).all()

    def test_counts_what_is_scored_exactly(self):
        work = built("ivfpq").search(QUERIES, K, nprobe=50, rerank=3).work
        assert (work.exact == np.minimum(3 * K, work.keys_read)).all()
        key_bytes = D * 4
        code_bytes = D // 2 + 8
        nlist = int(4 * N**0.5)
        assert (work.bytes_read == work.keys_read * code_bytes + work.exact * key_bytes + nlist * D * 4).all()

    def test_holds_no_copy_of_the_keys(self):
        index = built("ivfpq", KEYS)
        assert index.nbytes.host < KEYS.nbytes


class TestHnsw:
    def unreachable(self) -> np.ndarray:
        """Two giants that occlude everything: raw inner product links all keys to them alone."""
        keys = 0.01 * rows(400, 8, mean=0.0)
        keys[:2] = 100 + keys[:2]
        return keys

    def test_fewer_than_k_reached_are_padded(self):
        index = built("hnsw:degree=2:ef_construction=2", self.unreachable())
        queries = rows(5, 8, seed=3, mean=1.0)
        with pytest.raises(RuntimeError, match="contiguous 2D array"):  # what the library itself does
            index._graph.knn_query(queries, 400)
        ids = index.search(queries, 400).ids
        counts = (ids >= 0).sum(axis=1)
        assert ((counts >= 1) & (counts < 400)).all()
        for query, row, count in zip(queries, ids, counts, strict=True):
            again = index._graph.knn_query(query, count)[0][0]
            assert np.array_equal(row[:count], again)
            with pytest.raises(RuntimeError):
                index._graph.knn_query(query, count + 1)

    def test_ef_below_k_is_raised_to_k(self):
        ids = built("hnsw").search(QUERIES, 50, ef=1).ids
        assert (ids >= 0).all()

    def test_inserted_keys_of_a_lifted_graph_follow_the_built_ones(self):
        index = built("hnsw@lift")
        for seed in (4, 5, 6):
            index.insert(rows(40, seed=seed), rows(40, seed=seed))
        ids = index.search(index.keys[N:], 3, ef=400).ids
        assert ids.max() < N + 120
        assert overlap(true_top(index.keys, index.keys[N:], 3), ids) > 0.9

    def test_seed_changes_the_levels(self):
        searches = [built("hnsw", seed=seed).search(QUERIES, 100, ef=100).ids for seed in (0, 0, 1)]
        assert np.array_equal(searches[0], searches[1])
        assert not np.array_equal(searches[0], searches[2])


class TestNsg:
    def test_many_equal_keys_end_and_are_all_found(self, tmp_path):
        keys = np.concatenate([KEYS[:600], np.repeat(KEYS[:20], 30, axis=0)])
        index = built("nsg", keys)
        ids = index.search(KEYS[:20] * 3, 31, ef=300).ids
        scores = np.take_along_axis(3 * KEYS[:20] @ keys.T, ids, axis=1)
        np.testing.assert_allclose(scores[:, :31], -np.sort(-3 * KEYS[:20] @ keys.T)[:, :31], rtol=1e-3)
        index.save(tmp_path)
        assert np.array_equal(registry.load(tmp_path).search(KEYS[:20] * 3, 31, ef=300).ids, ids)

    def test_few_keys_are_scanned(self):
        index = built("nsg", KEYS[:200])
        assert overlap(true_top(KEYS[:200], QUERIES, K), index.search(QUERIES, K, ef=1).ids) == 1.0


class TestPyNNDescent:
    def test_few_keys_are_scanned(self):
        index = built("pynndescent", KEYS[:100])
        assert overlap(true_top(KEYS[:100], QUERIES, K), index.search(QUERIES, K).ids) == 1.0

    def test_ids_that_fill_a_short_row_are_undone(self):
        without_fill = importlib.import_module("ra_bench.indexes.pynndescent")._without_fill
        given = np.array([[4, 9, 9, 9], [1, 2, 3, 4], [9, 5, 6, 9], [9, 9, 9, 9]])
        expected = [[4, -1, -1, -1], [1, 2, 3, 4], [9, 5, 6, -1], [-1, -1, -1, -1]]
        assert without_fill(given).tolist() == expected

    @pytest.mark.slow
    def test_lifted_keys_are_found_and_raw_ones_hardly(self):
        found = {}
        for spec in ("pynndescent", "pynndescent@lift"):
            index = create(spec)
            index.warm_up(D)
            index.build(KEYS)
            found[spec] = overlap(TRUTH, index.search(QUERIES, K, epsilon=0.1).ids)
        assert found["pynndescent@lift"] > 0.9


class TestFloors:
    def test_window_is_the_newest_keys(self):
        index = built("window")
        assert np.array_equal(index.search(QUERIES, 3).ids, [[N - 1, N - 2, N - 3]] * 30)
        index.insert(KEYS[:5], VALUES[:5])
        assert index.search(QUERIES, 3).ids[0].tolist() == [N + 4, N + 3, N + 2]
        assert index.search(QUERIES, N + 9).ids[0, -4:].tolist() == [-1] * 4

    def test_random_draws_the_same_for_the_same_query(self):
        index = built("random")
        ids = index.search(QUERIES, 50).ids
        assert np.array_equal(index.search(QUERIES[::-1], 50).ids[::-1], ids)
        assert np.array_equal(built("random").search(QUERIES[:1], 50).ids, ids[:1])
        assert not np.array_equal(built("random", seed=1).search(QUERIES, 50).ids, ids)

    def test_random_is_uniform(self):
        ids = built("random", KEYS[:100]).search(rows(2000, seed=9), 10).ids
        counts = np.bincount(ids.ravel(), minlength=100)
        assert abs(counts - 200).max() < 5 * 200**0.5


@pytest.mark.parametrize("name", [name for name in registry.names() if not registry.info(name).reason])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 100), (30_000, 100), (130_000, 1000)])
def test_sweeps_run_from_cheap_to_dear_without_repeats(name: str, n: int, k: int):
    sweep = create(name).effort_sweep(n, k)
    texts = [str(effort) for effort in sweep]
    assert len(set(texts)) == len(texts)
    first = [next(iter(effort.values()), 0) for effort in sweep]
    assert first == sorted(first)


def test_flat_finds_the_same_with_any_number_of_threads():
    one, three = (built("flat", KEYS, threads=threads).search(QUERIES, K) for threads in (1, 3))
    np.testing.assert_array_equal(one.ids, three.ids)


@pytest.mark.parametrize("name", ["ivf", "ivfpq", "nsg"])
def test_faiss_runs_with_the_threads_of_the_index(name: str):
    import faiss

    for threads in (2, 1):
        index = built(name, KEYS[:300], threads=threads)
        faiss.omp_set_num_threads(3)
        index.search(QUERIES, 3)
        assert faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize("name", ["ivf", "ivf:codes=float32"])
def test_lists_trained_on_a_device_serve_as_faiss_s_own_do(name: str):
    own, other = built(name, KEYS), built(f"{name}:trained_on=device", KEYS)

    assert other._index.ntotal == len(KEYS)
    assert (own._index.quantizer.reconstruct_n(0, 3) != other._index.quantizer.reconstruct_n(0, 3)).any()
    recalls = [overlap(index.search(QUERIES, K, nprobe=4).ids, TRUTH) for index in (own, other)]
    assert recalls[1] > recalls[0] - 0.05
    everything = other._index.nlist
    np.testing.assert_array_equal(other.search(QUERIES, K, nprobe=everything).ids, TRUTH)


@pytest.mark.parametrize(
    "spec",
    [
        "ivf:nlist=-1",
        "ivf:iterations=0",
        "ivfpq:dims=0",
        "nsg:degree=0",
        "nsg:build_ef=0",
        "hnsw:ef_construction=0",
    ],
)
def test_impossible_settings_are_refused(spec: str):
    with pytest.raises(registry.UsageError, match="must be at least"):
        create(spec)
