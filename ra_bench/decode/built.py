"""The indexes of one spec over all indexed layers of a sample: built once, restored between runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ra_bench.attention import best_device
from ra_bench.decode.indexed import IndexedLayer, would_insert
from ra_bench.decode.prefilled import Prefilled
from ra_bench.head import Head
from ra_bench.index import Index
from ra_bench.registry import Spec, create
from ra_bench.snapshot import Snapshot


class Built:
    """One index a layer and KV head, in `indexes[layer]`."""

    def __init__(self, spec: Spec, layers: Sequence[int], threads: int, seed: int) -> None:
        self.spec = spec.without_effort()  # it belongs to a run
        self.layers = list(layers)
        self.threads = threads
        self.seed = seed
        self.indexes: dict[int, list[Index]] = {}
        self.build_s = 0.0
        self.knn_s = 0.0
        self.ready_s = 0.0
        self.learn_queries = 0
        self._snapshot: Snapshot | None = None
        self._is_changed = False  # by a run, since they were built or restored

    def build(self, prefilled: Prefilled, learn_sizes: Mapping[int, int]) -> None:
        """Builds all layers, one after the other, each with all threads.

        Exact neighbours of the next layer are found meanwhile where there is a GPU; their time is
        apart, and `ready_s` is that from the prefill to the last index, with what an earlier build had found
        already.
        `learn_sizes` tells how many exact neighbours there are for each number of learn queries.
        """
        self.build_s = 0.0
        wish = create(self.spec)
        most = learn_sizes.get(wish.learn_queries, 0) if wish.learn_neighbors else 0

        def inputs(layer: int) -> Any:
            return prefilled.index_inputs(layer, wish.learn_queries, most, wish.key_neighbors)

        found_s = prefilled.knn_s(wish.learn_queries) if most else 0.0
        on_gpu = best_device() == "cuda"
        began_s = time.perf_counter()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(inputs, self.layers[0])
            for layer, following in zip(self.layers, [*self.layers[1:], None], strict=True):
                keys, values, queries, abouts = coming.result()
                if following is not None and on_gpu:  # on the CPU it would take cores from the build
                    coming = ahead.submit(inputs, following)
                self.indexes[layer] = self._build_layer(keys, values, queries, abouts)
                self.learn_queries = 0 if queries is None else len(queries[0])
                if following is not None and not on_gpu:
                    coming = ahead.submit(inputs, following)
        self.ready_s = found_s + time.perf_counter() - began_s
        wanted = wish.learn_queries if most else 0
        self.knn_s = prefilled.knn_s(wanted, wish.key_neighbors)
        self._snapshot = Snapshot(self._all, lambda: self._rebuild(prefilled, learn_sizes))

    def _build_layer(
        self,
        keys: list[np.ndarray],
        values: list[np.ndarray],
        queries: list[np.ndarray] | None,
        abouts: list[Head],
    ) -> list[Index]:
        each = max(1, self.threads // len(keys))
        indexes = [create(self.spec, each, self.seed) for _ in keys]
        indexes[0].warm_up(keys[0].shape[1])
        started_s = time.perf_counter()
        type(indexes[0]).build_layer(indexes, keys, values, queries, abouts, self.threads)
        self.build_s += time.perf_counter() - started_s
        return indexes

    @property
    def can_insert(self) -> bool:
        """Whether tokens that leave the window can join the indexes."""
        return all(index.can_insert for index in self._all)

    @property
    def host_bytes(self) -> int:
        """Host memory of the indexes beyond the rows."""
        return sum(index.nbytes.host for index in self._all)

    @property
    def tokens(self) -> int:
        """Keys in each index."""
        return len(self._all[0].keys)

    @property
    def is_stateful(self) -> bool:
        """Whether decoding changes the indexes even if nothing is inserted."""
        return any(index.is_stateful for index in self._all)

    def lend(self, more: bool = True) -> Callable[[Sequence[IndexedLayer]], None]:
        """Begins a run: the indexes are as they were built, whatever the last run did and however it ended.

        Gives what is to be called before each step with the layers of the run's cache. Insertions and
        observations are undone when the next run begins: from what was saved before the first of them, if
        `more` runs were to follow, or else by building anew. All of it is on nobody's time.
        """
        assert self._snapshot is not None
        snapshot, inserts = self._snapshot, self.can_insert
        if self._is_changed:
            snapshot.restore()
            self._is_changed = False
            snapshot = self._snapshot  # another, if they were built anew

        def before_change() -> None:
            if more and not self._is_changed:
                snapshot.save()
            self._is_changed = True

        def before_step(layers: Sequence[IndexedLayer]) -> None:
            if inserts and would_insert(layers):
                before_change()

        if self.is_stateful:
            before_change()  # now: the first step is observed already
        return before_step

    def _rebuild(self, prefilled: Prefilled, learn_sizes: Mapping[int, int]) -> None:
        times = self.build_s, self.knn_s, self.ready_s
        self.build(prefilled, learn_sizes)
        self.build_s, self.knn_s, self.ready_s = times

    def choose_effort(
        self, prefilled: Prefilled, k: int, least_share: float, fixed: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The cheapest setting of the sweep that reads `least_share` of the keys a query, or the dearest.

        Tried with the queries of the prompt's last tokens, on one head of a few layers. What is `fixed` stays
        as it is, and is all where the method hides what it reads.
        """
        layers = self.layers[:: max(1, len(self.layers) // 4)]
        tries = [(self.indexes[layer][0], prefilled.last_queries(layer, 0)) for layer in layers]
        swept = [{**effort, **fixed} for effort in tries[0][0].effort_sweep(self.tokens, k)]
        efforts = [effort for place, effort in enumerate(swept) if effort not in swept[:place]]
        if len(efforts) == 1:
            return efforts[0]
        for effort in efforts:
            answers = [
                (index.search if index.has_search else index.attend, queries) for index, queries in tries
            ]
            works = [answer(queries, k, **effort).work.keys_read for answer, queries in answers]
            if any(work is None for work in works):
                return dict(fixed)
            if np.mean([np.mean(work) for work in works if work is not None]) >= least_share * self.tokens:
                return effort
        return efforts[-1]

    def close(self) -> None:
        """Removes what `save` kept."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None  # it knows how to build again, and so holds this object and the sample

    @property
    def _all(self) -> list[Index]:
        return [index for layer in self.layers for index in self.indexes[layer]]
