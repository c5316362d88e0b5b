"""What insertion costs an index and does to it: a head built whole beside the same head grown by inserts.

    ra-bench drift --data DUMP --indexes ra,qivf --tokens 1024,4096,16384

The grown index is built on all but the last keys, as many as the largest of `--tokens`, and then takes them
in blocks, on one thread, as they would leave the window of a decoding model. After each number of `--tokens`
it answers the test queries beside an index that was built whole on the same keys. All learn from the queries
before the inserted keys alone, as they would where a model decoded those, and search at one effort: the
cheapest with which the whole index of all keys reaches `--recall`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.index import Index
from ra_bench.measure import INSERT_BLOCK_TOKENS, settings_of_index
from ra_bench.registry import create, index_class, parse
from ra_bench.split import divide, to_learn
from ra_bench.truth import exact_topk, recall_of
from ra_bench.vectors import HeadVectors

K = 100


@dataclass(frozen=True)
class Answers:
    """What an index answers: recall@100 of each test query (m,), mean keys read (None where it is hidden)."""

    recalls: np.ndarray
    keys_read: float | None

    @property
    def recall(self) -> float:
        """Its mean."""
        return float(self.recalls.mean())


@dataclass(frozen=True)
class Drift:
    """One index on one head with `n` keys, `inserted` of them later than its build: whole and grown.

    `insert_us_per_token` is that of the tokens since the number of tokens before.
    """

    effort: dict[str, Any]
    settings: dict[str, Any]
    learn_queries: int
    n: int
    inserted: int
    whole: Answers
    grown: Answers
    build_whole_s: float
    build_grown_s: float
    insert_us_per_token: float


class _Task:
    """A head divided for this measurement, and its truth."""

    def __init__(self, head: HeadVectors, seed: int) -> None:
        if head.values is None or head.key_positions is None:
            raise UsageError(f"--data: drift needs values and positions, which {head.name} does not have")
        split = divide(head, seed=seed)
        self.about, self.learn = head.about, split.learn
        self.keys = np.ascontiguousarray(head.keys[split.indexed])
        self.values = np.ascontiguousarray(head.values[split.indexed])
        self.positions = head.key_positions[split.indexed]
        self.queries = np.ascontiguousarray(split.test.vectors, np.float32)
        self.exact_keys = self.keys.astype(np.float32)
        self._true: dict[int, np.ndarray] = {}

    def build(self, index: Index, n: int, known: int) -> tuple[float, int]:
        """Builds on the first `n` keys, from the queries before key `known`: seconds, and learn queries."""
        learn: np.ndarray | None = None
        about: Head = replace(self.about, key_positions=self.positions[:n])
        if index.learn_queries:
            group = self.about.group
            seen = self.learn.blocks(self.learn.positions[::group] < self.positions[known], group)
            chosen = to_learn(seen, group, index.learn_queries)
            learn = np.ascontiguousarray(chosen.vectors, np.float32)
            about = replace(about, query_positions=chosen.positions, query_heads=chosen.heads)
        started_s = time.perf_counter()
        index.build(self.keys[:n], self.values[:n], learn, about)
        return time.perf_counter() - started_s, 0 if learn is None else len(learn)

    def answer(self, index: Index, effort: dict[str, Any], n: int) -> Answers:
        """What an index of the first `n` keys answers."""
        if n not in self._true:
            self._true[n] = exact_topk(self.queries, self.keys[:n], K)[1]
        found = index.search(self.queries, K, **effort)
        recall = recall_of(self.queries, self.exact_keys, found.ids, self._true[n])
        read = found.work.keys_read
        return Answers(recall, None if read is None else float(np.mean(read)))


class HeadDrift:
    """The measurement on one head, index by index. Raises UsageError for a head that is not fit for it."""

    def __init__(self, head: HeadVectors, tokens: Sequence[int], seed: int = 0) -> None:
        self._task, self._tokens, self._seed = _Task(head, seed), sorted(set(tokens)), seed
        self.n, self.d = self._task.keys.shape
        self.key_type, self.about = str(self._task.keys.dtype), self._task.about
        self.test_queries = len(self._task.queries)
        if not self._tokens or not 0 < self._tokens[0] <= self._tokens[-1] < self.n:
            raise UsageError(
                f"--tokens must be from 1 to below the {self.n} keys of {head.name},"
                f" got {','.join(map(str, tokens))}"
            )

    def measure(self, spec: str, recall: float, threads: int) -> list[Drift]:
        """One index after each number of tokens. `threads` build; inserts take one."""
        task, first = self._task, self.n - self._tokens[-1]
        whole = create(spec, threads, self._seed)
        last_build_s, learn_queries = task.build(whole, self.n, first)
        effort, last = self._cheapest(whole, recall)
        grown = create(spec, threads, self._seed)
        build_grown_s, _ = task.build(grown, first, first)
        grown.threads = 1
        found, at = [], first
        for tokens in self._tokens:
            n = first + tokens
            insert_s = _insert(grown, task, at, n)
            if n == self.n:
                build_whole_s, answers = last_build_s, last
            else:
                part = create(spec, threads, self._seed)
                build_whole_s, _ = task.build(part, n, first)
                answers = task.answer(part, effort, n)
            found.append(
                Drift(
                    effort=effort,
                    settings=settings_of_index(whole),
                    learn_queries=learn_queries,
                    n=n,
                    inserted=tokens,
                    whole=answers,
                    grown=task.answer(grown, effort, n),
                    build_whole_s=build_whole_s,
                    build_grown_s=build_grown_s,
                    insert_us_per_token=insert_s * 1e6 / (n - at),
                )
            )
            at = n
        return found

    def _cheapest(self, whole: Index, recall: float) -> tuple[dict[str, Any], Answers]:
        """The first effort of its sweep with which it reaches the recall, or the last; and its answers."""
        for effort in whole.effort_sweep(self.n, K):
            answers = self._task.answer(whole, tried := {**effort, **whole.fixed_effort}, self.n)
            if answers.recall >= recall:
                break
        return tried, answers


def refuse_unfit(specs: Sequence[str]) -> None:
    """Raises UsageError for an index that cannot insert."""
    for spec in specs:
        if not index_class(parse(spec).name).can_insert:
            raise UsageError(f"--indexes: {spec} cannot insert")


def _insert(index: Index, task: _Task, first: int, end: int) -> float:
    """Inserts the keys from `first` to before `end`, block by block; the seconds it took."""
    started_s = time.perf_counter()
    for start in range(first, end, INSERT_BLOCK_TOKENS):
        block = slice(start, min(end, start + INSERT_BLOCK_TOKENS))
        index.insert(task.keys[block], task.values[block])
    return time.perf_counter() - started_s
