"""Routed lists against exact search: kernels, codes, router, later keys, torn files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ra_bench.indexes._native._native import kernels
from ra_bench.indexes.qivf import _qivf
from ra_bench.indexes.qivf.router import fit_router
from ra_graphs import KEYS, LEARN, TEST, TRUTH, exact, out_of_distribution, recall

from ra_bench.head import Head
from ra_bench.registry import create, load

K = 50


def built(spec="qivf:nlist=40", keys=KEYS, learn=LEARN, about=None, threads=1):
    index = create(spec, threads=threads)
    index.build(keys, None, learn, about)
    return index


@pytest.fixture(scope="module")
def index():
    return built()


def test_all_lists_and_all_candidates_are_an_exact_search(index):
    found = index.search(TEST, K, share=1.0, rerank=len(KEYS) / K)
    assert recall(found.ids, TRUTH) > 0.9999  # float16 ties may fall either way
    np.testing.assert_array_equal(found.work.keys_read, len(KEYS))


def test_recall_grows_with_the_share_and_reads_grow_too(index):
    found = [index.search(TEST, K, share=share) for share in (0.3, 0.7, 0.95)]
    recalls = [recall(each.ids, TRUTH) for each in found]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.9
    reads = [each.work.keys_read.mean() for each in found]
    assert reads == sorted(reads)
    assert reads[1] < 0.8 * len(KEYS)


def test_four_bits_rank_well_enough_that_twice_k_candidates_hold_nearly_all(index):
    assert recall(index.search(TEST, K, share=1.0, rerank=2.0).ids, TRUTH) > 0.97


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("d", [7, 32, 72])
def test_every_kernel_finds_the_same(kernel, d):
    keys, learn, test = out_of_distribution(n=900, m=100, d=d, seed=3)
    index = built("qivf:nlist=12", keys, learn, Head(group=3))
    plain = {}
    for name in ("plain", kernel):
        _qivf.force_kernel(name)
        try:
            plain[name] = index.search(test[:99], 20, share=0.8)
        finally:
            _qivf.force_kernel("")
    same = recall(plain[kernel].ids, plain["plain"].ids)
    assert same > 0.999  # sums in another order may swap what lies at a border
    reads = [found.work.keys_read.mean() for found in plain.values()]
    np.testing.assert_allclose(reads[0], reads[-1], rtol=1e-3)


def test_a_query_s_answer_does_not_depend_on_the_others_of_its_group():
    index = built(about=Head(group=4))
    together = index.search(TEST[:40], K, share=0.8)
    alone = np.concatenate([index.search(row[None], K, share=0.8).ids for row in TEST[:40]])
    assert recall(together.ids, alone) > 0.99
    read_alone = np.array([index.search(row[None], K, share=0.8).work.bytes_read[0] for row in TEST[:40]])
    assert together.work.bytes_read.mean() < read_alone.mean()  # codes are read once for the group


def test_the_router_learns_which_lists_hold_a_query_s_neighbours():
    rng = np.random.default_rng(0)
    centroids = np.eye(6, dtype=np.float32)
    assigned = rng.integers(0, 6, 600).astype(np.int32)
    members = [np.flatnonzero(assigned == list_)[:10] for list_ in range(6)]
    # The neighbours of a query near axis j lie in list (j + 1) % 6: no centroid tells.
    axis = rng.integers(0, 6, 400)
    queries = (4 * np.eye(6)[axis] + 0.1 * rng.standard_normal((400, 6))).astype(np.float32)
    neighbors = np.stack([members[(j + 1) % 6] for j in axis]).astype(np.int32)
    router = fit_router(queries, neighbors, assigned, centroids, steps=300, seed=0, threads=1)
    logits = queries @ router.weights.T + router.bias
    assert (logits.argmax(axis=1) == (axis + 1) % 6).mean() > 0.99


def test_later_keys_are_found_at_any_share():
    index = built(keys=KEYS[:1500])
    for start in range(1500, len(KEYS), 64):
        index.insert(KEYS[start : start + 64])
    found = index.search(TEST, K, share=0.0)
    later = np.where(TRUTH >= 1500, TRUTH, -1)
    hits = [
        len(np.intersect1d(a, b[b >= 0])) / max(1, (b >= 0).sum())
        for a, b in zip(found.ids, later, strict=True)
    ]
    assert np.mean(hits) > 0.95
    whole = index.search(TEST, K, share=1.0, rerank=len(KEYS) / K)
    assert recall(whole.ids, exact(TEST, KEYS, K)) > 0.9999


def test_save_and_load_give_the_same_answers_and_take_further_keys(tmp_path):
    index = built(keys=KEYS[:2000])
    index.insert(KEYS[2000:2100])
    index.save(tmp_path / "a")
    for mmap in (True, False):
        again = load(tmp_path / "a", mmap)
        np.testing.assert_array_equal(again.search(TEST, K).ids, index.search(TEST, K).ids)
    for each in (index, again):
        each.insert(KEYS[2100:])
    np.testing.assert_array_equal(again.search(TEST, K).ids, index.search(TEST, K).ids)
    assert index.nbytes.host < 100 * len(KEYS)


@pytest.mark.parametrize(
    "name", ["codes", "steps", "ids", "counts", "centroids", "weights", "bias", "key_map", "query_map"]
)
def test_a_torn_file_is_refused(index, tmp_path, name):
    index.save(tmp_path)
    path = tmp_path / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole QIvf"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ids", lambda a: np.where(a == a[0, 0], a[0, 1], a)),  # one key twice, one never
        ("ids", lambda a: a + 1),
        ("ids", lambda a: a.astype(np.int64)),
        ("counts", lambda a: a + 1),
        ("counts", lambda a: -a),
        ("counts", lambda a: a[1:]),
        ("codes", lambda a: a[1:]),
        ("codes", lambda a: a.astype(np.int16)),
        ("steps", lambda a: a[:, 1:]),
        ("weights", lambda a: np.concatenate([a, a])),
        ("bias", lambda a: a[:, 1:]),
        ("key_map", lambda a: a[1:]),
        ("query_map", lambda a: a[:, 1:]),
    ],
)
def test_inconsistent_files_are_refused(index, tmp_path, name, change):
    index.save(tmp_path)
    np.save(tmp_path / f"{name}.npy", change(np.load(tmp_path / f"{name}.npy")))
    with pytest.raises(ValueError, match="not a whole QIvf"):
        load(tmp_path)


def test_threads_change_nothing(index):
    np.testing.assert_array_equal(built(threads=3).search(TEST, K).ids, index.search(TEST, K).ids)


def test_it_builds_from_keys_alone():
    found = built(learn=None).search(TEST, K, share=1.0)
    assert recall(found.ids, TRUTH) > 0.95


@pytest.mark.parametrize("effort", [{"share": -1.0}, {"rerank": -1.0}])
def test_senseless_efforts_are_refused(index, effort):
    with pytest.raises(ValueError, match="must not be negative"):
        index.search(TEST, K, **effort)
