"""Records queries, keys and values where a transformers model hands them to its attention function.

`observed` puts an attention function of our own before the model's; no model file is patched. `probe` learns
from a short input what the layers do. `Recorder` copies what a run makes off the model's device, block by
block, to `BackgroundWriter`, which writes while the model goes on.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ra_bench.errors import UsageError
from ra_bench.rope import PROBE_TOKENS, Rotation, find_rotation, watch_unrotated_keys

ATTENTION_NAME = "ra_bench_capture"

# What an attention layer passes beside q, k and v that would make q·k something other than the logit.
_REFUSED = {
    "softcap": "attention soft-cap",
    "s_aux": "learned attention sinks",
    "position_bias": "position bias",
}

# Called with the attention module, q (1, heads, n, d), k and v (1, H, n', d), and the keyword arguments.
Observe = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], None]


@contextmanager
def observed(model: Any, observe: Observe) -> Iterator[None]:
    """While it lasts, `observe` sees each attention call of `model`, which computes what it always does.

    The mask function must be registered with the attention function: without one transformers makes no mask
    at all and, for an attention that does not know `is_causal`, drops causality without a word.
    """
    original = model.config.get_text_config(decoder=True)._attn_implementation

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        observe(module, query, key, value, kwargs)
        source = sys.modules[type(module).__module__]  # a model file may have an interface of its own
        functions = getattr(source, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
        function = functions.get(original, getattr(source, "eager_attention_forward", None))
        return function(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(ATTENTION_NAME, attention)
    AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS[original])
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(original)


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
    for name, what in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise UsageError(f"--model: layer {layer} has {what}: not supported yet")
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
    """Makes a `Block` of each call of the layers to record. `start` and `step` are set before a forward."""

    def __init__(
        self,
        layers: tuple[int, ...],
        kv_heads: tuple[int, ...],
        query_stride: int,
        dtype: str,
        writer: BackgroundWriter,
    ) -> None:
        self.start = 0
        self.step: int | None = None
        self._layers = frozenset(layers)
        self._kv_heads = list(kv_heads)
        self._query_stride = query_stride
        self._dtype = getattr(torch, dtype)
        self._writer = writer

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _: dict[str, Any],
    ) -> None:
        if module.layer_idx not in self._layers:
            return
        self._writer.wait_for_room()  # before the copy: at most two layers lie on the host
        tokens, dim = query.shape[2], query.shape[3]
        stride = self._query_stride if self.step is None else 1
        grouped = query[0].view(key.shape[1], -1, tokens, dim)[self._kv_heads, :, ::stride]
        self._writer.put(
            Block(
                layer=int(module.layer_idx),
                start=self.start,
                keys=self._to_host(key[0, self._kv_heads, -tokens:]),  # a cache gives the earlier ones too
                values=self._to_host(value[0, self._kv_heads, -tokens:]),
                queries=self._to_host(grouped.transpose(1, 2)),
                query_positions=np.arange(self.start, self.start + tokens, stride, dtype=np.int32),
                step=self.step,
            )
        )

    def _to_host(self, vectors: torch.Tensor) -> np.ndarray:
        return vectors.to(self._dtype).cpu().contiguous().numpy()


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
