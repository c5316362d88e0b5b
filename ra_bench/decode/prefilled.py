"""What one dense prefill of a sample leaves on the host: keys, values and learn queries of every layer.

All runs of the sample start from it, so that they are paired.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ra_bench.capture import Recorder
from ra_bench.dump import Session, describe
from ra_bench.head import Head
from ra_bench.prefill import prefill
from ra_bench.prompts import Document
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS, learn_tokens
from ra_bench.truth import exact_topk, nearest_keys
from ra_bench.vectors import HeadName, scaled

TRIED_TOKENS = 8  # the last of the prompt


@dataclass(frozen=True)
class LayerRows:
    """Keys and values of one layer on the host, (H, m, d) in the model's type, pinned where there is a GPU.

    `window` is that of a sliding layer, of which only the last `window` tokens are there; None: all n are,
    and `stored_keys` and `stored_values` (H, n, d) hold them in the type of the indexes too.
    """

    keys: torch.Tensor
    values: torch.Tensor
    window: int | None
    stored_keys: np.ndarray | None
    stored_values: np.ndarray | None


class Prefilled:
    """The prompt's `tokens`, its layers, and the last token's logits (1, vocab) on the model's device."""

    def __init__(self, session: Session, document: Document, tokens: int) -> None:
        self.session = session
        self.document = document
        self.tokens = tokens
        self.layers: dict[int, LayerRows] = {}
        self.logits: torch.Tensor | None = None
        self.seconds = 0.0
        self.peak_device_bytes = 0
        self._learn_tokens = np.empty(0, np.int64)  # those whose queries are kept, rising
        self._queries: dict[int, np.ndarray] = {}  # a layer's (tokens, query heads, d), as stored
        self._last: dict[int, np.ndarray] = {}  # the last tokens', for trying efforts
        self._neighbors: dict[tuple[int, int, int], np.ndarray] = {}
        self._heads: dict[int, Head] = {}
        self._knn_s: dict[tuple[int, str], float] = {}

    @property
    def indexed(self) -> slice:
        """The tokens that an index holds: those between the sinks and the recent window."""
        return slice(SINK_TOKENS, self.tokens - RECENT_TOKENS)

    def index_inputs(
        self, layer: int, wanted: int, neighbors: int, key_neighbors: int = 0
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray] | None, list[Head]]:
        """Keys, values, learn queries and heads of the layer's indexes, a KV head each.

        The same as `compare` hands them: the indexed set, and of the whole prefill `wanted` query rows,
        with their exact `neighbors` inside the index, if they are wanted; and the keys' `key_neighbors`.
        """
        rows = self.layers[layer]
        assert rows.stored_keys is not None
        assert rows.stored_values is not None
        keys = [head[self.indexed] for head in rows.stored_keys]
        values = [head[self.indexed] for head in rows.stored_values]
        abouts = [self._about(layer, head) for head in range(len(keys))]
        if key_neighbors:
            for head, about in enumerate(abouts):
                started_s = time.perf_counter()
                abouts[head] = replace(about, key_neighbors=nearest_keys(keys[head], key_neighbors))
                self._note_knn(layer, f"keys {key_neighbors}", time.perf_counter() - started_s, head == 0)
        if wanted == 0:
            return keys, values, None, abouts
        group = abouts[0].group
        tokens = learn_tokens(self.tokens, group, wanted)
        places = np.searchsorted(self._learn_tokens, tokens)
        queries = []
        for head, about in enumerate(abouts):
            mine = self._queries[layer][places, head * group : (head + 1) * group]
            rows_of_head = scaled(mine.reshape(-1, mine.shape[-1]), about.softmax_scale)
            abouts[head] = replace(
                about,
                query_positions=np.repeat(tokens, group).astype(np.int32),
                query_heads=np.tile(np.arange(head * group, (head + 1) * group, dtype=np.int16), len(tokens)),
                query_neighbors=self._nearest(layer, head, wanted, neighbors, rows_of_head, keys[head])
                if neighbors
                else None,
            )
            queries.append(rows_of_head)
        return keys, values, queries, abouts

    def last_queries(self, layer: int, head: int) -> np.ndarray:
        """The queries (m, d) of the prompt's last tokens for one KV head, scaled: to try efforts with."""
        group = self.session.layers[layer].group
        mine = self._last[layer][:, head * group : (head + 1) * group]
        return scaled(mine.reshape(-1, mine.shape[-1]), self.session.layers[layer].softmax_scale)

    def knn_s(self, wanted: int, key_neighbors: int = 0) -> float:
        """Seconds that the exact neighbours of learn queries and of keys took, over all layers.

        Those of keys are found anew for each build: they need as much memory as the keys.
        """
        counted = {f"queries {wanted}", f"keys {key_neighbors}"}
        return sum(seconds for (_, what), seconds in self._knn_s.items() if what in counted)

    def forget_neighbors(self) -> None:
        """Drops them: nothing more is built on this sample."""
        self._neighbors.clear()

    def _nearest(
        self, layer: int, head: int, wanted: int, neighbors: int, queries: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        place = (layer, head, wanted)
        if place not in self._neighbors:
            started_s = time.perf_counter()
            self._neighbors[place] = exact_topk(queries, keys, neighbors)[0]
            self._note_knn(layer, f"queries {wanted}", time.perf_counter() - started_s)
        return self._neighbors[place]

    def _note_knn(self, layer: int, what: str, seconds: float, is_first: bool = False) -> None:
        before_s = 0.0 if is_first else self._knn_s.get((layer, what), 0.0)
        self._knn_s[layer, what] = before_s + seconds

    def _about(self, layer: int, kv_head: int) -> Head:
        if layer not in self._heads:
            metadata = describe(self.session, self.document, layer)
            positions = np.arange(self.indexed.start, self.indexed.stop, dtype=np.int32)
            name = HeadName(self.document.name, layer, kv_head)
            self._heads[layer] = metadata.head(name, positions)
        return replace(self._heads[layer], kv_head=kv_head)


def prefill_sample(
    session: Session,
    document: Document,
    stored: torch.dtype,
    indexed_layers: Iterable[int],
    learn_sizes: Iterable[int],
    recorder: Recorder | None = None,
) -> Prefilled:
    """Prefills `document` and keeps what its runs need; `learn_sizes` are query rows that indexes want.

    `recorder` is shown all of the prefill, to record it as a dump.
    """
    ids = torch.from_numpy(document.token_ids)[None].to(session.model.device)
    kept = Prefilled(session, document, ids.shape[1])
    receiver = _Receiver(kept, stored, frozenset(indexed_layers), frozenset(learn_sizes), recorder)
    on_gpu = ids.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started_s = time.perf_counter()
    kept.logits = prefill(session.model, ids, receiver.receive, receiver.observe_queries)
    if on_gpu:
        torch.cuda.synchronize()
        kept.peak_device_bytes = torch.cuda.max_memory_allocated()
    kept.seconds = time.perf_counter() - started_s
    return kept


class _Receiver:
    """Takes what a prefill gives, layer by layer."""

    def __init__(
        self,
        kept: Prefilled,
        stored: torch.dtype,
        indexed_layers: frozenset[int],
        learn_sizes: frozenset[int],
        recorder: Recorder | None,
    ) -> None:
        self._kept = kept
        self._stored = stored
        self._indexed_layers = indexed_layers
        self._recorder = recorder
        group = kept.session.plan.shape.group
        chosen = [learn_tokens(kept.tokens, group, size) for size in learn_sizes if size]
        if chosen:
            kept._learn_tokens = np.unique(np.concatenate(chosen))

    def observe_queries(self, layer: int, start: int, queries: torch.Tensor) -> None:
        """Keeps the learn queries of a chunk, (query heads, tokens, d) from token `start`."""
        if self._recorder is not None:
            self._recorder.prefill_queries(layer, start, queries)
        if layer not in self._indexed_layers:
            return
        self._kept._last[layer] = queries[:, -TRIED_TOKENS:].to(self._stored).transpose(0, 1).cpu().numpy()
        learn = self._kept._learn_tokens
        first, last = np.searchsorted(learn, [start, start + queries.shape[1]])
        if len(learn):
            store = self._kept._queries.setdefault(layer, self._new_store(queries))
            here = torch.from_numpy(learn[first:last] - start).to(queries.device)
            rows = queries.index_select(1, here).to(self._stored).transpose(0, 1)
            store[first:last] = rows.cpu().numpy()

    def receive(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copies a finished layer's keys and values (H, n, d) to the host."""
        if self._recorder is not None:
            self._recorder.prefill_keys(layer, keys, values)
        window = self._kept.session.layers[layer].window
        stored: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        if window is not None:
            keys, values = keys[:, -window:], values[:, -window:]
        host_keys, host_values = _to_host(keys), _to_host(values)
        if layer in self._indexed_layers:
            if keys.dtype == self._stored:
                stored = host_keys.numpy(), host_values.numpy()
            else:
                stored = _to_numpy(keys.to(self._stored)), _to_numpy(values.to(self._stored))
        if keys.is_cuda:
            torch.cuda.current_stream().synchronize()
        self._kept.layers[layer] = LayerRows(host_keys, host_values, window, *stored)

    def _new_store(self, queries: torch.Tensor) -> np.ndarray:
        shape = (len(self._kept._learn_tokens), queries.shape[0], queries.shape[2])
        return np.empty(shape, np.float32 if self._stored == torch.float32 else np.float16)


def _to_host(rows: torch.Tensor) -> torch.Tensor:
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
    return host.copy_(rows, non_blocking=True)


def _to_numpy(rows: torch.Tensor) -> np.ndarray:
    """A copy in NumPy's own memory, which has huge pages where the system gives them: searches jump about."""
    host = np.empty(rows.shape, np.float32 if rows.dtype == torch.float32 else np.float16)
    torch.from_numpy(host).copy_(rows)
    return host
