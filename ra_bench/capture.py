"""Records queries, keys and values where a transformers model hands them to its attention function.

`observed` puts an attention function of our own before the model's; no model file is patched. `probe` learns
from a short input what the layers do. `Recorder` copies what a prefill and decode steps make off the model's
device, block by block, to `BackgroundWriter`, which writes while the model goes on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ra_bench.attention_hook import attending, check_logits, implementation, own_attention
from ra_bench.errors import UsageError
from ra_bench.rope import PROBE_TOKENS, Rotation, find_rotation, watch_unrotated_keys

ATTENTION_NAME = "ra_bench_capture"

# Called with the attention module, q (1, heads, n, d), k and v (1, H, n', d), and the keyword arguments.
Observe = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], None]


@contextmanager
def observed(model: Any, observe: Observe) -> Iterator[None]:
    """While it lasts, `observe` sees each attention call of `model`, which computes what it always does."""
    original = implementation(model)

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        observe(module, query, key, value, kwargs)
        function = own_attention(module, original)
        return function(module, query, key, value, attention_mask, **kwargs)

    with attending(model, ATTENTION_NAME, attention, ALL_MASK_ATTENTION_FUNCTIONS[original]):
        yield


@dataclass(frozen=True)
class LayerFacts:
    """What a layer's attention turned out to be. `window` is in tokens, None for full attention."""

    num_kv_heads: int
    group: int
    head_dim: int
    softmax_scale: float
    window: int | None
    rotation: Rotation


@torch.inference_mode()
def probe(model: Any, layers: tuple[int, ...], vocabulary: int) -> dict[int, LayerFacts]:
    """Runs a few tokens and tells what the attention of `layers` does.

    Raises UsageError where a layer cannot be recorded, or where q·k would not be its attention logit.
    """
    seen: dict[int, tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]] = {}

    def observe(module: torch.nn.Module, *arguments: Any) -> None:
        layer = getattr(module, "layer_idx", None)
        if layer in layers:
            seen[layer] = (module, *arguments)

    ids = torch.arange(1, PROBE_TOKENS + 1, device=model.device)[None] * 7 % vocabulary
    with observed(model, observe), watch_unrotated_keys(model) as unrotated:
        model(ids, use_cache=False)
    facts = {}
    for layer in layers:
        if layer not in seen:
            raise UsageError(
                f"--model: layer {layer} does not attend through transformers' attention interface"
            )
        module, query, key, value, kwargs = seen[layer]
        facts[layer] = _facts(model, layer, module, query, key, value, kwargs, unrotated.get(module, {}))
    return facts


def _facts(
    model: Any,
    layer: int,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kwargs: dict[str, Any],
    unrotated: dict[str, torch.Tensor],
) -> LayerFacts:
    check_logits(layer, kwargs)
    if value.shape != key.shape:
        raise UsageError(
            f"--model: layer {layer} has keys {tuple(key.shape)} and values {tuple(value.shape)}"
        )
    scale = kwargs.get("scaling")
    return LayerFacts(
        num_kv_heads=key.shape[1],
        group=query.shape[1] // key.shape[1],
        head_dim=key.shape[-1],
        softmax_scale=float(key.shape[-1] ** -0.5 if scale is None else scale),
        window=kwargs.get("sliding_window"),
        rotation=find_rotation(model, module, key, unrotated),
    )


@dataclass(frozen=True)
class Block:
    """What one forward gave of one layer, for the KV heads recorded: float16 or float32, on the host.

    `keys` and `values` (heads, n, d) start at token `start`; `queries` (heads, m, G, d) belong to the tokens
    `query_positions` (m,). `step` is None for the prefill.
    """

    layer: int
    start: int
    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    query_positions: np.ndarray
    step: int | None


