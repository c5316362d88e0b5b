"""RetrievalAttention's graph against exact search, a slow pruning rule, and what can go wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ra_bench.indexes._native._native import dot_rows, kernels
from ra_bench.indexes.ra import _ra

from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.registry import create, load
from ra_bench.truth import nearest_keys


def out_of_distribution(n=2200, m=400, d=32, seed=0):
    """Keys, learn queries and test queries; queries lie in another cone of the space than keys do."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) / np.sqrt(d)
    centre = 2 * rng.standard_normal(d)
    keys = (rng.standard_normal((n, d)) @ mix + rng.standard_normal(d)).astype(np.float16)
    queries = (0.5 * rng.standard_normal((2 * m, 8)) @ rng.standard_normal((8, d)) + centre).astype(
        np.float32
    )
    return keys, queries[:m], queries[m:]


def exact(queries, keys, k):
    scores = queries @ keys.astype(np.float32).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(ids, truth):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, truth, strict=True)])


def built(spec="ra", keys=None, learn=None, about=None, threads=1, values=None):
    index = create(spec, threads=threads)
    index.build(keys, values, learn, about)
    return index


KEYS, LEARN, TEST = out_of_distribution()
TRUTH = exact(TEST, KEYS, 50)


@pytest.fixture(scope="module")
def index():
    return built(keys=KEYS, learn=LEARN)


def test_recall_grows_with_ef_to_one(index):
    found = [recall(index.search(TEST, 50, ef=ef).ids, TRUTH) for ef in (50, 200, len(KEYS))]
    assert found[0] > 0.8
    assert found[1] > 0.97
    assert found[2] > 0.9999  # float16 ties may fall either way


@pytest.mark.parametrize("kernel", ["plain", ""])
def test_float32_keys_and_every_kernel_do(kernel):
    _ra.force_kernel(kernel)
    try:
        index = built(keys=KEYS.astype(np.float32), learn=LEARN)
        assert recall(index.search(TEST, 50, ef=200).ids, TRUTH) > 0.97
    finally:
        _ra.force_kernel("")


@pytest.mark.parametrize(
    "spec",
    [
        "ra:key_neighbors=16",
        "ra:prune=lifted",
        "ra:prune=raw",
        "ra:beam=0",
        "ra:pivots=1",
        "ra:query_degree=0",
        "ra:centroids=0",
    ],
)
def test_every_part_can_be_left_out(spec):
    index = built(spec, KEYS, LEARN)
    assert index._graphs[0].unreached == 0
    assert recall(index.search(TEST, 50, ef=len(KEYS)).ids, TRUTH) > 0.9999


def test_it_builds_from_keys_alone():
    index = built(keys=KEYS)
    assert (
        recall(
            index.search(KEYS[:50].astype(np.float32), 10, ef=100).ids,
            exact(KEYS[:50].astype(np.float32), KEYS, 10),
        )
        > 0.9
    )


def test_with_keys_as_the_learn_set_queries_change_nothing():
    alone, given = built("ra", KEYS), built("ra:learn=keys", KEYS, LEARN)
    assert np.array_equal(alone.search(TEST, 50).ids, given.search(TEST, 50).ids)


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


def slow_scores(graph, query, keys):
    """What a walk takes for the score of each key: its code's, or without codes its own."""
    codes, stride = graph.codes, graph.code_bytes
    if not stride:
        return dot_rows(query, keys, np.arange(len(keys), dtype=np.int32))
    chunks = codes.reshape(len(codes), -1, 32)
    levels = np.concatenate([chunks & 15, chunks >> 4], axis=2).reshape(len(codes), -1).astype(np.int64)
    places = [i for i in range(2 * stride) if i not in (2 * stride - 33, 2 * stride - 1)][
        : len(graph.to_query)
    ]
    turned = dot_rows(query, graph.to_query, np.arange(len(graph.to_query), dtype=np.int32))
    rounded = np.rint(turned * (np.float32(127) / np.abs(turned).max())).astype(np.int64)
    sums = (levels[:, places] @ rounded).astype(np.float32)
    return graph.steps[0, codes[:, -1]] * (sums - np.float32(7.5) * np.float32(rounded.sum()))


