"""How a layer's call gains from cores: `python -m ra_bench.layer_scaling --data DUMP --indexes ra,qivf`.

One index a head, all heads of a decoded token in one `attend_layer`, as live decoding calls it, on 1, 2, 4 …
threads. Where a call reads random rows, the machine's own rate of such reads bounds it and stands beside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from ra_bench.arguments import check_threads
from ra_bench.cli_common import run_verb
from ra_bench.data import open_data
from ra_bench.datasets.sample import sample_path
from ra_bench.errors import UsageError
from ra_bench.hardware import core_count
from ra_bench.index import Index, Partial, Work
from ra_bench.machine import random_read_gb_per_s, thread_counts
from ra_bench.registry import create
from ra_bench.registry import split as split_specs
from ra_bench.split import divide, to_learn
from ra_bench.truth import exact_topk, recall_of
from ra_bench.vectors import HeadVectors

PASS_S = 1.0  # a thread count is measured for about this long
TRIED_TOKENS = 16


class Rate(NamedTuple):
    """A layer's call on `threads`: its median time, and the bytes it read over that time (None: hidden)."""

    threads: int
    call_us: float
    gb_per_s: float | None


class Layer:
    """`heads` indexes of one spec over the heads of a data set, taken in turn, and the tokens they answer."""

    def __init__(
        self, spec: str, data: Sequence[HeadVectors], heads: int, threads: int, seed: int = 0
    ) -> None:
        splits = [divide(head, seed=seed) for head in data]
        self.indexes: list[Index] = [create(spec, 1, seed) for _ in range(heads)]
        group = data[0].about.group
        wish = self.indexes[0].learn_queries
        keys, values, learn, about, tokens = [], [], [], [], []
        for h in range(heads):
            head, split = data[h % len(data)], splits[h % len(data)]
            if head.values is None or head.about.group != group:
                raise UsageError(f"--data: heads of a layer have values and as many query heads; {head.name}")
            keys.append(np.ascontiguousarray(head.keys[split.indexed]))  # a copy a head: no two share a cache
            values.append(np.ascontiguousarray(head.values[split.indexed]))
            positions = None if head.key_positions is None else head.key_positions[split.indexed]
            chosen = to_learn(split.learn, group, wish)
            learn.append(np.ascontiguousarray(chosen.vectors, np.float32))
            about.append(
                replace(
                    head.about,
                    key_positions=positions,
                    query_positions=chosen.positions,
                    query_heads=chosen.heads,
                )
            )
            tokens.append(np.asarray(split.test.vectors, np.float32).reshape(-1, group, keys[-1].shape[1]))
        least = min(map(len, tokens))
        self.tokens = np.ascontiguousarray(np.stack([rows[:least] for rows in tokens], axis=1))
        type(self.indexes[0]).build_layer(self.indexes, keys, values, learn if wish else None, about, threads)
        shape = self.tokens.shape[1:]
        self.out = Partial(np.empty(shape, np.float32), np.empty(shape[:2], np.float32), Work())

    @property
    def bytes(self) -> int:
        """Keys and values of all heads: what random reads spread over."""
        return sum(index.keys.nbytes + index.values_to_attend.nbytes for index in self.indexes)

    def effort(self, k: int, recall: float) -> dict:
        """The cheapest setting with which the heads reach `recall`@k on average, or the dearest."""
        tokens = self.tokens[:TRIED_TOKENS]
        queries = [
            np.ascontiguousarray(tokens[:, h]).reshape(-1, tokens.shape[-1]) for h in range(tokens.shape[1])
        ]
        exact = [index.keys.astype(np.float32) for index in self.indexes]
        true = [exact_topk(rows, keys, k)[1] for rows, keys in zip(queries, exact, strict=True)]
        first = self.indexes[0]
        efforts = [{**effort, **first.fixed_effort} for effort in first.effort_sweep(len(exact[0]), k)]
        for effort in efforts:
            found = []
            for index, rows, keys, best in zip(self.indexes, queries, exact, true, strict=True):
                ids = index.search(rows, k, **effort).ids
                found.append(recall_of(rows, keys, ids, best).mean())
            if np.mean(found) >= recall:
                return effort
        return efforts[-1]

    def rate(self, k: int, threads: int, effort: dict) -> Rate:
        """Calls of one token each, all tokens in turn."""
        kind = type(self.indexes[0])
        times: list[float] = []
        read: list[float | None] = []
        end = time.perf_counter() + PASS_S
        while time.perf_counter() < end or len(times) < len(self.tokens):
            token = self.tokens[len(times) % len(self.tokens)]
            start = time.perf_counter()
            works = kind.attend_layer(self.indexes, token, k, self.out, threads, **effort)
            times.append(time.perf_counter() - start)
            read.append(_bytes_read(works))
        known = [one for one in read if one is not None]
        call_s = float(np.median(times))
        return Rate(threads, call_s * 1e6, float(np.mean(known)) / call_s / 1e9 if known else None)


def _bytes_read(works: Sequence[Work]) -> float | None:
    """Of one call, over all heads and queries."""
    read = [work.bytes_read for work in works]
    return (
        None if any(one is None for one in read) else float(sum(one.sum() for one in read if one is not None))
    )


def lines(spec: str, layer: Layer, k: int, recall: float, cores: int) -> Iterator[str]:
    """The table of one index, line by line as it is measured."""
    effort = layer.effort(k, recall)
    row_bytes = layer.indexes[0].keys.shape[1] * layer.indexes[0].keys.itemsize
    heads, group = layer.tokens.shape[1:3]
    n = len(layer.indexes[0].keys)
    yield f"{spec}: {heads} heads x {group} queries, {n:,} keys a head, k={k}, {effort or 'no effort'}"
    yield "threads   µs a call   of one core   of it a thread   GB/s read   random reads GB/s"
    one = layer.rate(k, 1, effort)
    for threads in thread_counts(cores):
        rate = one if threads == 1 else layer.rate(k, threads, effort)
        gain = one.call_us / rate.call_us
        read = "–" if rate.gb_per_s is None else f"{rate.gb_per_s:.1f}"
        ceiling = random_read_gb_per_s(threads, row_bytes, layer.bytes)
        yield f"{threads:7}{rate.call_us:12.1f}{gain:14.2f}{gain / threads:17.2f}{read:>12}{ceiling:20.1f}"


def main(
    indexes: Annotated[str, typer.Option(help="Specs, separated by commas.")] = "ra,qivf",
    data: Annotated[Path | None, typer.Option(help="A data set. Default: the built-in sample.")] = None,
    heads: Annotated[int, typer.Option(help="Heads of the layer; those of the data are taken in turn.")] = 16,
    k: Annotated[int, typer.Option(help="Results a query.")] = 100,
    recall: Annotated[float, typer.Option(help="Recall that the effort has to reach.")] = 0.95,
    threads: Annotated[int | None, typer.Option(help="Most threads. Default: all cores.")] = None,
) -> None:
    """Prints, for each index, the time of a layer's call on 1, 2, 4 … threads."""
    cores = core_count() if threads is None else threads
    check_threads(cores)
    for name, value in (("--heads", heads), ("--k", k)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not 0 < recall <= 1:
        raise UsageError(f"--recall must be above 0, at most 1, got {recall:g}")
    opened = open_data(str(sample_path() if data is None else data))
    vectors = [opened.load(name) for name in opened.heads]
    for spec in split_specs(indexes):
        for line in lines(spec, Layer(spec, vectors, heads, cores), k, recall, cores):
            print(line, flush=True)
        print(flush=True)


if __name__ == "__main__":
    run_verb(main)
