"""A layer whose old tokens lie in indexes in host memory: one `Index` a KV head.

On the device stay the sinks and the recent window (RetrievalAttention, arXiv 2409.10516, section 3.3), and
behind the window the tokens that left it and are not inserted yet: they are attended exactly. A step sends
its queries to the host, attends over the device's tokens while the CPU searches and attends over what it
found, and merges the two by their log-sum-exps; only outputs and log-sum-exps come back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ra_bench.decode.cache import DecodeLayer
from ra_bench.decode.device_attention import merge_two
from ra_bench.decode.slots import Slots
from ra_bench.decode.track import Moment
from ra_bench.errors import RunError
from ra_bench.head_pool import over_heads
from ra_bench.index import Index, Partial, Work
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS

INSERT_BLOCK_TOKENS = 64
STATIC_TOKENS = SINK_TOKENS + RECENT_TOKENS


@dataclass(frozen=True)
class Retrieval:
    """How a layer searches: `k` results a query, the effort, and the threads of one native call.

    `stored` is the type of the index's rows, to which queries are rounded too, as a dump would.
    """

    k: int
    effort: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    stored: torch.dtype = torch.float16


class IndexedLayer(DecodeLayer):
    """Sinks and recent tokens on the device, all others in `indexes`, one a KV head."""

    def __init__(
        self,
        slots: Slots,
        rows: tuple[torch.Tensor, torch.Tensor],
        indexes: Sequence[Index],
        group: int,
        retrieval: Retrieval,
    ) -> None:
        super().__init__(slots, rows)
        self.indexes = list(indexes)
        self.retrieval = retrieval
        self.works: list[Sequence[Work]] = []  # a step each
        self.inserted_tokens = 0
        self.inserted_before: list[int] = []  # a step each
        self.watcher: Any = None  # is shown each step's queries and what came of them (numpy), for tests
        heads, _, d = rows[0].shape
        device = slots.next.device
        pinned = device.type == "cuda"
        self._queries = torch.empty(heads, group, d, pin_memory=pinned)
        # Outputs, then log-sum-exps, so that both come back in one copy.
        self._found = torch.empty(heads * group * (d + 1), pin_memory=pinned)
        self._found_here = torch.empty_like(self._found, device=device)
        self._shape = (heads, group, d)
        output, lse = self._parts(self._found)
        self._partial = Partial(output.numpy(), lse.numpy(), Work())
        self.last_queries: np.ndarray = self._queries.numpy()  # (H, G, d) of the last step, scaled
        self._stateful = self.indexes[0].is_stateful

    def attend(self, queries: torch.Tensor, scale: float) -> torch.Tensor:
        """The merged attention over the device's tokens and what the indexes find."""
        self.track.mark("model")
        rounded = queries.to(self.retrieval.stored).float()
        self._queries.copy_(rounded * scale, non_blocking=True)
        sent = self.track.mark("copy")
        output, lse = self.attend_buffer(queries, scale)
        self.track.cut("gpu_attention", lambda: self._find(sent))
        self._found_here.copy_(self._found, non_blocking=True)
        merged = merge_two(output, lse, *self._parts(self._found_here))
        self.track.mark("merge")
        return merged

    def _find(self, sent: Moment) -> float:
        """The host's part: searches and attends for all heads of the layer in one call; gives its seconds.

        The device waits for it: what can be done after the step is left to `settle`.
        """
        sent.synchronize()  # spins: a thread that sleeps wakes later than the queries come
        how = self.retrieval
        started_s = time.perf_counter()
        works = type(self.indexes[0]).attend_layer(
            self.indexes, self.last_queries, how.k, self._partial, threads=how.threads, **how.effort
        )
        found_s = time.perf_counter() - started_s
        if self.rehearsing:
            return found_s
        self.works.append(works)
        self.inserted_before.append(self.inserted_tokens)
        if self._stateful:
            for index, rows in zip(self.indexes, self.last_queries, strict=True):
                index.observe(rows)
        if self.watcher is not None:
            self.watcher(self, self.last_queries, self._partial)
        return found_s

    def settle(self) -> None:
        """Counts what the last step read; RunError where what it found is not finite."""
        self.works[-1] = list(self.works[-1])
        if not np.isfinite(self._partial.output).all() or np.isnan(self._partial.lse).any():
            raise RunError("the index gave an attention that is not finite")

    def oldest(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values (H, tokens, d) of the oldest tokens behind the sinks, as the indexes store them."""
        assert self.keys is not None
        assert self.values is not None
        block = slice(SINK_TOKENS, SINK_TOKENS + tokens)
        stored = self.retrieval.stored
        return self.keys[:, block].to(stored).cpu().numpy(), self.values[:, block].to(stored).cpu().numpy()

    def drop_oldest(self, tokens: int) -> None:
        """Closes the gap that they leave: they are in the indexes. `Slots.drop` follows."""
        filled = self.slots.filled
        for buffer in (self.keys, self.values):
            assert buffer is not None
            buffer[:, SINK_TOKENS : filled - tokens] = buffer[:, SINK_TOKENS + tokens : filled].clone()
        self.inserted_tokens += tokens

    def _parts(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads, group, d = self._shape
        outputs = heads * group * d
        return flat[:outputs].view(heads, group, d), flat[outputs:].view(heads, group)


def would_insert(layers: Sequence[IndexedLayer]) -> bool:
    """Whether the step that comes will be followed by an insertion."""
    return layers[0].slots.filled + 1 - STATIC_TOKENS >= INSERT_BLOCK_TOKENS


def insert_left(layers: Sequence[IndexedLayer]) -> float:
    """Inserts the tokens that have left the window, if they make a block; returns the seconds it took.

    All `layers` share their slots. Called between steps, while no search runs; indexes take their tokens at
    the same time, a thread each.
    """
    slots = layers[0].slots
    left = slots.filled - STATIC_TOKENS
    if left < INSERT_BLOCK_TOKENS:
        return 0.0
    started_s = time.perf_counter()
    blocks = [layer.oldest(left) for layer in layers]
    tasks = [
        (index, *rows)
        for layer, block in zip(layers, blocks, strict=True)
        for index, *rows in zip(layer.indexes, *block, strict=True)
    ]

    threads = layers[0].retrieval.threads

    def insert(number: int) -> None:
        index, keys, values = tasks[number]
        before = index.threads
        index.use_threads(max(1, threads // len(tasks)))
        index.insert(keys, values)
        index.use_threads(before)

    over_heads(insert, len(tasks), threads)
    for layer in layers:
        layer.drop_oldest(left)
    slots.drop(left)
    return time.perf_counter() - started_s