class SlowQueue:
    """The queue of one query with Python lists: buckets of equal width hold the scores.

    A key is kept, or expanded, if fewer than the most that are kept, or ef, lie in buckets above its own; of
    a bucket the last one that came is expanded first.
    """

    def __init__(self, scores, starts, ef, best):
        self.scores, self.ef, self.best = scores, ef, best
        first = scores[starts]
        spread = max(np.float32(first.max() - first.min()), np.float32(1e-6 + 1e-6 * abs(first.max())))
        self.low, self.per_unit = first.min() - 2 * spread, np.float32(1024) / (5 * spread)
        self.held, self.waiting = [], {}  # waiting: when it came, by key
        self.counts = np.zeros(1024, int)  # of those held, by bucket
        self.push(starts)

    def bucket(self, i):
        return int(np.clip((self.scores[i] - self.low) * self.per_unit, 0, 1023))

    def above(self, i):
        return self.counts[self.bucket(i) + 1 :].sum()

    def push(self, ids):
        for i in [i for i in ids if self.above(i) < max(self.ef, self.best)]:
            self.counts[self.bucket(i)] += 1
            self.waiting[i] = len(self.held)
            self.held.append(i)

    def pop(self):
        if not self.waiting:
            return None
        likeliest = max(self.waiting, key=lambda i: (self.bucket(i), self.waiting[i]))
        if self.above(likeliest) >= self.ef:
            return None
        del self.waiting[likeliest]
        return likeliest


