"""The lift keeps the order of inner products; what it costs is stated where it can cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra_bench.conformance.subject import overlap, true_top
from ra_bench.registry import create
from ra_bench.transform import LIFT_HEADROOM, Lift, Normalize

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 12), st.floats(0.01, 100.0), st.integers(0, 2**32 - 1))


def spread_keys(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Keys whose norms are spread as log-normal: what breaks a graph under raw inner product."""
    rng = np.random.default_rng(seed)
    return (rng.lognormal(0.0, 0.5, (n, 1)) * rng.standard_normal((n, d))).astype(np.float32)


def lifted(keys: np.ndarray) -> tuple[Lift, np.ndarray]:
    lift = Lift()
    lift.fit(keys)
    return lift, lift.keys(keys)


@given(SHAPES)
@settings(max_examples=100, deadline=None)
def test_lift_keeps_inner_products_up_to_a_factor(shape):
    n, d, scale, seed = shape
    rng = np.random.default_rng(seed)
    keys = (scale * rng.standard_normal((n, d))).astype(np.float32)
    queries = rng.standard_normal((5, d)).astype(np.float32)
    lift, rows = lifted(keys)
    products = lift.queries(queries).astype(np.float64) @ rows.T * lift.c
    exact = queries.astype(np.float64) @ keys.T
    np.testing.assert_allclose(products, exact, rtol=1e-5, atol=1e-5 * lift.c)


@given(SHAPES)
@settings(max_examples=100, deadline=None)
def test_lifted_keys_are_unit_vectors(shape):
    n, d, scale, seed = shape
    keys = (scale * np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32)
    lift, rows = lifted(keys)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert lift.clamped == 0


def test_lift_keeps_the_order_exactly():
    keys, queries = spread_keys(2000, 32), spread_keys(50, 32, seed=1)
    lift, rows = lifted(keys)
    assert np.array_equal(true_top(keys, queries, 100), true_top(rows, lift.queries(queries), 100))


def test_lift_takes_float16_keys_and_gives_float32():
    keys = spread_keys(10, 8).astype(np.float16)
    lift, rows = lifted(keys)
    assert rows.dtype == np.float32
    assert rows.shape == (10, 9)
    assert lift.queries(np.zeros((2, 8), np.float32)).shape == (2, 9)


def test_headroom_lets_longer_keys_in():
    keys = spread_keys(100, 8)
    lift, _ = lifted(keys)
    longest = keys[[np.argmax(np.linalg.norm(keys, axis=1))]]
    lift.keys(longest * (LIFT_HEADROOM - 0.001))
    assert lift.clamped == 0
    row = lift.keys(np.vstack([longest * 2, longest * 0.5]))
    assert lift.clamped == 1
    np.testing.assert_allclose(np.linalg.norm(row, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(row[0, :-1] * lift.c, longest[0] * lift.c / np.linalg.norm(longest), rtol=1e-5)


def test_zero_keys_lift_to_the_pole():
    lift, rows = lifted(np.zeros((3, 4), np.float32))
    assert np.array_equal(rows, [[0, 0, 0, 0, 1]] * 3)
    assert lift.clamped == 0


def test_input_of_a_transform_is_not_written_to():
    keys = spread_keys(20, 4)
    before = keys.copy()
    for transform in (Lift(), Normalize()):
        transform.fit(keys)
        transform.keys(keys)
        transform.queries(keys)
    assert np.array_equal(keys, before)


def test_normalize_makes_unit_rows_and_changes_the_order():
    keys, queries = spread_keys(500, 16), spread_keys(20, 16, seed=1)
    rows = Normalize().keys(keys)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert overlap(true_top(keys, queries, 10), true_top(rows, queries, 10)) < 0.9
    assert np.array_equal(Normalize().keys(np.zeros((1, 3), np.float16)), [[0, 0, 0]])


def attention_like(n: int, seed: int, spread: float, off_center: float) -> np.ndarray:
    """Rows in clusters with norms spread as log-normal; keys of attention have a mean that queries lack."""
    shape, rng = np.random.default_rng(5), np.random.default_rng(seed)
    mean, centers = shape.standard_normal(24), shape.standard_normal((50, 24))
    rows = centers[rng.integers(50, size=n)] + 0.6 * rng.standard_normal((n, 24))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) + off_center * mean / np.linalg.norm(mean)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rng.lognormal(0.0, spread, (n, 1)) * rows).astype(np.float32)


def test_lifted_hnsw_beats_raw_hnsw_on_keys_of_spread_norms():
    keys, queries = attention_like(4000, 0, 0.5, 1.0), attention_like(100, 1, 0.0, 0.0)
    truth = true_top(keys, queries, 10)
    recall = {}
    for spec in ("hnsw", "hnsw@lift"):
        index = create(spec)
        index.build(keys)
        recall[spec] = overlap(truth, index.search(queries, 10, ef=60).ids)
    assert recall["hnsw@lift"] > 0.9
    assert recall["hnsw@lift"] > recall["hnsw"] + 0.05


def test_lifted_attend_is_exact_over_the_original_rows():
    keys, values, queries = spread_keys(300, 8), spread_keys(300, 8, seed=2), spread_keys(10, 8, seed=1)
    plain, lifted_index = create("flat"), create("flat@lift")
    for index in (plain, lifted_index):
        index.build(keys, values)
    np.testing.assert_allclose(
        lifted_index.attend(queries, 20).output, plain.attend(queries, 20).output, atol=1e-5
    )


def test_clamped_insert_is_counted_and_attended_at_its_true_length():
    keys = spread_keys(300, 8)
    index = create("flat@lift")
    index.build(keys, keys)
    long = 3 * keys[[np.argmax(np.linalg.norm(keys, axis=1))]]
    index.insert(long, long)
    assert index.transform.clamped == 1
    assert index.search(long, 1).ids[0, 0] == 300
    assert np.array_equal(index.keys[300], long[0])


def test_transformed_index_is_what_its_inner_index_is():
    assert create("hnsw@lift").can_insert
    assert not create("nsg@lift").can_insert
    assert create("flat@lift").kind == "exact"


def test_refused_insert_leaves_a_transformed_index_as_it_was():
    index = create("nsg@lift")
    index.build(spread_keys(50, 4), spread_keys(50, 4))
    with pytest.raises(NotImplementedError, match="Nsg cannot insert"):
        index.insert(spread_keys(2, 4), spread_keys(2, 4))
    assert len(index.keys) == 50


def test_rows_of_a_library_that_copies_are_released():
    index = create("hnsw@lift")
    index.build(spread_keys(500, 16))
    assert index.inner.keys.base is None
    assert index.inner.keys.shape == (0, 17)
    assert index.nbytes.host == index.inner.nbytes.host
    kept = create("flat@lift")
    kept.build(spread_keys(500, 16))
    assert kept.nbytes.host == 500 * 17 * 4 + 500 * 4, "lifted rows, and flat's list of ids"


def test_lift_keeps_the_order_of_float16_keys():
    rng = np.random.default_rng(5)
    keys = (rng.lognormal(0, 0.3, (4000, 64)) * rng.normal(1, 1, (4000, 64))).astype(np.float16)
    queries = rng.normal(size=(20, 64)).astype(np.float32)
    lift = Lift()
    lift.fit(keys)

    lifted = lift.queries(queries).astype(np.float64) @ lift.keys(keys).astype(np.float64).T

    raw = queries.astype(np.float64) @ keys.astype(np.float64).T
    np.testing.assert_allclose(lifted * lift.c, raw, rtol=1e-5, atol=1e-4)
