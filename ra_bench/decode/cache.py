"""The cache of live decoding: a transformers `Cache` whose layers attend by themselves, one token a step.

A layer stores the token's key and value in `update` and gives the attention of its queries in `attend`, which
transformers' attention interface calls in place of the model's own function. What a layer keeps where is its
class: all on the device (`DenseLayer`), a window on the device (`WindowLayer`), the device's window and an
index in host memory (`ra_bench.decode.indexed`), all in host memory (`ra_bench.decode.streamed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ra_bench.attention_hook import attending, check_logits
from ra_bench.capture import Recorder
from ra_bench.decode.device_attention import Part, attention_over, whole_chunks
from ra_bench.decode.slots import Slots
from ra_bench.decode.track import HostTrack, Track
from ra_bench.errors import UsageError


class DecodeLayer(CacheLayerMixin):
    """Base of the layers: a buffer of tokens on the device, `keys` and `values` (H, capacity, d).

    `rows` are the tokens (H, m, d) that fill its first slots; later ones follow, one a step.
    """

    is_sliding = False  # transformers asks in order to make masks; these layers need none
    track: Track
    rehearsing = False

    def __init__(self, slots: Slots, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.slots = slots
        self.track = HostTrack()
        self.keys = self._buffer(rows[0])
        self.values = self._buffer(rows[1])
        self.is_initialized = True
        self.newest: torch.Tensor | None = None

    def _buffer(self, rows: torch.Tensor) -> torch.Tensor:
        heads, count, d = rows.shape
        buffer = torch.zeros(heads, self.slots.capacity, d, dtype=rows.dtype, device=self.slots.next.device)
        buffer[:, :count] = rows.to(buffer.device)
        return buffer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do: the prompt's tokens are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the step's key and value (1, H, 1, d); UsageError for other than one token of one text."""
        if key_states.shape[0] != 1 or key_states.shape[2] != 1:
            raise UsageError(
                f"live decoding takes one token of one text a step, got a batch of {key_states.shape[0]}"
                f" with {key_states.shape[2]} tokens"
            )
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(1, self.slots.next, key_states[0])
        self.values.index_copy_(1, self.slots.next, value_states[0])
        self.newest = key_states
        return key_states, value_states

    def attend(self, queries: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of the step's `queries` (H, G, d), not scaled: (H, G, d) float32."""
        self.track.mark("model")
        output, _ = self.attend_buffer(queries, scale)
        self.track.mark("gpu_attention")
        return output

    def attend_buffer(self, queries: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the tokens in the buffer that are seen, with its log-sum-exp."""
        return attention_over(queries, [self._buffered], scale)

    @property
    def _buffered(self) -> Part:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values, self.slots.hidden

    def settle(self) -> None:
        """What is left to do on the host once a step has ended and nobody waits."""

    @property
    def device_bytes(self) -> int:
        """Keys and values on the device."""
        assert self.keys is not None
        return 2 * self.keys.nbytes

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Asked for by transformers when it makes a mask, which no layer here uses."""
        return self.slots.filled + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the buffer."""
        return self.slots.filled

    def get_max_length(self) -> int:
        """Tokens that the buffer can hold."""
        return self.slots.capacity


class WindowLayer(DecodeLayer):
    """Sinks and a window on the device, and nothing else: sliding-window layers, and the `window` floor."""


class LongLayer(DecodeLayer):
    """Exact attention over a prompt's whole chunks, and over its rest and new tokens in the buffer."""

    def __init__(self, slots: Slots, prompt: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.long_tokens = whole_chunks(prompt[0].shape[1])
        super().__init__(slots, (prompt[0][:, self.long_tokens :], prompt[1][:, self.long_tokens :]))

    def attend_all(
        self, queries: torch.Tensor, prompt: tuple[torch.Tensor, torch.Tensor], scale: float
    ) -> torch.Tensor:
        """Attention over the buffer and over `prompt` (H, n, d) on the device."""
        parts = [self._buffered]
        if self.long_tokens:
            keys, values = (rows[:, : self.long_tokens] for rows in prompt)
            parts.append((keys, values, None))
        output, _ = attention_over(queries, parts, scale)
        return output


class DenseLayer(LongLayer):
    """All tokens on the device."""

    def __init__(self, slots: Slots, prompt: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__(slots, prompt)
        device = slots.next.device
        self.prompt = prompt[0].to(device), prompt[1].to(device)

    def attend(self, queries: torch.Tensor, scale: float) -> torch.Tensor:
        """Exact attention over all tokens."""
        self.track.mark("model")
        output = self.attend_all(queries, self.prompt, scale)
        self.track.mark("gpu_attention")
        return output

    @property
    def device_bytes(self) -> int:
        """The prompt's and the buffer's."""
        return super().device_bytes + 2 * self.prompt[0].nbytes


class DecodeCache(Cache):
    """The layers of one run. `tokens` are in the prompt; `position` (1, 1) is that of the step's token."""

    layers: list[Any]

    def __init__(self, layers: Sequence[DecodeLayer], tokens: int, track: Track) -> None:
        super().__init__(layers=list(layers))
        self.track = track
        self._slots = list({id(layer.slots): layer.slots for layer in layers}.values())
        self.position = torch.tensor([[tokens]], device=self._slots[0].next.device)
        for layer in layers:
            layer.track = track
        self._rehearsing = False
        self.recorder: Recorder | None = None  # is shown what each step attends with

    @property
    def rehearsing(self) -> bool:
        """Whether steps are tried only: their reads do not count, and no index observes them."""
        return self._rehearsing

    @rehearsing.setter
    def rehearsing(self, value: bool) -> None:
        self._rehearsing = value
        for layer in self.layers:
            layer.rehearsing = value

    def begin(self) -> None:
        """Before the forward of a step; device work only, as `end`."""
        for slots in self._slots:
            slots.begin()

    def end(self) -> None:
        """After the forward of a step."""
        for slots in self._slots:
            slots.end()
        self.position.add_(1)

    def rewind(self) -> None:
        """Undoes `end`, for a rehearsal."""
        for slots in self._slots:
            slots.rewind()
        self.position.sub_(1)

    def count(self) -> None:
        """The host's part of `end`."""
        for slots in self._slots:
            slots.count()

    def settle(self) -> None:
        """What the layers left for after the step; not part of its time."""
        for layer in self.layers:
            layer.settle()

    @contextmanager
    def serving(self, model: Any) -> Iterator[None]:
        """While it lasts, `model` attends through the layers of this cache."""

        def attention(
            module: torch.nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            scaling: float | None = None,
            **arguments: Any,
        ) -> tuple[torch.Tensor, None]:
            number = int(module.layer_idx)
            check_logits(number, arguments)
            layer = self.layers[number]
            if layer.newest is not key:
                raise UsageError(f"--model: layer {number} attends over keys of another layer: not supported")
            if self.recorder is not None and not self._rehearsing:
                self.recorder.decoded(module, query, key, value, arguments)
            _, heads, _, d = query.shape
            scale = d**-0.5 if scaling is None else scaling
            output = layer.attend(query[0, :, 0].view(key.shape[1], -1, d), scale)
            return output.to(query.dtype).view(1, 1, heads, d), None

        with attending(model, "ra_bench_decode", attention, lambda *_, **__: None):
            yield
