"""Which keys are indexed, which queries are learned from, and which test: the rules of measuring.

p0 is the position of the first test token. The index holds the keys at [SINK_TOKENS, p0 - RECENT_TOKENS) and
nothing else; a test query at p attends exactly to the sinks and to [p0 - RECENT_TOKENS, p] beside it, as in
RetrievalAttention (arXiv 2409.10516), section 3.3 and table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ra_bench.errors import UsageError
from ra_bench.vectors import HeadVectors

SINK_TOKENS = 128
RECENT_TOKENS = 512
# Without decode queries, learn queries end this many tokens before the first test token: neighbouring
# tokens have nearly the same queries, and a learned neighbour of a test query flatters the method.
GAP_TOKENS = 1024
# Without decode queries, this share of the prefill's tokens, the last ones, are test tokens.
TEST_SHARE = 0.1
# A sample of learn queries ends with these tokens in full: some methods observe the end of the prompt.
LAST_LEARN_TOKENS = 32

SplitName = Literal["honest", "random"]


@dataclass(frozen=True)
class Queries:
    """Query rows (m, d), multiplied by the softmax scale, with their positions and query heads (m,)."""

    vectors: np.ndarray
    positions: np.ndarray
    heads: np.ndarray

    def blocks(self, keep: np.ndarray, group: int) -> Queries:
        """The rows of the tokens where `keep` (tokens,) is true."""
        rows = np.repeat(keep, group)
        return Queries(self.vectors[rows], self.positions[rows], self.heads[rows])

    def joined(self, other: Queries) -> Queries:
        """These rows, then the other's."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Queries(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Split:
    """One head's vectors, divided. All query rows come in blocks of G, one block a token."""

    indexed: slice  # rows of the keys that the index holds
    static: np.ndarray  # rows of the keys that every test query may attend to exactly, in order
    static_limits: np.ndarray  # (m,) how many of `static` the test query sees
    test: Queries
    learn: Queries
    leaked: Queries  # neighbours of test queries, learned whole; none in an honest split


def divide(head: HeadVectors, split: SplitName = "honest", max_queries: int = 2048, seed: int = 0) -> Split:
    """Divides one head by the rules above.

    "honest": test tokens are the decode steps, learn tokens the whole prefill; without decode steps, test
    tokens are the last of the prefill and learn tokens end GAP_TOKENS before them. "random": half of those
    same test tokens, drawn at random, are learned from too, so that their neighbours are tested: the flaw of
    a random split, shown. At most `max_queries` test rows, evenly spaced. Raises UsageError where the
    context is too short to leave anything to index.
    """
    group, pool, learn = head.about.group, *_pool_and_learn(head)
    if head.key_positions is None:
        return _divide_unplaced(head, pool, learn, split, max_queries, seed)
    p0 = int(pool.positions[0])
    indexed = slice(*np.searchsorted(head.key_positions, [SINK_TOKENS, p0 - RECENT_TOKENS]).tolist())
    if indexed.stop <= indexed.start:
        raise UsageError(
            f"--data: {head.about.name} is too short: the first test token is at {p0}, and an index needs"
            f" keys between {SINK_TOKENS} sinks and the {RECENT_TOKENS} tokens before it"
        )
    test, leaked = _test_and_leaked(pool, learn, group, split, seed)
    test = evenly(test, group, max_queries)
    last = int(np.searchsorted(head.key_positions, test.positions.max(), side="right"))
    static = np.r_[0 : indexed.start, indexed.stop : last]
    limits = indexed.start + np.searchsorted(head.key_positions, test.positions, side="right") - indexed.stop
    return Split(indexed, static, limits, test, learn, leaked)


def _divide_unplaced(
    head: HeadVectors, pool: Queries, learn: Queries, split: SplitName, max_queries: int, seed: int
) -> Split:
    """A data set without positions: the index holds all its keys, and there is no static part."""
    group = head.about.group
    test, leaked = _test_and_leaked(pool, learn, group, split, seed)
    test = evenly(test, group, max_queries)
    limits = np.zeros(len(test.vectors), np.int64)
    return Split(slice(0, len(head.keys)), np.empty(0, np.int64), limits, test, learn, leaked)


def _test_and_leaked(
    pool: Queries, learn: Queries, group: int, split: SplitName, seed: int
) -> tuple[Queries, Queries]:
    """Test queries, and those of them that a random split also learns from."""
    if split == "honest":
        return pool, learn.blocks(np.zeros(len(learn.vectors) // group, bool), group)
    tokens = len(pool.vectors) // group
    taken = np.random.default_rng(seed).permutation(tokens) < tokens // 2
    return pool.blocks(~taken, group), pool.blocks(taken, group)


def evenly(queries: Queries, group: int, max_rows: int) -> Queries:
    """At most `max_rows` rows, in whole blocks of `group`, evenly spaced; all where there are fewer."""
    tokens = len(queries.vectors) // group
    return _tokens_of(queries, group, _evenly_spaced(tokens, max(1, max_rows // group)))


def to_learn(queries: Queries, group: int, max_rows: int) -> Queries:
    """The learn queries among `queries`, as `learn_tokens` chooses them."""
    return _tokens_of(queries, group, learn_tokens(len(queries.vectors) // group, group, max_rows))


def learn_tokens(tokens: int, group: int, max_rows: int) -> np.ndarray:
    """Which of `tokens` tokens give the `max_rows` learn queries: their numbers (kept,), rising.

    The last LAST_LEARN_TOKENS, but at most half of all, and evenly spaced ones before them. The one sampler
    of learn queries: live decoding uses it too, so that an index learns from the same.
    """
    wanted = max(1, max_rows // group)
    if tokens <= wanted:
        return np.arange(tokens)
    last = min(LAST_LEARN_TOKENS, wanted // 2)
    return np.append(_evenly_spaced(tokens - last, wanted - last), np.arange(tokens - last, tokens))


def _tokens_of(queries: Queries, group: int, tokens: np.ndarray) -> Queries:
    keep = np.zeros(len(queries.vectors) // group, bool)
    keep[tokens] = True
    return queries if keep.all() else queries.blocks(keep, group)


def _evenly_spaced(tokens: int, wanted: int) -> np.ndarray:
    if tokens <= wanted:
        return np.arange(tokens)
    return np.unique(np.linspace(0, tokens - 1, wanted).round().astype(int))


def _pool_and_learn(head: HeadVectors) -> tuple[Queries, Queries]:
    """Candidate test queries, and the learn queries that go with them."""
    prefill = Queries(head.prefill_queries, head.prefill_query_positions, head.prefill_query_heads)
    decode = Queries(head.decode_queries, head.decode_query_positions, head.decode_query_heads)
    group = head.about.group
    if head.key_positions is None:
        if not len(decode.vectors):
            raise UsageError(f"--data: {head.about.name} has no queries to test with")
        unplaced = (
            Queries(rows.vectors, np.full(len(rows.vectors), -1, np.int32), rows.heads)
            for rows in (decode, prefill)
        )
        return next(unplaced), next(unplaced)
    if len(decode.vectors):
        before = prefill.positions < decode.positions[0]
        return decode, prefill.blocks(before[::group], group)
    if not len(prefill.vectors):
        raise UsageError(f"--data: {head.about.name} has no queries to test with")
    tokens = prefill.positions[::group]
    tested = max(1, round(TEST_SHARE * len(tokens)))
    is_test = np.arange(len(tokens)) >= len(tokens) - tested
    is_learn = tokens < tokens[-tested] - GAP_TOKENS
    return prefill.blocks(is_test, group), prefill.blocks(is_learn, group)
