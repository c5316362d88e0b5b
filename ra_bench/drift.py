"""What insertion costs an index and does to it: a head built whole beside the same head grown by inserts.

    ra-bench drift --data DUMP --indexes ra,qivf --tokens 16384

The grown index is built on all but the last `tokens` keys and then takes them in blocks, on one thread, as
they would leave the window of a decoding model. Both learn from the queries before those keys alone, as both
would where a model decoded them, and answer the same test queries at the cheapest effort with which the whole
one reaches `--recall`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ra_bench import metrics
from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.index import Index
from ra_bench.measure import INSERT_BLOCK_TOKENS
from ra_bench.registry import create, index_class, parse
from ra_bench.split import divide, evenly
from ra_bench.truth import exact_topk, scores_of
from ra_bench.vectors import DataSet, HeadVectors

K = 100


@dataclass(frozen=True)
class Drift:
    """One index on one head: recall@100 and share of keys read, built whole and grown, at one effort."""

    head: str
    index: str
    effort: dict[str, Any]
    recall_whole: float
    recall_grown: float
    read_whole: float
    read_grown: float
    insert_us_per_token: float


class _Task:
    """A head divided for this measurement, and its truth."""

    def __init__(self, head: HeadVectors, seed: int) -> None:
        split = divide(head, seed=seed)
        self.about, self.learn = head.about, split.learn
        self.keys = np.ascontiguousarray(head.keys[split.indexed])
        self.values = np.ascontiguousarray(head.values[split.indexed])
        self.positions = head.key_positions[split.indexed]
        self.queries = np.ascontiguousarray(split.test.vectors, np.float32)
        self.true = exact_topk(self.queries, self.keys, K)[1]
        self.exact_keys = self.keys.astype(np.float32)

    def build(self, index: Index, n: int, known: int) -> None:
        """Builds on the first `n` keys, from the queries that come before key `known`."""
        learn: np.ndarray | None = None
        about: Head = replace(self.about, key_positions=self.positions[:n])
        if index.learn_queries:
            group = self.about.group
            seen = self.learn.blocks(self.learn.positions[::group] < self.positions[known], group)
            chosen = evenly(seen, group, max(group, index.learn_queries))
            learn = np.ascontiguousarray(chosen.vectors, np.float32)
            about = replace(about, query_positions=chosen.positions, query_heads=chosen.heads)
        index.build(self.keys[:n], self.values[:n], learn, about)

    def answer(self, index: Index, effort: dict[str, Any]) -> tuple[float, float]:
        """Recall, and the share of keys read (NaN where it is hidden)."""
        found = index.search(self.queries, K, **effort)
        scores = metrics.distinct_scores(found.ids, scores_of(self.queries, self.exact_keys, found.ids))
        read = found.work.keys_read
        share = float("nan") if read is None else float(read.mean()) / len(self.keys)
        return float(metrics.recall(scores, self.true).mean()), share


def measure_drift(
    data: DataSet, specs: Sequence[str], tokens: int, recall: float, threads: int, seed: int = 0
) -> Iterator[Drift]:
    """Every index on every head of `data`. `threads` build; inserts take one thread.

    Raises UsageError for an index that cannot insert, or a head with no more than `tokens` keys.
    """
    for spec in specs:
        if not index_class(parse(spec).name).can_insert:
            raise UsageError(f"--indexes: {spec} cannot insert")
    for name in data.heads:
        task = _Task(data.load(name), seed)
        n = len(task.keys)
        if not 0 < tokens < n:
            raise UsageError(f"--tokens must be from 1 to below the {n} keys of {name}, got {tokens}")
        for spec in specs:
            whole = create(spec, threads, seed)
            task.build(whole, n, n - tokens)
            sweep = [{**effort, **whole.fixed_effort} for effort in whole.effort_sweep(n, K)]
            for effort in sweep:
                recall_whole, read_whole = task.answer(whole, effort)
                if recall_whole >= recall:
                    break
            grown = create(spec, threads, seed)
            task.build(grown, n - tokens, n - tokens)
            grown.threads = 1
            insert_s = _insert(grown, task, n - tokens)
            recall_grown, read_grown = task.answer(grown, effort)
            us = insert_s * 1e6 / tokens
            yield Drift(str(name), spec, effort, recall_whole, recall_grown, read_whole, read_grown, us)


def _insert(index: Index, task: _Task, first: int) -> float:
    """Inserts the keys from `first` on, block by block; the seconds it took."""
    started_s = time.perf_counter()
    for start in range(first, len(task.keys), INSERT_BLOCK_TOKENS):
        block = slice(start, start + INSERT_BLOCK_TOKENS)
        index.insert(task.keys[block], task.values[block])
    return time.perf_counter() - started_s


def table(rows: Iterable[Drift]) -> Iterator[str]:
    """A line for the heading, then one for each row as it comes."""
    yield f"{'head':24} {'index':12} recall: whole  grown   keys read: whole  grown   insert µs/token  effort"
    for row in rows:
        yield (
            f"{row.head:24} {row.index:12} {row.recall_whole:13.4f} {row.recall_grown:6.4f}"
            f" {row.read_whole:18.2%} {row.read_grown:6.2%} {row.insert_us_per_token:17.1f}  {row.effort}"
        )
