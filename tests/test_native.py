"""Native kernels, gather-attention and thread pool against plain NumPy."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest
from ra_bench.indexes._native import _native

DIMENSIONS = [1, 3, 7, 8, 16, 33, 64, 65, 80, 96, 128, 200, 256]


@pytest.fixture(params=_native.kernels())
def kernel(request):
    _native.force_kernel(request.param)
    yield request.param
    _native.force_kernel("")


def slow_attention(queries, ids, keys, values):
    """Softmax over each row's ids in float64, one query at a time."""
    output = np.zeros(queries.shape)
    lse = np.full(len(queries), -np.inf)
    keys, values = keys.astype(np.float64), values.astype(np.float64)
    for i, row in enumerate(ids):
        real = row[row >= 0]
        if len(real):
            logits = keys[real] @ queries[i].astype(np.float64)
            weights = np.exp(logits - logits.max())
            output[i] = weights @ values[real] / weights.sum()
            lse[i] = logits.max() + np.log(weights.sum())
    return output, lse


def rows(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def test_the_plain_kernel_is_always_there():
    assert _native.kernels()[-1] == "plain"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("d", DIMENSIONS)
def test_dot_rows_agrees_with_numpy(kernel, dtype, d):
    rng = np.random.default_rng(d)
    keys, query = rows(rng, (50, d), dtype), rows(rng, d, np.float32)
    for count in (0, 1, 2, 3, 4, 5, 31):
        ids = rng.integers(0, 50, count, dtype=np.int32)
        expected = keys[ids].astype(np.float64) @ query
        np.testing.assert_allclose(
            _native.dot_rows(query, keys, ids, kernel=kernel), expected, rtol=1e-5, atol=1e-4
        )


def test_every_float16_value_is_widened_exactly(kernel):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    one, ids = np.ones(1, np.float32), np.arange(2**16, dtype=np.int32)
    out = _native.dot_rows(one, every[:, None], ids, kernel=kernel)
    np.testing.assert_array_equal(out, every.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("d", DIMENSIONS)
def test_logits_and_sums_of_found_rows_agree_with_numpy(kernel, dtype, d):
    rng = np.random.default_rng(d)
    found, queries = rows(rng, (300, d), dtype), rows(rng, (5, d), np.float32)
    ids = rng.integers(-1, 300, (5, 41), dtype=np.int32)  # with duplicates and -1 anywhere
    ids[3] = -1
    weights = rows(rng, ids.shape, np.float32)  # of either sign
    logits = _native.gather_logits(queries, ids, found)
    sums = _native.mix_rows(weights, ids, found)
    wide = found.astype(np.float64)
    dots = np.einsum("md,mkd->mk", queries, wide[ids])
    np.testing.assert_allclose(logits, np.where(ids >= 0, dots, -np.inf), rtol=1e-5, atol=1e-4)
    expected = np.einsum("mk,mkd->md", np.where(ids >= 0, weights, 0), wide[ids])
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-4)
    assert _native.gather_logits(queries[:0], ids[:0], found).shape == (0, 41)
    assert _native.mix_rows(weights[:, :0], ids[:, :0], found).shape == (5, d)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.full((5, 4), 300, np.int32)}, "ids must be less than the 300 keys, got 300"),
        ({"ids": np.full((5, 4), -2, np.int32)}, "ids must be at least -1, got -2"),
        ({"ids": np.zeros((4, 4), np.int32)}, "ids must have a row for each of 5, got 4"),
        ({"rows": np.zeros((300, 3), np.float64)}, "float"),
    ],
)
def test_found_rows_that_are_not_there_are_refused(change, message):
    given = {"ids": np.zeros((5, 4), np.int32), "rows": np.zeros((300, 3), np.float32)} | change
    for call, first in ((_native.gather_logits, (5, 3)), (_native.mix_rows, (5, 4))):
        with pytest.raises(ValueError, match=message):
            call(np.zeros(first, np.float32), given["ids"], given["rows"])
    with pytest.raises(ValueError, match="queries"):
        _native.gather_logits(QUERIES[:, :7], IDS, KEYS)
    with pytest.raises(ValueError, match="weights must have the shape of ids"):
        _native.mix_rows(
            np.zeros((5, 2), np.float32), np.zeros((5, 4), np.int32), np.zeros((9, 3), np.float32)
        )


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("key_type", [np.float16, np.float32])
@pytest.mark.parametrize("value_type", [np.float16, np.float32])
def test_gather_attention_agrees_with_numpy(kernel, d, key_type, value_type):
    rng = np.random.default_rng(d)
    keys, values = rows(rng, (300, d), key_type), rows(rng, (300, d), value_type)
    queries = rows(rng, (7, d), np.float32)
    ids = rng.integers(-1, 300, (7, 101), dtype=np.int32)  # with duplicates and -1 anywhere
    ids[3] = -1
    ids[5, 1:] = -1
    output, lse = _native.gather_attention(queries, ids, keys, values)
    assert output.dtype == lse.dtype == np.float32
    expected = slow_attention(queries, ids, keys, values)
    np.testing.assert_allclose(output, expected[0], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_logits_neither_overflow_nor_vanish(kernel, sign):
    keys = np.linspace(0.5, 1, 40, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    values = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float16)
    queries = np.full((1, 8), sign * 1e4 / 8, np.float32)  # logits up to 1e4, far apart
    ids = np.arange(40, dtype=np.int32)[None]
    output, lse = _native.gather_attention(queries, ids, keys, values)
    expected = slow_attention(queries, ids, keys, values)
    np.testing.assert_allclose(output, expected[0], atol=1e-4)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-6)


