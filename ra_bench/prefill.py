"""Exact dense prefill in bounded memory: layer after layer over the whole prompt, in chunks of tokens.

The model's own forward runs once, so embeddings, rotary embeddings and masks are its own; each decoder layer
in it runs chunk by chunk, every chunk against the layer's keys and values up to its own end. At a time there
are the hidden states (n, hidden), one layer's keys and values, and what one chunk needs; never a cache of all
layers, a mask (n, n), or an MLP over the whole prompt.

    logits = prefill(model, ids, receive=lambda layer, keys, values: ...)    # ids (1, n); keys (H, n, d)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import causal_mask_function

from ra_bench.attention_hook import attending, check_logits
from ra_bench.errors import UsageError

CHUNK_TOKENS = 2048

Receive = Callable[[int, torch.Tensor, torch.Tensor], None]
ObserveQueries = Callable[[int, int, torch.Tensor], None]


@torch.inference_mode()
def prefill(
    model: Any,
    ids: torch.Tensor,
    receive: Receive,
    observe_queries: ObserveQueries | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    cache: DynamicCache | None = None,
) -> torch.Tensor:
    """Runs `model` over the prompt `ids` (1, n) and returns the last token's logits (1, vocab).

    `receive(layer, keys, values)` gets each attention layer's keys and values (H, n, d) after the rotary
    embedding, on the model's device, before the next layer runs; they are then dropped here, but stay whole
    for a receiver that keeps them. `observe_queries(layer, start, queries)` gets each chunk's queries
    (H·G, tokens, d), after the rotary embedding and not scaled. An empty `cache` is left as a plain forward
    leaves it, ready for decoding. Layers with a recurrent state run in one piece.

    Raises UsageError for other than one prompt, and for models whose logits are not q·k.
    """
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0:
        raise UsageError(f"ids must be one prompt (1, n) of at least one token, got {tuple(ids.shape)}")
    if chunk_tokens < 1:
        raise UsageError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    run = _Prefill(model, ids.shape[1], receive, observe_queries, chunk_tokens, cache)
    with attending(model, "ra_bench_prefill", run.attend, run.mask), run.replaced_layers():
        logits: torch.Tensor = model(input_ids=ids, past_key_values=run.cache, use_cache=True).logits
    return logits[:, -1]


@dataclass(frozen=True)
class _Mask:
    """A mask not made: which keys a query sees, as transformers' mask functions tell it by indices."""

    sees: Callable[..., torch.Tensor]


class _PromptLayer(DynamicLayer):
    """One layer's keys and values, in room for the whole prompt: nothing is copied as the chunks come."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._filled = 0
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a chunk (1, H, m, d); returns keys and values so far."""
        chunk = key_states, value_states
        if self._room is None:
            key_room, value_room = (
                rows.new_empty(*rows.shape[:2], self._tokens, rows.shape[3]) for rows in chunk
            )
            self._room = key_room, value_room
        start, self._filled = self._filled, self._filled + key_states.shape[2]
        for room, rows in zip(self._room, chunk, strict=True):
            room[:, :, start : self._filled] = rows
        keys, values = self._room
        return keys[:, :, : self._filled], values[:, :, : self._filled]

    def drop(self) -> None:
        """Lets the keys and values go."""
        self._room = None

    def get_seq_length(self) -> int:
        """Tokens so far, dropped ones too."""
        return self._filled


