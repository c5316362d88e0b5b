"""A generated head is as hard as the real one, in stated bounds; knobs move what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ra_bench.datasets.sample import sample_path

from ra_bench.data import open_data
from ra_bench.difficulty import difficulty
from ra_bench.errors import UsageError
from ra_bench.generate import Knobs, Request, generate
from ra_bench.registry import create, parse
from ra_bench.split import divide
from ra_bench.truth import exact_topk

TOKENS = 31744  # as the sample has
# How far a generated head's difficulty may be from the real one's, as a share of it.
BOUNDS = {
    "not_own_nearest": 0.15,
    "norm_cv": 0.1,
    "effective_keys": 0.3,
    "keys_for_mass": 0.3,
    "mahalanobis_keys": 0.05,
    "mahalanobis_queries": 0.15,
    "hubness": 0.35,
}


@pytest.fixture(scope="module")
def real():
    return open_data(sample_path())


@pytest.fixture(scope="module")
def made(real, tmp_path_factory):
    return generate(real, real.heads, tmp_path_factory.mktemp("made") / "g", Request(TOKENS, 146, 8192))


def parts(data, max_queries=512):
    head = data.load(data.heads[0])
    split = divide(head, max_queries=max_queries)
    return head, np.ascontiguousarray(head.keys[split.indexed]), split


def measured(data):
    head, keys, split = parts(data)
    return difficulty(keys, split.test.vectors, head.metadata.softmax_scale)


def test_a_generated_heads_difficulty_is_that_of_the_real_one_within_the_bounds(real, made):
    wanted, found = measured(real), measured(made)
    for name, bound in BOUNDS.items():
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=bound), name


def test_a_longer_head_s_queries_are_as_far_from_its_keys(real, tmp_path):
    wanted = measured(real)
    found = measured(generate(real, real.heads, tmp_path / "g", Request(4 * TOKENS, 146, 2048)))
    assert found.mahalanobis_queries == pytest.approx(wanted.mahalanobis_queries, rel=0.15)
    assert found.mahalanobis_keys == pytest.approx(wanted.mahalanobis_keys, rel=0.05)
    assert found.effective_keys > wanted.effective_keys


def test_a_generated_head_is_no_copy_and_has_the_real_ones_sinks_groups_and_rotation(real, made):
    wanted, found = real.load(real.heads[0]), made.load(made.heads[0])

    assert found.about.group == wanted.about.group
    assert found.about.rope.rotary_dims == wanted.about.rope.rotary_dims
    np.testing.assert_allclose(
        found.keys[:128].astype(np.float32), wanted.keys[:128].astype(np.float32), rtol=0.02, atol=0.02
    )
    real_rows = {row.tobytes() for row in wanted.values}
    assert not any(row.tobytes() in real_rows for row in found.values[128:])
    assert found.metadata.model.startswith("generated, like ")


@pytest.mark.slow
def test_the_order_of_indexes_is_that_on_the_real_head(real, made):
    def keys_read(data, spec):
        head, keys, split = parts(data, 140)
        index = create(parse(spec))
        learn = split.learn.vectors[: index.learn_queries // 7 * 7] if index.learn_queries else None
        index.build(keys, None, learn, head.about)
        _, true = exact_topk(split.test.vectors, keys, 100)
        for effort in index.effort_sweep(len(keys), 100):
            found = index.search(split.test.vectors, 100, **effort)
            scores = np.einsum("mkd,md->mk", keys[found.ids].astype(np.float32), split.test.vectors)
            recall = (scores >= true[:, -1:] - 1e-4).mean()
            if recall >= 0.9:
                return found.work.keys_read.mean() if found.work.keys_read is not None else len(keys)
        return np.inf  # as raw HNSW, which does not get there

    specs = ("ra", "ivf", "flat", "hnsw")
    reads = {
        name: [keys_read(data, spec) for spec in specs] for name, data in (("real", real), ("made", made))
    }
    assert np.argsort(reads["real"]).tolist() == np.argsort(reads["made"]).tolist() == [0, 1, 2, 3], reads


@pytest.fixture(scope="module")
def knobs_turned(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("knobs")
    base = Request(4000, 40, 700)
    knobs = {
        "as it is": Knobs(),
        "ood": Knobs(ood=2),
        "norm_spread": Knobs(norm_spread=3),
        "sharpness": Knobs(sharpness=2),
        "drift": Knobs(drift=4),
    }
    return {
        name: generate(real, real.heads, folder / name.replace(" ", "-"), replace(base, knobs=one))
        for name, one in knobs.items()
    }


def test_knobs_move_what_they_say(knobs_turned):
    found = {name: measured(data) for name, data in knobs_turned.items()}
    plain = found["as it is"]

    assert found["ood"].mahalanobis_queries > 1.3 * plain.mahalanobis_queries
    assert found["norm_spread"].norm_cv > 1.5 * plain.norm_cv
    assert found["sharpness"].effective_keys < 0.7 * plain.effective_keys
    assert found["drift"].mahalanobis_queries > 1.03 * plain.mahalanobis_queries


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(real, tmp_path):
    request = Request(2000, 8, 70)
    first, again, other = (
        generate(real, real.heads, tmp_path / str(place), replace(request, seed=seed))
        for place, seed in enumerate((0, 0, 1))
    )
    assert first.hash == again.hash != other.hash


def test_a_head_longer_than_the_real_one_is_made_in_blocks(real, tmp_path, monkeypatch):
    monkeypatch.setattr("ra_bench.generate.BLOCK_TOKENS", 4096)
    made = generate(real, real.heads, tmp_path / "long", Request(40_000, 5, 700))
    head = made.load(made.heads[0])

    assert len(head.keys) == 40_005
    np.testing.assert_array_equal(head.key_positions, np.arange(40_005))
    assert len(np.unique(head.keys, axis=0)) == 40_005
    assert len(head.prefill_queries) == 700
    assert len(head.decode_queries) == 5 * 7


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(100), "--tokens must be at least 641, got 100"),
        (Request(5000, decode_steps=-1), "--decode-steps must be at least 0, got -1"),
        (Request(5000, seed=-1), r"--seed must be at least 0 and below 1,000,000,000, got -1"),
        (Request(99_999_999 << 20), r"--tokens and --decode-steps must be below 2\^31 tokens, got 1048575"),
        (Request(5000, knobs=Knobs(ood=-1)), "--ood must be between 0 and 100, got -1"),
    ],
)
def test_what_cannot_be_generated_is_refused(real, tmp_path, request_, message):
    with pytest.raises(UsageError, match=message):
        generate(real, real.heads, tmp_path / "out", request_)
    assert not (tmp_path / "out").exists()


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(real, tmp_path, monkeypatch):
    request = Request(2000, 8, 70)
    needed = sum(
        file.stat().st_size
        for file in generate(real, real.heads, tmp_path / "made", request).path.glob("*.parquet")
    )
    estimated = (2 * 2008 + 70 + 8 * 7) * (64 * 2 + 10)
    assert estimated == pytest.approx(needed, rel=0.1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": estimated - 1}))

    with pytest.raises(UsageError, match=f"needs about {estimated} bytes, {estimated - 1} are free"):
        generate(real, real.heads, tmp_path / "a" / "b", request)

    assert not (tmp_path / "a").exists()


def test_the_largest_seed_generates(real, tmp_path):
    made = generate(real, real.heads, tmp_path / "made", Request(2000, 8, 70, seed=10**9 - 1))
    assert len(made.heads) == 1


def test_a_short_head_is_refused_as_a_model(dump, tmp_path, make_dump):
    source = open_data(make_dump(prefill_tokens=700))
    with pytest.raises(UsageError, match="is too short to learn from: 700 tokens"):
        generate(source, source.heads, tmp_path / "out", Request(5000))