class Recorder:
    """Makes a `Block` of each layer to record, of what `prefill` tells it, then of each decode step.

    `start` and `step` are set before each step. `group` is G, the query heads of a KV head. Of the prefill's
    queries those of `kept_tokens` are taken.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        kv_heads: tuple[int, ...],
        group: int,
        query_stride: int,
        dtype: str,
        writer: BackgroundWriter,
        learn_share: float = 1.0,
    ) -> None:
        self.start = 0
        self.step: int | None = None
        self._layers = frozenset(layers)
        self._kv_heads = list(kv_heads)
        self._group = group
        self._query_stride, self._learn_share = query_stride, learn_share
        self._dtype = getattr(torch, dtype)
        self._writer = writer
        self._queries: list[np.ndarray] = []  # (heads, m, G, d) of each chunk of the layer that runs

    def record_layers(self, layers: tuple[int, ...]) -> None:
        """From now on these layers are taken."""
        self._layers = frozenset(layers)

    def prefill_queries(self, layer: int, start: int, queries: torch.Tensor) -> None:
        """Takes a chunk's queries (H·G, m, d), the first at token `start`."""
        if layer not in self._layers:
            return
        if start == 0:
            self._writer.wait_for_room()  # before the copies: at most two layers lie on the host
        kept = kept_tokens(start, queries.shape[1], self._query_stride, self._learn_share) - start
        rows = self._of_heads(queries)[:, torch.from_numpy(kept).to(queries.device)]
        self._queries.append(self._to_host(rows))

    def prefill_keys(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Takes the layer's keys and values (H, n, d); its queries are there already."""
        if layer not in self._layers:
            return
        tokens = kept_tokens(0, keys.shape[1], self._query_stride, self._learn_share)
        first = self._queries[0]
        queries = np.empty((len(first), len(tokens), *first.shape[2:]), first.dtype)
        filled = 0
        while self._queries:  # each chunk goes as it is copied: a layer's queries lie on the host once
            chunk = self._queries.pop(0)
            queries[:, filled : filled + chunk.shape[1]] = chunk
            filled += chunk.shape[1]
        self._put(layer, keys, values, queries, tokens)

    def decoded(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _: dict[str, Any],
    ) -> None:
        """Takes what one layer attended with in a decode step; a cache gives the earlier keys too."""
        if module.layer_idx not in self._layers:
            return
        self._writer.wait_for_room()
        tokens = query.shape[2]
        queries = self._to_host(self._of_heads(query[0]))
        positions = np.arange(self.start, self.start + tokens)
        self._put(int(module.layer_idx), key[0, :, -tokens:], value[0, :, -tokens:], queries, positions)

    def _put(
        self,
        layer: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        queries: np.ndarray,
        positions: np.ndarray,
    ) -> None:
        self._writer.put(
            Block(
                layer=layer,
                start=self.start,
                keys=self._to_host(keys[self._kv_heads]),
                values=self._to_host(values[self._kv_heads]),
                queries=queries,
                query_positions=positions.astype(np.int32),
                step=self.step,
            )
        )

    def _of_heads(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries (H·G, m, d) as (heads, m, G, d), of the KV heads recorded."""
        return queries.unflatten(0, (-1, self._group))[self._kv_heads].transpose(1, 2)

    def _to_host(self, vectors: torch.Tensor) -> np.ndarray:
        return vectors.to(self._dtype).cpu().contiguous().numpy()


def kept_tokens(start: int, count: int, stride: int, share: float = 1.0) -> np.ndarray:
    """Which of the tokens [start, start + count) keep their queries: each stride-th, or an even share."""
    tokens = np.arange(start, start + count, dtype=np.int64)
    if share < 1.0:
        return tokens[np.floor((tokens + 1) * share) > np.floor(tokens * share)]
    return tokens[tokens % stride == 0]


class BackgroundWriter:
    """One thread that hands blocks to `write`, in order. Its first error stops the run at the next block.

    A context: it waits for the blocks to be written, or drops them where the run failed.
    """

    def __init__(self, write: Callable[[Block], None], most_blocks: int = 2) -> None:
        self._write = write
        self._room = threading.Semaphore(most_blocks)
        self._blocks: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="dump-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._dropping = error_type is not None
        self._blocks.put(None)
        self._thread.join()
        if error_type is None:
            self._raise_error()

    def wait_for_room(self) -> None:
        """Returns when fewer than `most_blocks` are unwritten; raises the writer's error, if it has one."""
        while not self._room.acquire(timeout=0.2):
            self._raise_error()
        self._raise_error()

    def put(self, block: Block) -> None:
        """Queues a block; `wait_for_room` comes before each."""
        self._blocks.put(block)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (block := self._blocks.get()) is not None:
            try:
                if self._error is None and not self._dropping:
                    self._write(block)
            except BaseException as error:  # raised again in the thread that runs the model
                self._error = error
            finally:
                del block  # its memory goes before the next one is let in
                self._room.release()