class _Prefill:
    """One run: what stands in for the model's attention, its masks and the forward of its layers."""

    def __init__(
        self,
        model: Any,
        tokens: int,
        receive: Receive,
        observe_queries: ObserveQueries | None,
        chunk_tokens: int,
        cache: DynamicCache | None,
    ) -> None:
        self._layers = decoder_layers(model)
        self._tokens = tokens
        self._receive = receive
        self._observe_queries = observe_queries
        self._chunk_tokens = chunk_tokens
        self._kept = cache
        self._start = 0  # of the chunk that runs
        self._attended: tuple[torch.Tensor, torch.Tensor] | None = None
        self.cache = DynamicCache(config=model.config)
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        source = self.cache if cache is None else cache
        self.cache.layers = [
            _PromptLayer(tokens) if type(layer) in plain else layer for layer in source.layers
        ]

    def mask(self, *_: Any, mask_function: Callable[..., torch.Tensor], **__: Any) -> _Mask:
        """Stands in for the function that makes masks (n, n)."""
        return _Mask(mask_function)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: _Mask | None,
        scaling: float | None = None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of a chunk's queries (1, H·G, m, d) over the keys up to its end: (1, m, H·G, d)."""
        layer = int(module.layer_idx)
        check_logits(layer, arguments)
        if self._observe_queries is not None:
            self._observe_queries(layer, self._start, query[0])
        end = self._start + query.shape[2]
        keys, values = key[0, :, :end], value[0, :, :end]  # another layer's, where shared, are there whole
        self._attended = keys, values
        sees = causal_mask_function if attention_mask is None else attention_mask.sees
        output = chunk_attention(query[0], keys, values, sees, scaling)
        return output.transpose(0, 1)[None], None

    @contextmanager
    def replaced_layers(self) -> Iterator[None]:
        """While it lasts, each decoder layer runs chunk by chunk."""
        originals = [layer.__dict__.get("forward") for layer in self._layers]
        for number, layer in enumerate(self._layers):
            layer.forward = functools.partial(self._run_layer, number, layer.forward)
        try:
            yield
        finally:
            for layer, original in zip(self._layers, originals, strict=True):
                if original is None:
                    del layer.forward
                else:
                    layer.forward = original

    def _run_layer(
        self, layer: int, forward: Callable[..., Any], hidden: torch.Tensor, *arguments: Any, **named: Any
    ) -> Any:
        """The layer's own `forward`, chunk by chunk; each chunk's output takes the place of its input."""
        tokens = self._tokens
        in_chunks = self._is_shared(layer) or isinstance(self.cache.layers[layer], _PromptLayer)
        chunk_tokens = min(self._chunk_tokens, tokens) if in_chunks else tokens
        out: Any = None
        for start in range(0, tokens, chunk_tokens):
            self._start = start
            count = min(chunk_tokens, tokens - start)
            part = functools.partial(_rows, start=start, count=count, tokens=tokens)
            rows = hidden.narrow(-2, start, count)
            out = forward(rows, *part(arguments), **part(named))
            rows.copy_(out[0] if isinstance(out, tuple) else out)
        self._deliver(layer)
        if layer == len(self._layers) - 1:
            hidden = hidden.narrow(
                -2, tokens - 1, 1
            )  # what follows, norm and logits, needs the last token only
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    def _is_shared(self, layer: int) -> bool:
        """Whether the layer has no state of its own: it attends with another's keys, or not at all."""
        layers = self.cache.layers
        return layer >= len(layers) or not hasattr(layers[layer], "lazy_initialization")

    def _deliver(self, layer: int) -> None:
        """Hands the layer's keys and values on, and drops them."""
        if self._attended is None:
            return
        (keys, values), self._attended = self._attended, None
        if not self._is_shared(layer) and isinstance(held := self.cache.layers[layer], _PromptLayer):
            held.drop()
            if self._kept is not None:
                self._kept.update(keys[None], values[None], layer)
        self._receive(layer, keys, values)


def chunk_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sees: Callable[..., torch.Tensor] = causal_mask_function,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of the last m tokens' `queries` (H·G, m, d) over `keys` and `values` (H, n, d): (H·G, m, d).

    `sees(batch, head, query, key)` is a mask function of transformers. Causal attention makes no mask where a
    fused kernel knows one that ends at the lower right; any other makes it (m, w) over the w keys from the
    first that the first query sees, which is a window's, and moves only forward.
    """
    heads, n, _ = keys.shape
    tokens = queries.shape[1]
    mask: Any
    if sees is causal_mask_function:
        mask = causal_lower_right(tokens, n)
    else:
        index = torch.arange(n, device=keys.device).view(1, 1, 1, n)
        zero = index[..., :1]
        first = int(sees(zero, zero, zero + n - tokens, index).int().argmax())
        keys, values, index = keys[:, first:], values[:, first:], index[..., first:]
        rows = torch.arange(n - tokens, n, device=keys.device).view(1, 1, tokens, 1)
        mask = sees(zero, zero, rows, index).expand(1, 1, tokens, n - first)
    # A KV head is an entry of the batch, and its group's query heads share one key head, which is there once:
    # a kernel need not know grouped queries, and no key is copied.
    group = len(queries) // heads
    grouped = (heads, group, -1, -1)
    output: torch.Tensor = scaled_dot_product_attention(
        queries.unflatten(0, (heads, group)),
        keys[:, None].expand(grouped),
        values[:, None].expand(grouped),
        mask,
        scale=scale,
    )
    return output.flatten(0, 1)


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The decoder layers of a causal language model, in order; raises UsageError where they are not found."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    raise UsageError(f"--model: {type(model).__name__} has no list of its {count} decoder layers")


def _rows(value: Any, start: int, count: int, tokens: int) -> Any:
    """A chunk of what a layer is given: of every tensor that has an axis of all tokens, the chunk's rows."""
    if count == tokens:
        return value
    if isinstance(value, torch.Tensor) and tokens in value.shape:
        return value.narrow(value.shape.index(tokens), start, count)
    if isinstance(value, tuple | list):
        return type(value)(_rows(item, start, count, tokens) for item in value)
    if isinstance(value, dict):
        return {name: _rows(item, start, count, tokens) for name, item in value.items()}
    return value
