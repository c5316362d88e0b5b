"""The neighbour graph that learn queries make of keys, and NSG on it, for the ablation of `ra`."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ra_bench.indexes._graph import PIVOTS, projected_neighbors

from ra_bench.conformance.subject import overlap, true_top
from ra_bench.registry import create


def test_a_key_s_neighbours_are_those_that_queries_find_with_it_most_often_then_the_nearest():
    rng = np.random.default_rng(0)
    n, most = 50, 6
    near = np.stack([rng.permutation(n)[: most + 1] for _ in range(n)])
    found = np.stack([rng.permutation(n)[:25] for _ in range(3)])
    graph = projected_neighbors(near, found)
    for key in range(n):
        together = Counter(int(j) for row in found if key in row[:PIVOTS] for j in row if j != key)
        expected = sorted(together.values(), reverse=True)[:most]
        rest = [int(j) for j in near[key] if j != key and j not in together]
        others = graph[key].tolist()
        assert [together[j] for j in others[: len(expected)]] == expected
        assert others[len(expected) :] == rest[: most - len(expected)]
        assert len(set(others)) == most


def test_nsg_on_a_projected_graph_finds_what_it_finds_on_its_own():
    rng = np.random.default_rng(1)
    keys = rng.normal(0.5, 1.0, (3000, 32)).astype(np.float32)
    learn, queries = rng.normal(-0.2, 1.0, (2, 600, 32)).astype(np.float32)
    truth = true_top(keys, queries[:40], 10)
    for spec in ("nsg@lift", "nsg:learn_queries=600:learn_neighbors=50@lift"):
        index = create(spec)
        index.build(keys, keys, learn)
        assert overlap(truth, index.search(queries[:40], 10, ef=400).ids) > 0.9
