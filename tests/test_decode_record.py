"""The same object serves `compare` and `decode`: what decode recorded gives equal answers in compare."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from decoding import TOKENS, Decoding

from ra_bench.capture import BackgroundWriter, Recorder
from ra_bench.dump import DocumentFiles
from ra_bench.prepare import Bundle, Request, prepare
from ra_bench.registry import create, index_class, info, names
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS
from ra_bench.vectors import DataSet
from ra_bench.writer import DumpWriter

K, LAYER, STEPS = 20, 1, 6
DETERMINISTIC = [name for name in names() if info(name).available and index_class(name).deterministic]
SPECS = [*DETERMINISTIC, *(f"{name}@lift" for name in DETERMINISTIC if index_class(name).needs_lift)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    sizes = {}
    for spec in SPECS:
        wish = create(spec)
        sizes[wish.learn_queries] = max(sizes.get(wish.learn_queries, 0), wish.learn_neighbors)
    folder = tmp_path_factory.mktemp("model")
    return Decoding(folder, steps=STEPS, learn_sizes=sizes, dtype="float16")


def record(tiny, spec, folder):
    """Decodes live through `spec` into a dump; what each step of the layer asked and got, and the indexes."""
    with DumpWriter(folder, "float16") as writer:
        files = DocumentFiles(tiny.session, tiny.document, writer)
        with BackgroundWriter(files.write) as background:
            recorder = Recorder(tiny.plan.indexed_layers, (0, 1), 2, 1, "float16", background)
            tiny.prefilled = tiny.prefill(recorder)
            built = tiny.build(spec, threads=2)
            cache = tiny.indexed(built, K)
            seen = []
            cache.layers[LAYER].watcher = lambda _, queries, part: seen.append(
                (queries.copy(), part.output.copy(), part.lse.copy())
            )
            tiny.run(cache, recorder=recorder)
        files.close()
        writer.finish({})
    return built.indexes[LAYER], seen


def slowly(spec):
    """pynndescent compiles for minutes, once a process."""
    return pytest.param(spec, marks=pytest.mark.slow if spec.startswith("pynndescent") else ())


@pytest.mark.parametrize("spec", map(slowly, SPECS))
def test_what_decode_recorded_gives_the_same_in_compare(tiny, spec, tmp_path):
    live, seen = record(tiny, spec, tmp_path / "dump")
    assert len(seen) == STEPS
    data = DataSet.open(tmp_path / "dump")
    learn = {size: most for size, most in tiny.learn_sizes.items() if size}
    bundles = []
    for kv_head in range(2):
        request = Request(str(data.path), ("doc000", LAYER, kv_head), "honest", 4096, K, False, learn, 0)
        folder = tmp_path / f"bundle{kv_head}"
        assert prepare(request, folder) == ""
        bundles.append(Bundle(folder))
        assert len(bundles[kv_head].keys) == TOKENS - SINK_TOKENS - RECENT_TOKENS
    compared = built_from(bundles, spec)
    for kv_head, bundle in enumerate(bundles):
        asked = np.concatenate([step[kv_head] for step, _, _ in seen])
        np.testing.assert_array_equal(asked, bundle.test_queries)
        output, lse = answered(compared[kv_head], [step[kv_head] for step, _, _ in seen])
        np.testing.assert_allclose(np.concatenate([out[kv_head] for _, out, _ in seen]), output, atol=1e-3)
        np.testing.assert_allclose(np.concatenate([of[kv_head] for _, _, of in seen]), lse, atol=1e-3)
        if compared[kv_head].has_search:
            ids = compared[kv_head].search(asked, K).ids
            np.testing.assert_array_equal(ids, live[kv_head].search(asked, K).ids)


def answered(index, steps):
    """Outputs and log-sum-exps of all steps' queries; an index with state observes each step after it."""
    parts = []
    for queries in steps if index.is_stateful else [np.concatenate(steps)]:
        parts.append(index.attend(queries, K))
        index.observe(queries)
    return np.concatenate([part.output for part in parts]), np.concatenate([part.lse for part in parts])


def built_from(bundles, spec):
    """The indexes of a layer, on what `compare` prepared: some methods share a basis between its heads."""
    indexes = [create(spec) for _ in bundles]
    learn, about = zip(
        *(bundle.learn_inputs(indexes[0].learn_queries, indexes[0].learn_neighbors) for bundle in bundles),
        strict=True,
    )
    type(indexes[0]).build_layer(
        indexes,
        [np.array(bundle.keys) for bundle in bundles],
        [np.array(bundle.values) for bundle in bundles],
        None if learn[0] is None else learn,
        about,
    )
    return indexes


def test_an_index_knows_of_its_head_what_compare_tells_it(tiny, tmp_path):
    record(tiny, "flat", tmp_path / "dump")
    head = DataSet.open(tmp_path / "dump").load(("doc000", LAYER, 1))
    wanted = max(tiny.learn_sizes)
    keys, values, queries, abouts = tiny.prefilled.index_inputs(LAYER, wanted, 5)
    indexed = slice(SINK_TOKENS, TOKENS - RECENT_TOKENS)
    np.testing.assert_array_equal(keys[1], head.keys[indexed])
    np.testing.assert_array_equal(values[1], head.values[indexed])
    np.testing.assert_array_equal(queries[1], head.prefill_queries)  # all of so short a prompt
    np.testing.assert_array_equal(abouts[1].query_positions, head.prefill_query_positions)
    np.testing.assert_array_equal(abouts[1].query_heads, head.prefill_query_heads)
    np.testing.assert_array_equal(abouts[1].key_positions, head.key_positions[indexed])
    assert (abouts[1].layer, abouts[1].kv_head, abouts[1].group) == (LAYER, 1, 2)
    assert abouts[1].softmax_scale == head.about.softmax_scale
    np.testing.assert_allclose(abouts[1].rope.inverse_frequencies, head.about.rope.inverse_frequencies)
