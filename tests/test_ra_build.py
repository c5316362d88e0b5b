"""How `ra` builds its graph, beside a slow pruning rule."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ra_bench.indexes._native._native import kernels
from ra_bench.indexes.ra import _ra

sys.path.append(str(Path(__file__).parent))
from ra_graphs import KEYS, LEARN, TEST, TRUTH, built, exact, recall

from ra_bench.head import Head
from ra_bench.registry import create
from ra_bench.truth import nearest_keys


@pytest.fixture(scope="module")
def index():
    return built(keys=KEYS, learn=LEARN)


def slow_prune(keys, node, ids, radius, most, fill):
    """The occlusion rule by its definition, on lifted float64 vectors and distances."""
    rows = keys.astype(np.float64)
    if radius:
        rows = np.column_stack([rows, np.sqrt(np.maximum(0, radius**2 - (rows**2).sum(1)))])
    near = (lambda a, b: -((rows[a] - rows[b]) ** 2).sum()) if radius else (lambda a, b: rows[a] @ rows[b])
    kept, skipped = [], []
    for c in sorted({int(i) for i in ids} - {node}, key=lambda c: -near(c, node)):
        (skipped if any(near(c, r) > near(c, node) for r in kept) else kept).append(c)
    kept = kept[:most]
    return (kept + skipped)[:most] if fill and len(kept) < most else kept


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("lifted", [False, True])
def test_pruning_follows_the_rule(lifted, fill):
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((60, 5)).astype(np.float32) * rng.uniform(0.5, 2, (60, 1)).astype(np.float32)
    radius = float(np.linalg.norm(keys, axis=1).max() * 1.05) if lifted else 0.0
    for node in range(20):
        ids = rng.choice(60, 40, replace=False).tolist()
        expected = slow_prune(keys, node, ids, radius, 30, fill)
        assert _ra.prune(keys, node, ids, radius=radius, most=30, fill=fill) == expected


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("d", [5, 64, 130])
def test_pruning_by_rounded_keys_follows_the_rule_on_them(d, fill):
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((60, d)).astype(np.float32) * rng.uniform(0.5, 2, (60, 1)).astype(np.float32)
    radius = float(np.linalg.norm(keys, axis=1).max() * 1.05)
    extra = np.sqrt(radius**2 - (keys.astype(np.float64) ** 2).sum(1))
    steps = np.abs(keys).max(1, keepdims=True) / 127
    rounded = np.column_stack([np.floor(keys / steps + 0.5) * steps, extra])
    for node in range(20):
        ids = rng.choice(60, 40, replace=False).tolist()
        expected = slow_prune(rounded, node, ids, 0.0, 30, fill)
        assert _ra.prune(keys, node, ids, radius=radius, most=30, fill=fill, rounded=True) == expected


@pytest.mark.parametrize("width", [64, 128, 192])
@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_multiplies_bytes_exactly(width, kernel):
    rng = np.random.default_rng(width)
    rows = rng.integers(0, 256, (50, width)).astype(np.uint8)
    rows[0], rows[1], rows[2] = 0, 255, 1
    signed = rows.astype(np.int64) - 128
    _ra.force_kernel(kernel)
    try:
        for by in range(5):
            for count in (1, 2, 7, 8, 9, 15, 16, 17, 50):
                ids = rng.integers(0, 50, (1, count)).astype(np.int32)
                ids[0, 0] = by
                np.testing.assert_array_equal(_ra.dot_bytes(rows, by, ids), signed[ids[0]] @ signed[by])
    finally:
        _ra.force_kernel("")


def test_a_key_is_offered_those_that_its_queries_name_most():
    rng = np.random.default_rng(8)
    n, m, width, candidates, pivots = 300, 60, 40, 25, 5
    keys, learn = (
        rng.standard_normal((n, 16)).astype(np.float16),
        rng.standard_normal((m, 16)).astype(np.float32),
    )
    neighbors = exact(learn, keys, width).astype(np.int32)
    about = Head(group=1, query_neighbors=neighbors)
    index = create(
        f"ra:beam=0:pivots={pivots}:candidates={candidates}:learn_neighbors={width}:degree={n}:query_degree={n}"
    )
    index.build(keys, None, learn, about)
    links = np.zeros((n, n), bool)
    for key in range(n):
        named = np.bincount(neighbors[(neighbors[:, :pivots] == key).any(1)].ravel(), minlength=n)
        named[key] = 0
        most = np.argsort(-named, kind="stable")[:candidates]  # the smaller id among equals
        links[key, most[named[most] > 0]] = True
    links |= links.T
    for key in range(n):
        row = index._graphs[0].links[key]
        kept = int(index._graphs[0].kept[key, 0])
        assert set(row[:kept].tolist()) == set(np.flatnonzero(links[key]).tolist())


def test_every_key_is_reached(index):
    assert index._graphs[0].unreached == 0
    links = index._graphs[0].links
    assert not (links == np.arange(len(links))[:, None]).any()  # none to itself
    for row in links:
        real = row[row >= 0]
        assert len(np.unique(real)) == len(real)
        assert (row[len(real) :] == -1).all()


def test_two_far_islands_are_joined():
    rng = np.random.default_rng(0)
    island = rng.standard_normal((200, 8)).astype(np.float32)
    keys = np.concatenate([island + 50, island - 50])
    index = built("ra:degree=4:query_degree=4:beam=0", keys, keys[:100])  # learn queries name one island only
    assert index._graphs[0].unreached == 0
    ids = index.search(keys[:3], 400, ef=400).ids
    assert all(len(np.unique(row)) == 400 for row in ids)


def test_threads_change_nothing_with_given_neighbours_of_keys():
    one, many = (built("ra:key_neighbors=16", KEYS, LEARN, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one._graphs[0].links, many._graphs[0].links)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(index, threads):
    other = built(keys=KEYS, learn=LEARN, threads=threads)
    for name in ("links", "kept", "centroids", "seeds", "sample", "codes"):
        np.testing.assert_array_equal(getattr(index._graphs[0], name), getattr(other._graphs[0], name))
    one, many = index.search(TEST, 50), other.search(TEST, 50)
    np.testing.assert_array_equal(one.ids, many.ids)
    np.testing.assert_array_equal(one.work.keys_read, many.work.keys_read)
    block = KEYS[:300] + np.float16(0.01)
    grown = [built(keys=KEYS, learn=LEARN, threads=t) for t in (1, threads)]
    for each in grown:
        each.insert(block)
    np.testing.assert_array_equal(grown[0]._graphs[0].links, grown[1]._graphs[0].links)


def test_exact_nearest_keys_serve_as_a_search_does(index):
    exact_links = built("ra:key_neighbors=32", KEYS, LEARN)
    assert exact_links._graphs[0].unreached == 0
    read = [i.search(TEST, 50, ef=60) for i in (index, exact_links)]
    assert recall(read[1].ids, TRUTH) > recall(read[0].ids, TRUTH) - 0.01
    assert read[1].work.keys_read.mean() < 1.1 * read[0].work.keys_read.mean()


def test_given_nearest_keys_are_used():
    given = nearest_keys(KEYS, 40)
    alone = built("ra:key_neighbors=32", KEYS, LEARN)
    helped = built("ra:key_neighbors=32", KEYS, LEARN, Head(key_neighbors=given))
    np.testing.assert_array_equal(alone._graphs[0].links, helped._graphs[0].links)
    far = built("ra:key_neighbors=32", KEYS, LEARN, Head(key_neighbors=np.roll(given, 700, axis=0)))
    assert (far._graphs[0].links != alone._graphs[0].links).any()
    with pytest.raises(ValueError, match="key_neighbors must hold ids"):
        built("ra:key_neighbors=32", KEYS, LEARN, Head(key_neighbors=given + len(KEYS)))


def test_given_neighbours_are_used():
    truth = exact(LEARN, KEYS, 100).astype(np.int32)
    index = built("ra:learn_neighbors=50", KEYS, LEARN, Head(query_neighbors=truth))
    other = built("ra:learn_neighbors=50", KEYS, LEARN, Head(query_neighbors=truth[:, :40]))  # too narrow
    assert recall(index.search(TEST, 50, ef=200).ids, other.search(TEST, 50, ef=200).ids) > 0.97
    with pytest.raises(ValueError, match="neighbors must hold ids"):
        built("ra:learn_neighbors=50", KEYS, LEARN, Head(query_neighbors=truth + len(KEYS)))


def test_with_keys_as_the_learn_set_queries_change_nothing():
    alone, given = built("ra", KEYS), built("ra:learn=keys", KEYS, LEARN)
    assert np.array_equal(alone.search(TEST, 50).ids, given.search(TEST, 50).ids)
