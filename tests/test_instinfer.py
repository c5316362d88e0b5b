"""SparF on disk: its two steps, what it reads of its files, and that the files go."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from ra_bench.errors import UsageError
from ra_bench.registry import create

N, D, K, PAGE = 3000, 24, 50, 4096
RNG = np.random.default_rng(0)
KEYS = (RNG.normal(size=(N, D)) * np.linspace(0.3, 1, D)).astype(np.float16)
VALUES = RNG.normal(size=(N, D)).astype(np.float16)
QUERIES = RNG.normal(size=(3, D)).astype(np.float32)


def built(spec: str = "instinfer", folder: Path | None = None):
    index = create(spec + (f":folder={folder}" if folder else ""))
    index.build(KEYS, VALUES)
    return index


@pytest.mark.parametrize("channels", [3, 8, 24])
def test_two_steps_and_the_mean_value(channels: int):
    part = built().attend(QUERIES, K, channels=channels)
    keys, values = KEYS.astype(np.float64), VALUES.astype(np.float64)
    for row, query in enumerate(QUERIES.astype(np.float64)):
        chosen = np.argsort(-np.abs(query))[:channels]
        ratio = np.abs(query[chosen]).sum() / np.abs(query).sum()
        weights = np.exp(keys[:, chosen] @ query[chosen] / np.sqrt(ratio))
        weights /= weights.sum()
        ids = np.argsort(-weights)[:K]
        share = weights[ids].sum()
        exact = np.exp(keys[ids] @ query)
        expected = share * (exact @ values[ids] / exact.sum()) + (1 - share) * values.mean(axis=0)
        np.testing.assert_allclose(part.output[row], expected, atol=2e-3)
        np.testing.assert_allclose(part.lse[row], np.log(exact.sum()) - np.log(share), atol=2e-3)


def test_all_channels_give_the_exact_top():
    ids = built().search(QUERIES, K, channels=D).ids
    scores = QUERIES @ KEYS.astype(np.float32).T
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1)[:, :K])


@pytest.mark.parametrize("page_channels", [2, 8, 5])
def test_bytes_read_are_whole_pages(page_channels: int):
    index = built(f"instinfer:page_channels={page_channels}")
    block = PAGE // (2 * page_channels)
    found = index.search(QUERIES, K, channels=6)
    part = index.attend(QUERIES, K, channels=6)
    for row, query in enumerate(QUERIES):
        groups = {int(channel) // page_channels for channel in np.argsort(-np.abs(query))[:6]}
        step_one = len(groups) * -(-N // block) * block * page_channels * 2
        pages = {byte // PAGE for i in found.ids[row].tolist() for byte in (i * D * 2, i * D * 2 + D * 2 - 1)}
        assert found.work.bytes_read[row] == step_one + len(pages) * PAGE
        assert part.work.bytes_read[row] == step_one + 2 * len(pages) * PAGE


def resident_pages(mapped: mmap.mmap) -> int:
    """How many of its pages are in memory, by mincore(2)."""
    pages = -(-len(mapped) // PAGE)
    told = (ctypes.c_ubyte * pages)()
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), told) == 0
    return sum(page & 1 for page in told)


@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != PAGE, reason="counts pages of 4096 bytes")
def test_a_cold_call_reads_from_the_disk_what_it_counts(tmp_path):
    index = built("instinfer:cold=true", tmp_path)
    maps = [rows._map for rows in (index._channels, index._key_rows, index._value_rows)]
    for rows in (index._channels, index._key_rows, index._value_rows):
        rows.forget()
    if sum(map(resident_pages, maps)):
        pytest.skip("this file system keeps its pages in memory")
    work = index.attend(QUERIES[:1], K, channels=4).work
    assert sum(map(resident_pages, maps)) * PAGE == work.bytes_read[0]


def test_inserts_go_on_where_the_last_block_ended(tmp_path):
    whole, grown = built(), create("instinfer")
    grown.build(KEYS[:100], VALUES[:100])
    for start, end in ((100, 101), (101, 1500), (1500, 2100), (2100, N)):
        grown.insert(KEYS[start:end], VALUES[start:end])
    np.testing.assert_array_equal(grown._channels.rows, whole._channels.rows)
    a, b = (index.attend(QUERIES, K, channels=6) for index in (whole, grown))
    np.testing.assert_allclose(a.output, b.output, atol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        grown.insert(KEYS[:3], VALUES[:2])
    assert len(grown.keys) == N


def test_files_have_no_name_and_go_with_the_index(tmp_path):
    gc.collect()  # what earlier tests left goes now, and not between the two counts
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    index = built(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    del index
    gc.collect()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UsageError, match="folder must be a folder that exists"):
        create(f"instinfer:folder={tmp_path / 'absent'}")
    with pytest.raises(UsageError, match="page_channels must be in 1 to 64, got 0"):
        create("instinfer:page_channels=0")
