"""How queries walk a graph of `ra`, alone and together, beside a slow walk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ra_bench.indexes._native._native import dot_rows, kernels
from ra_bench.indexes.ra import _ra

sys.path.append(str(Path(__file__).parent))
from ra_graphs import KEYS, LEARN, TEST, TRUTH, built, exact, recall

from ra_bench.head import Head
from ra_bench.registry import create


@pytest.fixture(scope="module")
def index():
    return built(keys=KEYS, learn=LEARN)


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
        for i, (best, by_row) in enumerate(answers):
            row = first + i
            np.testing.assert_array_equal(found.ids[row], best)
            assert found.work.keys_read[row] == len(read)
            assert found.work.exact[row] == len(by_row)
        rows = slice(first, first + len(queries))
        row_bytes = 2 * KEYS.shape[1]
        own = sum(len(by_row) for _, by_row in answers) * row_bytes if graph.code_bytes else 0
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


def test_an_ef_of_n_reads_every_key_once(index):
    work = index.search(TEST[:5], 10, ef=len(KEYS)).work
    assert (work.keys_read == len(KEYS)).all()


@pytest.mark.parametrize("spec", ["ra", "ra:codes=false"])
def test_no_results_can_be_asked_for(spec):
    index = built(spec, KEYS, LEARN, values=KEYS)
    assert index.search(TEST[:9], 0, ef=5).ids.shape == (9, 0)
    assert (index.attend(TEST[:3], 0).output == 0).all()


def test_the_sweep_goes_from_cheap_to_dear():
    efforts = [effort["ef"] for effort in create("ra").effort_sweep(10**5, 100)]
    assert efforts == sorted(efforts)
    assert 8 <= len(efforts) <= 12
    assert create("ra").effort_sweep(30, 100) == [{"ef": 30}]
    longer = create("ra").effort_sweep(4 * 10**6, 100)
    assert len(longer) > len(efforts)
    assert longer[-1] == {"ef": 6000}
