"""RetrievalAttention's graph against exact search, and what can go wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ra_bench.indexes.ra import _ra

sys.path.append(str(Path(__file__).parent))
from ra_graphs import KEYS, LEARN, TEST, TRUTH, built, exact, recall

from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.registry import create, load


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


@pytest.mark.parametrize("width", [16, 31, 33])
def test_keys_of_another_width_are_not_inserted(width):
    """By the native call too, which would read beyond them."""
    graph = built(keys=KEYS[:400], learn=LEARN[:50])._graphs[0]
    with pytest.raises(ValueError, match=r"keys must hold the old keys and the new ones, \(n, 32\)"):
        graph.insert(np.ones((401, width), np.float16), 1)
    assert graph.links.shape[0] == 400


@pytest.mark.parametrize("setting", ["degree=0", "pivots=0", "beam=-1", "learn_neighbors=0"])
def test_senseless_settings_are_refused(setting):
    with pytest.raises(UsageError, match=setting.split("=")[0]):
        create(f"ra:{setting}")
