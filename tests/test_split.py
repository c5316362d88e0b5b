"""The rules of measuring: what is indexed, learned from, and tested."""

from __future__ import annotations

import numpy as np
import pytest

from ra_bench.errors import UsageError
from ra_bench.split import (
    GAP_TOKENS,
    LAST_LEARN_TOKENS,
    RECENT_TOKENS,
    SINK_TOKENS,
    Queries,
    divide,
    evenly,
    learn_tokens,
    to_learn,
)
from ra_bench.vectors import DataSet

PREFILL = 3000


def load(folder):
    data = DataSet.open(folder)
    return data.load(data.heads[0])


def test_the_index_holds_what_lies_between_sinks_and_recent_tokens(dump) -> None:
    split = divide(load(dump))

    assert (split.indexed.start, split.indexed.stop) == (SINK_TOKENS, PREFILL - RECENT_TOKENS)


def test_decode_queries_test_and_the_whole_prefill_teaches(dump) -> None:
    head = load(dump)

    split = divide(head)

    np.testing.assert_array_equal(split.test.vectors, head.decode_queries)
    np.testing.assert_array_equal(split.learn.vectors, head.prefill_queries)


def test_without_decode_queries_the_last_prefill_tokens_test_after_a_gap(make_dump) -> None:
    split = divide(load(make_dump(decode_steps=0)))

    first = split.test.positions.min()
    assert first == PREFILL * 0.9
    assert split.learn.positions.max() < first - GAP_TOKENS
    assert split.indexed.stop == first - RECENT_TOKENS


def test_each_test_query_sees_sinks_and_its_own_past_exactly_once(dump) -> None:
    head = load(dump)

    split = divide(head)

    for row, position in enumerate(split.test.positions):
        seen = head.key_positions[split.static[: split.static_limits[row]]]
        indexed = head.key_positions[split.indexed]
        together = np.sort(np.concatenate([seen, indexed]))
        np.testing.assert_array_equal(together, np.arange(position + 1))


def test_a_random_split_learns_from_neighbours_but_never_from_test_queries(dump) -> None:
    honest, random = divide(load(dump)), divide(load(dump), "random", seed=3)

    assert random.indexed == honest.indexed
    assert len(random.leaked.vectors) > 0
    assert len(honest.leaked.vectors) == 0
    assert not set(random.leaked.positions) & set(random.test.positions)
    assert random.leaked.positions.max() > random.test.positions.min()


def test_max_queries_keeps_whole_tokens_evenly_spaced(dump) -> None:
    split = divide(load(dump), max_queries=9)

    assert len(split.test.vectors) == 8
    np.testing.assert_array_equal(split.test.positions[::2], split.test.positions[1::2])
    assert split.test.positions[0] == PREFILL


def test_evenly_is_the_same_for_the_same_input() -> None:
    queries = Queries(np.arange(400.0).reshape(100, 4), np.arange(100) // 2, np.arange(100) % 2)

    chosen = evenly(queries, 2, 20)

    assert len(chosen.vectors) == 20
    assert chosen.positions[0] == 0
    assert chosen.positions[-1] == 49
    np.testing.assert_array_equal(chosen.vectors, evenly(queries, 2, 20).vectors)


def test_learn_queries_are_evenly_spaced_and_end_with_the_last_tokens_in_full() -> None:
    tokens = learn_tokens(10_000, group=4, max_rows=400)

    assert len(tokens) == 100
    np.testing.assert_array_equal(tokens[-LAST_LEARN_TOKENS:], np.arange(10_000 - LAST_LEARN_TOKENS, 10_000))
    gaps = np.diff(tokens[: 100 - LAST_LEARN_TOKENS])
    assert tokens[0] == 0
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("rows", "expected"), [(-8, [0]), (2, [0]), (4, [0, 49]), (100, list(range(50)))])
def test_few_learn_queries_are_still_spread_over_the_prompt(rows: int, expected: list[int]) -> None:
    queries = Queries(np.arange(400.0).reshape(100, 4), np.arange(100) // 2, np.arange(100) % 2)

    assert to_learn(queries, 2, rows).positions[::2].tolist() == expected


def test_a_context_too_short_to_index_is_refused(make_dump) -> None:
    with pytest.raises(UsageError, match="too short: the first test token is at 600"):
        divide(load(make_dump(prefill_tokens=600)))
