"""MagicPIG: how often keys collide, how likely they are drawn, and that its sums are right on average."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from ra_bench import registry
from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.registry import create

N, D, G = 300, 8, 2
RNG = np.random.default_rng(0)
KEYS = (RNG.normal(size=(N, D)) + 1.5).astype(np.float32)  # far off the origin: they must be centred
VALUES = RNG.normal(size=(N, D)).astype(np.float32)
QUERIES = RNG.normal(size=(4, D)).astype(np.float32)
CENTRED = KEYS - KEYS.mean(axis=0)


def built(spec: str, seed: int = 0):
    index = create(spec, seed=seed)
    index.build(KEYS, VALUES, None, Head(group=G))
    return index


def cosines(query: np.ndarray, rows: np.ndarray = CENTRED) -> np.ndarray:
    return rows @ query / np.linalg.norm(query) / np.linalg.norm(rows, axis=1)


def plain_codes(index, row: np.ndarray) -> list[tuple[bool, ...]]:
    """The sides of one row in each table, plane by plane."""
    planes = index._planes.reshape(D, index.tables, index.bits)
    return [
        tuple(bool(row @ planes[:, table, bit] > 0) for bit in range(index.bits))
        for table in range(index.tables)
    ]


@pytest.mark.parametrize("bits", [1, 4])
def test_two_vectors_share_a_bucket_by_their_angle(bits: int):
    index = create(f"magicpig:bits={bits}:tables=20000")
    index._set_hash(np.zeros(D, np.float32))
    for angle in (0.2, 1.0, 2.0):
        one = np.eye(D, dtype=np.float32)[0]
        two = np.cos(angle) * one + np.sin(angle) * np.eye(D, dtype=np.float32)[3]
        codes = index._codes(np.stack([one, two]).astype(np.float32), index.tables)
        expected = (1 - angle / np.pi) ** bits
        deviation = np.sqrt(expected * (1 - expected) / index.tables)
        assert abs((codes[0] == codes[1]).mean() - expected) < 4 * deviation


@pytest.mark.parametrize("collisions", [1, 2])
@pytest.mark.parametrize(("bits", "tables"), [(10, 150), (8, 75), (3, 2)])
def test_the_chance_is_that_of_enough_shared_tables(collisions: int, bits: int, tables: int):
    index = create(f"magicpig:bits={bits}:tables={tables}:collisions={collisions}")
    angles = np.linspace(0.05, 3.0, 20)
    expected = binom.sf(collisions - 1, tables, (1 - angles / np.pi) ** bits)
    np.testing.assert_allclose(index.chances(np.cos(angles), tables), np.maximum(expected, 1e-12), atol=1e-12)


@pytest.mark.parametrize("probed", [0, 7])
@pytest.mark.parametrize("collisions", [1, 2])
def test_what_is_drawn_shares_the_query_s_bucket_often_enough(collisions: int, probed: int):
    index = built(f"magicpig:bits=4:tables=20:collisions={collisions}")
    tables = probed or 20
    key_codes = [plain_codes(index, key - index._centre)[:tables] for key in KEYS]
    for query, draw in zip(QUERIES, index.draw(QUERIES, probed), strict=True):
        codes = plain_codes(index, query)[:tables]
        shared = np.array([sum(a == b for a, b in zip(codes, key, strict=True)) for key in key_codes])
        np.testing.assert_array_equal(draw.ids, np.flatnonzero(shared >= collisions))
        assert draw.touched_keys == (shared > 0).sum()
        assert draw.entries == shared.sum()
        chances = np.log(index.chances(cosines(query)[draw.ids], tables))
        np.testing.assert_allclose(draw.log_chances, chances, rtol=1e-3, atol=1e-4)


def test_attention_is_softmax_over_the_draw_with_each_logit_less_the_log_of_its_chance():
    index = built("magicpig:bits=4:tables=20")
    part = index.attend(QUERIES, None)
    for row, draw in enumerate(index.draw(QUERIES)):
        weights = np.exp(KEYS[draw.ids].astype(float) @ QUERIES[row]) / np.exp(draw.log_chances)
        np.testing.assert_allclose(part.output[row], weights @ VALUES[draw.ids] / weights.sum(), atol=1e-4)
        np.testing.assert_allclose(part.lse[row], np.log(weights.sum()), atol=1e-4)
    assert (part.work.attended == [len(draw.ids) for draw in index.draw(QUERIES)]).all()
    hashes = 20 * D * 4 * 4
    expected = [hashes + 4 * d.entries + len(d.ids) * (2 * D * 4 + 4) for d in index.draw(QUERIES)]
    np.testing.assert_array_equal(part.work.bytes_read, expected)


@pytest.mark.parametrize("collisions", [1, 2])
def test_the_sums_of_attention_are_right_on_average_over_seeds(collisions: int):
    exponentials = np.exp(KEYS.astype(float) @ QUERIES.T)  # (N, m)
    exact_sum, exact_values = exponentials.sum(axis=0), exponentials.T @ VALUES
    sums, values = [], []
    for seed in range(300):
        part = built(f"magicpig:bits=5:tables=16:collisions={collisions}", seed).attend(QUERIES, None)
        sums.append(np.exp(part.lse.astype(float)))
        values.append(sums[-1][:, None] * part.output)
    for drawn, exact in ((np.array(sums), exact_sum), (np.array(values), exact_values)):
        deviation = drawn.std(axis=0) / np.sqrt(len(drawn))
        assert (np.abs(drawn.mean(axis=0) - exact) < 4.5 * deviation).all()
        assert (deviation < 0.15 * np.abs(exact_sum)[:, None].max()).all(), "or the test says nothing"


def test_search_ranks_what_was_drawn():
    index = built("magicpig:bits=4:tables=20")
    found = index.search(QUERIES, 30)
    for row, draw in enumerate(index.draw(QUERIES)):
        best = draw.ids[np.argsort(-(KEYS[draw.ids] @ QUERIES[row]))][:30]
        np.testing.assert_array_equal(found.ids[row][: len(best)], best)


def test_a_query_that_draws_nothing_gets_an_empty_part():
    index = built("magicpig:bits=16:tables=2")
    part = index.attend(QUERIES, None)
    empty = part.work.attended == 0
    assert empty.any()
    assert (part.output[empty] == 0).all()
    assert np.isneginf(part.lse[empty]).all()


def test_later_keys_are_drawn_as_if_they_had_been_hashed_at_once(monkeypatch, tmp_path):
    more = (RNG.normal(size=(90, D)) + 1.5).astype(np.float32)

    def drawn() -> tuple[list[np.ndarray], int]:
        index = built("magicpig:bits=4:tables=20")
        for block in np.array_split(np.arange(90), 7):
            index.insert(more[block], more[block])
        index.save(tmp_path)
        loaded = registry.load(tmp_path)
        for one, two in zip(index.draw(QUERIES), loaded.draw(QUERIES), strict=True):
            np.testing.assert_array_equal(one.ids, two.ids)
        return [draw.ids for draw in index.draw(QUERIES)], index._unsorted.shape[1]

    apart, unsorted_keys = drawn()
    assert unsorted_keys == 90
    monkeypatch.setattr("ra_bench.indexes.magicpig.LEAST_UNSORTED_KEYS", 30)
    together, unsorted_keys = drawn()
    assert unsorted_keys < 90
    for one, two in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((ids >= N).any() for ids in apart)


@pytest.mark.parametrize("setting", ["collisions=3", "bits=17", "tables=1"])
def test_a_setting_that_cannot_be_is_refused(setting: str):
    with pytest.raises(UsageError, match=setting.split("=", maxsplit=1)[0]):
        create(f"magicpig:{setting}")