def test_equal_logits_give_the_mean(kernel):
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    output, lse = _native.gather_attention(
        np.zeros((1, 2), np.float32),
        np.arange(12, dtype=np.int32)[None],
        np.ones((12, 2), np.float16),
        values,
    )
    np.testing.assert_allclose(output[0], values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(12), rtol=1e-6)


def test_no_ids_give_zero_and_minus_infinity():
    keys = np.ones((4, 8), np.float16)
    queries = np.ones((3, 8), np.float32)
    for width in (0, 5):
        output, lse = _native.gather_attention(queries, np.full((3, width), -1, np.int32), keys, keys)
        assert not output.any()
        assert np.isneginf(lse).all()
    output, lse = _native.gather_attention(queries[:0], np.empty((0, 5), np.int32), keys, keys)
    assert output.shape == (0, 8)
    assert lse.shape == (0,)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_do_not_change_a_bit(threads):
    rng = np.random.default_rng(1)
    keys, queries = rows(rng, (1000, 64), np.float16), rows(rng, (40, 64), np.float32)
    ids = rng.integers(0, 1000, (40, 100), dtype=np.int32)
    one = _native.gather_attention(queries, ids, keys, keys, threads=1)
    many = _native.gather_attention(queries, ids, keys, keys, threads=threads)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])


def test_threads_that_could_not_start_are_not_started_by_later_calls() -> None:
    """In a process of its own, which has no memory left for their stacks while the first call runs."""
    program = """
import os, resource, sys
import numpy as np
from ra_bench.indexes._native import _native

keys, ids = np.ones((8, 4), np.float16), np.zeros((512, 1), np.int32)
def attend(threads):
    _native.gather_attention(np.ones((512, 4), np.float32), ids, keys, keys, threads=threads)

attend(2)
before = len(os.listdir("/proc/self/task"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), most))
try:
    attend(64)
except RuntimeError:
    failed = True
resource.setrlimit(resource.RLIMIT_AS, (most, most))
after = len(os.listdir("/proc/self/task"))
attend(2)
print(failed, after - before < 20, len(os.listdir("/proc/self/task")) - after)
"""
    told = subprocess.check_output([sys.executable, "-c", program], text=True)

    assert told.split() == ["True", "True", "0"]


def test_strided_queries_and_ids_are_read_right():
    rng = np.random.default_rng(2)
    keys = rows(rng, (100, 8), np.float32)
    queries = rows(rng, (10, 16), np.float32)[::2, ::2]
    ids = rng.integers(0, 100, (6, 10), dtype=np.int32).T[::2, :4]
    output, _ = _native.gather_attention(queries, ids, keys, keys)
    np.testing.assert_allclose(output, slow_attention(queries, ids, keys, keys)[0], rtol=1e-4, atol=1e-5)


KEYS = np.ones((10, 8), np.float16)
QUERIES = np.ones((2, 8), np.float32)
IDS = np.zeros((2, 3), np.int32)
KEYS.flags.writeable = False  # mapped files are read-only


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("ids must be less than", (QUERIES, IDS + 10, KEYS, KEYS)),
        ("ids must be at least -1", (QUERIES, IDS - 2, KEYS, KEYS)),
        ("ids must be int32", (QUERIES, IDS.astype(np.int64), KEYS, KEYS)),
        ("ids must have a row", (QUERIES, IDS[:1], KEYS, KEYS)),
        ("ids must have 2 dimensions", (QUERIES, IDS[0], KEYS, KEYS)),
        ("queries must be float32", (QUERIES.astype(np.float64), IDS, KEYS, KEYS)),
        ("queries must be float32", (QUERIES.astype(np.float16), IDS, KEYS, KEYS)),
        ("queries must be .m, 8.", (QUERIES[:, :7], IDS, KEYS, KEYS)),
        ("keys must be float16 or float32", (QUERIES, IDS, KEYS.astype(np.int16), KEYS)),
        ("keys must be C-contiguous", (QUERIES, IDS, np.asfortranarray(KEYS), KEYS)),
        ("keys must be .n, d.", (QUERIES, IDS, KEYS[0], KEYS)),
        ("values must be C-contiguous", (QUERIES, IDS, KEYS, np.ones((20, 8), np.float16)[::2])),
        ("values must have the shape", (QUERIES, IDS, KEYS, KEYS[:9])),
        ("threads must be at least 1", (QUERIES, IDS, KEYS, KEYS, 0)),
    ],
)
def test_wrong_arguments_are_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        _native.gather_attention(*arguments)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel must be"):
        _native.dot_rows(np.ones(8, np.float32), KEYS, IDS[0], kernel="mmx")
    with pytest.raises(ValueError, match="kernel must be"):
        _native.force_kernel("mmx")


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_the_pool_covers_every_item_once(threads, count):
    for grain in (1, 3, 2000):
        assert _native.pool_sum(count, grain, threads) == count * (count - 1) // 2


@pytest.mark.parametrize("threads", [1, 4])
def test_an_exception_passes_through_the_pool_and_leaves_it_whole(threads):
    for _ in range(20):
        with pytest.raises(RuntimeError, match="failed at 500"):
            _native.pool_sum(1000, 1, threads, fail_at=500)
        assert _native.pool_sum(1000, 1, threads) == 499500


def test_several_python_threads_share_the_pool():
    sums = []
    callers = [
        threading.Thread(target=lambda: sums.extend(_native.pool_sum(999, 2, 3) for _ in range(200)))
        for _ in range(5)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sums == [998 * 999 // 2] * 1000


def test_a_forked_child_gets_a_pool_of_its_own():
    def in_child():
        sys.exit(0 if _native.pool_sum(100, 1, 4) == 4950 else 1)

    assert _native.pool_sum(100, 1, 4) == 4950
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0
