"""All heads of a layer in one call against one head after another."""

from __future__ import annotations

import numpy as np
import pytest
from ra_bench.indexes._native import _native

from ra_bench.head import Head
from ra_bench.index import Index, Partial
from ra_bench.registry import create

H, G, D, K = 5, 4, 16, 12


def head_rows(h: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of head `h`: heads differ in number and type of their keys."""
    rng = np.random.default_rng(h)
    shape, kind = (300 + 70 * h, D), np.float16 if h % 2 else np.float32
    return rng.standard_normal(shape).astype(kind), rng.standard_normal(shape).astype(kind)


QUERIES = np.random.default_rng(99).standard_normal((H, G, D)).astype(np.float32)


def layer(*specs: str, about: Head | None = None) -> list[Index]:
    indexes = []
    for h in range(H):
        index = create(specs[h % len(specs)])
        index.build(*head_rows(h), QUERIES[h] + np.float32(0.1), about)
        indexes.append(index)
    return indexes


def empty_out() -> Partial:
    return Partial(np.full((H, G, D), np.nan, np.float32), np.full((H, G), np.nan, np.float32), None)


def assert_layer_is_per_head(indexes: list[Index], k: int | None, threads: int, **effort: int) -> None:
    out = empty_out()
    works = type(indexes[0]).attend_layer(indexes, QUERIES, k, out, threads, **effort)
    for h, index in enumerate(indexes):
        output, lse, work = index.attend(QUERIES[h], k, **effort)
        np.testing.assert_array_equal(out.output[h], output)
        np.testing.assert_array_equal(out.lse[h], lse)
        assert vars(works[h]).keys() == vars(work).keys()
        for name, count in vars(work).items():
            np.testing.assert_array_equal(getattr(works[h], name), count, err_msg=name)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("specs", [("flat",), ("ivf", "hnsw@lift"), ("ra",), ("ra", "flat", "random")])
def test_a_layer_is_its_heads(specs, threads):
    assert_layer_is_per_head(layer(*specs), K, threads)


@pytest.mark.parametrize("threads", [1, 2, H])
def test_a_layer_of_routed_lists_is_its_heads(threads):
    indexes = layer("qivf:nlist=6:steps=5", about=Head(group=G))
    for effort in ({}, {"share": 0.5}, {"rerank": 3.0}):
        assert_layer_is_per_head(indexes, K, threads, **effort)
    assert_layer_is_per_head(indexes, None, threads)
    for index in indexes:
        index.fix_effort(share=0.3)
    assert_layer_is_per_head(indexes, K, threads)
    for h, index in enumerate(indexes):
        keys, values = head_rows(h)
        index.insert(keys[:50], values[:50])
    assert_layer_is_per_head(indexes, K, threads)


def test_more_threads_than_heads_divide_a_routed_token():
    indexes = layer("qivf:nlist=6:steps=5")
    whole, divided = empty_out(), empty_out()
    attend_layer = type(indexes[0]).attend_layer
    attend_layer(indexes, QUERIES, K, whole, 1, share=1.0, rerank=50.0)
    works = attend_layer(indexes, QUERIES, K, divided, 4 * H, share=1.0, rerank=50.0)
    np.testing.assert_allclose(divided.output, whole.output, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(divided.lse, whole.lse, rtol=1e-5)
    for index, work in zip(indexes, works, strict=True):
        assert (work.keys_read == len(index.keys)).all()
        assert (work.attended == K).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_effort_reaches_every_head_of_a_graph_layer(threads):
    indexes = layer("ra:degree=8", "ra:degree=6:prune=raw")
    for effort in ({}, {"ef": 3}, {"ef": 40}):
        assert_layer_is_per_head(indexes, K, threads, **effort)
    assert_layer_is_per_head(indexes, 500, threads, ef=500)  # more than some heads have keys
    assert_layer_is_per_head(indexes, None, threads)
    for h, index in enumerate(indexes):
        index.fix_effort(ef=5 + h)
    assert_layer_is_per_head(indexes, K, threads)
    assert_layer_is_per_head(indexes, K, threads, ef=30)


@pytest.mark.parametrize("spec", ["ra", "ra:per_query_head=true"])
def test_a_layer_of_grown_and_split_graphs_is_its_heads(spec):
    indexes = []
    for h in range(H):
        keys, values = head_rows(h)
        index = create(spec)
        index.build(keys[:200], values[:200], QUERIES[h], Head(group=G, query_heads=np.arange(G)))
        index.insert(keys[200:], values[200:])
        indexes.append(index)
    for threads in (1, 3):
        assert_layer_is_per_head(indexes, K, threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_layer_whose_graphs_walk_otherwise_from_head_to_head_is_its_heads(threads):
    indexes = layer("ra", "ra:per_query_head=true", about=Head(group=G, query_heads=np.arange(G)))
    assert_layer_is_per_head(indexes, K, threads)
    shared = layer("ra", about=Head(group=G))
    assert_layer_is_per_head(shared, K, threads, together=2)
    longer = layer("ra", about=Head(group=G + 2))  # no head has a whole token
    for together in (0, 1, 2, 3):
        assert_layer_is_per_head(longer, K, threads, together=together)
    for h, index in enumerate(shared):
        index.fix_effort(together=1 + h % 2)
    assert_layer_is_per_head(shared, K, threads)


@pytest.mark.parametrize("spec", ["flat", "ra", "ivf"])
def test_what_a_layer_read_is_the_same_when_it_is_asked_later(spec):
    indexes = layer(spec)
    expected = [index.attend(QUERIES[h], K).work for h, index in enumerate(indexes)]
    works = type(indexes[0]).attend_layer(indexes, QUERIES, K, empty_out())
    assert len(works) == H
    for h, index in enumerate(indexes):  # what an insertion changes is not asked
        keys, values = head_rows(h)
        index.insert(keys[:50], values[:50])
    for work, before in zip(works, expected, strict=True):
        for name, count in vars(before).items():
            np.testing.assert_array_equal(getattr(work, name), count, err_msg=name)


@pytest.mark.parametrize("spec", ["flat", "ra", "qivf:nlist=6:steps=5"])
def test_what_a_layer_call_cannot_do_is_refused(spec):
    indexes = layer(spec)
    attend_layer = type(indexes[0]).attend_layer
    wrong = empty_out()._replace(output=np.zeros((H, G, D + 1), np.float32))
    with pytest.raises(ValueError, match="output must have the shape of queries"):
        attend_layer(indexes, QUERIES, K, wrong)
    with pytest.raises(ValueError, match="lse must be"):
        attend_layer(indexes, QUERIES, K, empty_out()._replace(lse=np.zeros((G, H), np.float32)))
    with pytest.raises(ValueError, match=r"queries must be \(5, G, d\)"):
        attend_layer(indexes, QUERIES[:4], K, Partial(*(part[:4] for part in empty_out()[:2]), None))
    with pytest.raises(ValueError, match=r"quer(y|ies) must be .*16"):
        attend_layer(
            indexes,
            QUERIES[:, :, :8],
            K,
            Partial(np.zeros((H, G, 8), np.float32), np.zeros((H, G), np.float32), None),
        )
    indexes[3].build(head_rows(3)[0])
    with pytest.raises(ValueError, match="attend needs values"):
        attend_layer(indexes, QUERIES, K, empty_out())


def test_a_layer_of_gathers_takes_other_ids_a_head_and_strides():
    rng = np.random.default_rng(1)
    ids = [rng.integers(-1, 300, (G, 3 + h), dtype=np.int32)[:, :: 1 + h % 2] for h in range(H)]
    keys, values = zip(*map(head_rows, range(H)), strict=True)
    out = empty_out()
    _native.gather_attention_layer(QUERIES, ids, keys, values, out.output, out.lse, 3)
    for h in range(H):
        output, lse = _native.gather_attention(QUERIES[h], ids[h], keys[h], values[h])
        np.testing.assert_array_equal(out.output[h], output)
        np.testing.assert_array_equal(out.lse[h], lse)
    with pytest.raises(ValueError, match="ids must be less than the 300 keys"):
        _native.gather_attention_layer(QUERIES, [i + 300 for i in ids], keys, values, *out[:2])