def slow_walk(graph, keys, queries, k, ef):
    """The walk of queries together: keys read, how many were expanded, and of each the best k and the exact.

    At a time each query has eight keys expanded that no other had, five where there are several queries.
    """
    starts = [int(i) for q in queries for i in (graph.entry, *graph.seeds[np.argmax(graph.centroids @ q)])]
    read = list(dict.fromkeys(i for i in starts if i >= 0))
    best = min(len(keys), max(2 * k + 64, ef // 4)) if graph.code_bytes else k
    queues = [SlowQueue(slow_scores(graph, query, keys), read, ef, best) for query in queries]
    own, expanded = max(5, 8 // len(queries)), set()
    while True:
        together = []
        for queue in queues:
            mine = 0
            while mine < own and (key := queue.pop()) is not None:
                if key not in expanded:
                    expanded.add(key)
                    together.append(key)
                    mine += 1
        if not together:
            break
        seen = set(read)
        fresh = [j for j in dict.fromkeys(graph.links[together].ravel().tolist()) if j >= 0 and j not in seen]
        read += fresh
        for queue in queues:
            queue.push(fresh)
    answers = []
    for query, queue in zip(queries, queues, strict=True):
        exact = [i for i in queue.held if queue.above(i) < best] if graph.code_bytes else read
        true = dot_rows(query, keys, np.arange(len(keys), dtype=np.int32))
        found = exact if graph.code_bytes else queue.held
        answers.append((sorted(found, key=lambda i: (-true[i], i))[:k], exact))
    return read, expanded, answers


@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize("spec", ["ra", "ra:codes=false"])
@pytest.mark.parametrize(("k", "ef"), [(10, 10), (10, 40), (40, 10), (3, 300)])
def test_finds_and_counters_are_those_of_a_slow_walk(spec, group, k, ef):
    index = built(spec, KEYS, LEARN, Head(group=group))
    graph = index._graphs[0]
    found = index.search(TEST[:8], k, ef=ef)
    for first in range(0, 8, group):
        queries = TEST[first : min(first + group, 8)]
        read, expanded, answers = slow_walk(graph, KEYS, queries, k, ef)
        for i, (best, exact) in enumerate(answers):
            row = first + i
            np.testing.assert_array_equal(found.ids[row], best)
            assert found.work.keys_read[row] == len(read)
            assert found.work.exact[row] == len(exact)
        rows = slice(first, first + len(queries))
        row_bytes = 2 * KEYS.shape[1]
        own = sum(len(exact) for _, exact in answers) * row_bytes if graph.code_bytes else 0
        shared = len(read) * (graph.code_bytes or row_bytes) + len(expanded) * 4 * index.degree
        starts = len(queries) * graph.start_bytes
        assert found.work.bytes_read[rows].sum() == own + shared + starts


@pytest.mark.parametrize("d", [1, 3, 32, 62, 63, 64, 80, 128, 200])
def test_codes_tell_inner_products_within_a_few_percent(d):
    rng = np.random.default_rng(d)
    mixing = rng.standard_normal((d, d)) * np.geomspace(1, 0.1, d)
    keys = (rng.standard_normal((600, d)) @ mixing + 3).astype(np.float32)
    queries = rng.standard_normal((300, d)).astype(np.float32) * np.geomspace(0.2, 1, d, dtype=np.float32)
    graph = built(keys=keys, learn=queries)._graphs[0]
    scores = np.array([slow_scores(graph, query, keys) for query in queries])
    for score, true in zip(scores, queries @ keys.T, strict=True):
        factor, addend = np.polyfit(score, true, 1)
        assert np.std(factor * score + addend - true) < 0.12 * np.std(true)


@pytest.mark.parametrize("stride", [32, 64, 96, 128])
@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_scores_codes_exactly(stride, kernel):
    rng = np.random.default_rng(stride)
    codes = rng.integers(0, 256, (50, stride)).astype(np.uint8)
    steps = np.geomspace(0.01, 7, 256).astype(np.float32)[None]
    levels = rng.integers(-127, 128, (8, 2 * stride)).astype(np.int32)
    middles = np.linspace(-9, 31.5, 8, dtype=np.float32)[None]
    chunks = codes.reshape(50, -1, 32)
    spread = np.concatenate([chunks & 15, chunks >> 4], axis=2).reshape(50, -1).astype(np.int64)
    sums = (levels.astype(np.int64) @ spread.T).astype(np.float32)
    expected = steps[0, codes[:, -1]] * (sums - middles.T)
    _ra.force_kernel(kernel)
    try:
        for count in (1, 2, 7, 8, 9, 15, 16, 17, 50):
            ids = rng.integers(0, 50, (1, count)).astype(np.int32)
            for queries in (1, 2, 7, 8):
                found = _ra.score_codes(codes, steps, levels[:queries], middles[:, :queries], ids)
                np.testing.assert_array_equal(found, expected[:queries, ids[0]])
    finally:
        _ra.force_kernel("")


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


@pytest.mark.parametrize("kernel", kernels())
def test_a_walk_keeps_the_keys_not_below_a_score_in_their_order(kernel):
    rng = np.random.default_rng(0)
    _ra.force_kernel(kernel)
    try:
        for count in range(1, 50):
            ids = rng.permutation(1000)[None, :count].astype(np.int32)
            scores = rng.standard_normal((1, count)).astype(np.float32)
            scores[0, rng.integers(count)] = rng.choice([np.nan, np.inf, -np.inf, 0.25])
            for least in (-np.inf, -0.5, 0.25, 9.0):
                assert _ra.keep_good(ids, scores, least) == ids[~(scores < least)].tolist()
    finally:
        _ra.force_kernel("")


@pytest.mark.parametrize(
    ("group", "together", "parts"),
    [(1, 0, 1), (4, 0, 4), (4, 1, 1), (4, 3, 2), (8, 0, 8), (12, 0, 6), (20, 0, 7)],
)
def test_a_token_s_answer_depends_on_its_own_rows_only(index, group, together, parts):
    """And of those on the ones that walk together: at most eight, as equal parts of the token as can be."""
    index = built(keys=KEYS, learn=LEARN, about=Head(group=group), threads=3)
    whole = index.search(TEST[:50], 10, ef=20, together=together)
    for token in range(0, 50, group):
        for first in range(token, min(token + group, 50), parts):
            rows = slice(first, min(first + parts, token + group, 50))
            alone = index.search(TEST[rows], 10, ef=20, together=together)
            np.testing.assert_array_equal(alone.ids, whole.ids[rows])
            np.testing.assert_array_equal(alone.work.keys_read, whole.work.keys_read[rows])


def test_queries_find_more_together_and_read_fewer_bytes():
    index = built(keys=KEYS, learn=LEARN, about=Head(group=4))
    alone, shared = (index.search(TEST, 50, ef=60, together=together) for together in (1, 0))
    assert recall(shared.ids, TRUTH) > recall(alone.ids, TRUTH)
    assert shared.work.bytes_read.mean() < alone.work.bytes_read.mean()


def test_a_walk_s_memory_fits_the_graph_that_comes_after():
    rng = np.random.default_rng(5)
    shapes = [(3, 5, 3), (700, 200, 24), (40, 16, 2), (900, 16, 40), (300, 70, 6), (700, 200, 24)]
    graphs = []
    for n, d, degree in shapes:
        keys = rng.standard_normal((n, d)).astype(np.float32)
        queries = rng.standard_normal((8, d)).astype(np.float32)
        for codes in ("true", "false"):
            index = built(f"ra:degree={degree}:query_degree={degree}:codes={codes}", keys, queries)
            graphs.append((index, queries, exact(queries, keys, 20)))
    for index, queries, truth in [*graphs, *reversed(graphs)]:
        for k, ef in ((200, 1), (20, len(index.keys)), (1, 30)):
            ids = index.search(queries, k, ef=ef).ids
            for row in ids:
                real = row[row >= 0]
                assert len(np.unique(real)) == len(real)
                assert (real < len(index.keys)).all()
            if k == 20:
                np.testing.assert_array_equal(ids[:, : truth.shape[1]], truth)


@pytest.mark.parametrize("spec", ["ra", "ra:codes=false"])
def test_no_results_can_be_asked_for(spec):
    index = built(spec, KEYS, LEARN, values=KEYS)
    assert index.search(TEST[:9], 0, ef=5).ids.shape == (9, 0)
    assert (index.attend(TEST[:3], 0).output == 0).all()


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_graph_s_codes_begin_on_cache_lines(index, tmp_path, mmap):
    index.save(tmp_path)
    assert type(index).load(tmp_path, mmap)._graphs[0].is_aligned


def test_a_graph_without_codes_of_an_earlier_version_is_refused_with_advice(index, tmp_path):
    index.save(tmp_path)
    (tmp_path / "graph0_codes.npy").unlink()
    about = json.loads((tmp_path / "index.json").read_text())
    del about["files"]["graph0_codes.npy"]
    (tmp_path / "index.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="build it anew"):
        load(tmp_path)


def test_an_ef_of_n_reads_every_key_once(index):
    work = index.search(TEST[:5], 10, ef=len(KEYS)).work
    assert (work.keys_read == len(KEYS)).all()


def test_inserted_keys_are_found_and_connected():
    index = built("ra", KEYS[:1600], LEARN, values=KEYS[:1600])
    for begin in range(1600, 2200, 100):
        index.insert(KEYS[begin : begin + 100], KEYS[begin : begin + 100])
    assert index._graphs[0].unreached == 0
    assert recall(index.search(TEST, 50, ef=200).ids, TRUTH) > 0.95
    own = index.search(4 * (KEYS[2000:2100] - KEYS.mean(axis=0)).astype(np.float32), 50, ef=300).ids
    assert np.mean([2000 + i in row for i, row in enumerate(own)]) > 0.9
    assert index.attend(TEST[:4], 10).output.shape == (4, 32)


def test_a_far_longer_key_can_be_inserted():
    index = built(keys=KEYS, learn=LEARN)
    index.insert(100 * np.abs(KEYS[:1]))
    query = np.abs(KEYS[:1]).astype(np.float32)
    assert index.search(query, 1, ef=200).ids[0, 0] == len(KEYS)


def test_save_and_load_give_the_same_answers(index, tmp_path):
    index.save(tmp_path / "a")
    for mmap in (True, False):
        again = type(index).load(tmp_path / "a", mmap)
        np.testing.assert_array_equal(again.search(TEST, 50).ids, index.search(TEST, 50).ids)
    loaded = load(tmp_path / "a")
    copy = built(keys=KEYS, learn=LEARN)
    for each in (loaded, copy):
        each.insert(KEYS[:200] + np.float16(0.01))
    np.testing.assert_array_equal(loaded._graphs[0].links, copy._graphs[0].links)
    loaded.save(tmp_path / "b")


@pytest.mark.parametrize(
    "name",
    [
        "graph0_links",
        "graph0_kept",
        "graph0_centroids",
        "graph0_seeds",
        "graph0_sample",
        "graph0_codes",
        "graphs",
    ],
)
def test_a_torn_file_is_refused(index, tmp_path, name):
    index.save(tmp_path)
    path = tmp_path / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole Ra"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="not a whole Ra"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("graph0_links", lambda a: np.where(a == a[0, 0], len(KEYS), a)),
        ("graph0_links", lambda a: a - 2),
        ("graph0_links", lambda a: a.astype(np.int64)),
        ("graph0_links", lambda a: a[:-1]),
        ("graph0_kept", lambda a: a + 100),
        ("graph0_kept", lambda a: a[:-1]),
        ("graph0_seeds", lambda a: a + len(KEYS)),
        ("graph0_seeds", lambda a: a * 0),
        ("graph0_seeds", lambda a: a[1:]),
        ("graph0_centroids", lambda a: a[:, 1:]),
        ("graph0_sample", lambda a: a[:, 1:]),
        ("graph0_sample", lambda a: a.astype(np.float32)),
        ("graph0_sample_ids", lambda a: a[1:]),
        ("graph0_codes", lambda a: a[1:]),
        ("graph0_codes", lambda a: a.astype(np.int32)),
        ("graph0_steps", lambda a: -a),
        ("graph0_to_key", lambda a: a[1:]),
        ("graph0_to_query", lambda a: a[:, 1:]),
        ("graph0_offset", lambda a: a.T),
        ("graphs", lambda a: a + len(KEYS)),
        ("graphs", lambda a: a.ravel()),
    ],
)
def test_inconsistent_files_are_refused(index, tmp_path, name, change):
    index.save(tmp_path)
    np.save(tmp_path / f"{name}.npy", change(np.load(tmp_path / f"{name}.npy")))
    with pytest.raises(ValueError, match="not a whole Ra"):
        load(tmp_path)


def test_a_graph_for_each_query_head_finds_no_less():
    heads = np.arange(len(LEARN)) % 4
    about = Head(group=4, query_heads=heads + 8)
    shift = np.eye(4, 32, dtype=np.float32)[np.arange(len(TEST)) % 4] * 3
    index = built("ra:per_query_head=true", KEYS, LEARN + shift, about)
    assert len(index._graphs) == 4
    assert recall(index.search(TEST + shift, 50, ef=200).ids, exact(TEST + shift, KEYS, 50)) > 0.95
    assert index.nbytes.host > 3 * built("ra", KEYS, LEARN, about).nbytes.host
    index.insert(KEYS[:100])
    assert len(index.search(TEST, 50).ids) == len(TEST)


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


@pytest.mark.parametrize("n", [1, 2, 3, 17])
@pytest.mark.parametrize("d", [1, 7])
@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("prune", ["balanced", "lifted", "raw"])
def test_tiny_sets_give_every_key_once(n, d, prune, group):
    rng = np.random.default_rng(n)
    keys = rng.standard_normal((n, d)).astype(np.float16)
    queries = rng.standard_normal((5, d)).astype(np.float32)
    for learn in (None, queries[:0], queries):
        index = built(f"ra:prune={prune}", keys, learn, Head(group=group))
        ids = index.search(queries, 30).ids
        assert ids.dtype == np.int32
        assert (np.sort(ids[:, :n], axis=1) == np.arange(n)).all()
        assert (ids[:, n:] == -1).all()
        index.insert(keys)
        assert (np.sort(index.search(queries, 2 * n).ids, axis=1) == np.arange(2 * n)).all()


@pytest.mark.parametrize("value", [0, 1])
def test_equal_keys_are_all_found(value):
    keys = np.full((500, 8), value, np.float16)
    index = built("ra", keys, LEARN[:20, :8].copy())
    ids = index.search(LEARN[:3, :8], 500, ef=500).ids
    assert (np.sort(ids, axis=1) == np.arange(500)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    keys = KEYS[:50].copy()
    keys[3, 3] = bad
    learn = LEARN[:50].copy()
    learn[3, 3] = bad
    with pytest.raises(ValueError, match="keys must be finite"):
        built(keys=keys, learn=LEARN)
    with pytest.raises(ValueError, match="queries must be finite"):
        built(keys=KEYS, learn=learn)
    index = built(keys=KEYS[:50], learn=LEARN[:50])
    with pytest.raises(ValueError, match="keys to insert must be finite"):
        index.insert(keys)
    with pytest.raises(ValueError, match="keys to insert must be finite"):
        index.insert(np.full((1, 32), 1e6, np.float32))  # float16 cannot hold it
    assert len(index.keys) == 50


@pytest.mark.parametrize("setting", ["degree=0", "pivots=0", "beam=-1", "learn_neighbors=0"])
def test_senseless_settings_are_refused(setting):
    with pytest.raises(UsageError, match=setting.split("=")[0]):
        create(f"ra:{setting}")


def test_the_sweep_goes_from_cheap_to_dear():
    efforts = [effort["ef"] for effort in create("ra").effort_sweep(10**5, 100)]
    assert efforts == sorted(efforts)
    assert 8 <= len(efforts) <= 12
    assert create("ra").effort_sweep(30, 100) == [{"ef": 30}]
    longer = create("ra").effort_sweep(4 * 10**6, 100)
    assert len(longer) > len(efforts)
    assert longer[-1] == {"ef": 6000}
