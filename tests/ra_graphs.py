"""Keys, queries of another cone than theirs, and graphs of `ra` over them: what the tests of `ra` share."""

from __future__ import annotations

import numpy as np

from ra_bench.registry import create


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
