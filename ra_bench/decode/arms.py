"""The runs that every sample gets: the baselines and each index at each k, all on the same path.

dense        all keys and values on the model's device
dense-host   the same in host memory, streamed in (only where there is a GPU)
window       sinks, and the recent window lengthened by k tokens
SPEC         an index, `flat` (exact top-k) among them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ra_bench.decode.built import Built
from ra_bench.decode.cache import DecodeCache, DecodeLayer, DenseLayer, WindowLayer
from ra_bench.decode.device_attention import whole_chunks
from ra_bench.decode.indexed import INSERT_BLOCK_TOKENS, STATIC_TOKENS, IndexedLayer, Retrieval
from ra_bench.decode.prefilled import LayerRows, Prefilled
from ra_bench.decode.slots import Slots
from ra_bench.decode.streamed import StreamedLayer, Streamer
from ra_bench.decode.track import Track
from ra_bench.errors import RunError, UsageError
from ra_bench.registry import Spec
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS

DENSE, DENSE_HOST, WINDOW, FLAT = "dense", "dense-host", "window", "flat"
BASELINES = (DENSE, DENSE_HOST, FLAT, WINDOW)


@dataclass(frozen=True)
class Arm:
    """One run: `name` as the rows have it; `spec` is None for a baseline that has no index."""

    name: str
    k: int | None = None
    spec: Spec | None = None

    @property
    def build_key(self) -> str:
        """Runs with the same one share their indexes."""
        assert self.spec is not None
        settings = dict(sorted(self.spec.settings.items()))
        return str(replace(self.spec, settings=settings).without_effort())

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name} k={self.k}"


def make_arms(specs: Sequence[Spec], ks: Sequence[int], baselines: Sequence[str]) -> list[Arm]:
    """The baselines first, then the specs, each at every k; a named `window` is the baseline.

    Raises UsageError where nothing is to run.
    """
    arms = [Arm(name) for name in (DENSE, DENSE_HOST) if name in baselines]
    if WINDOW in (*baselines, *map(str, specs)):
        arms += [Arm(WINDOW, k) for k in ks]
    named = [Spec(FLAT)] if FLAT in baselines else []
    distinct = {str(spec): spec for spec in [*named, *specs] if str(spec) != WINDOW}
    arms += [Arm(str(spec), k, spec) for spec in distinct.values() for k in ks]
    if not arms:
        raise UsageError("nothing to run: --indexes names no index, and --baselines no baseline")
    return arms


class CacheMaker:
    """Makes the cache of a run from what the prefill left, with room for `steps` tokens."""

    def __init__(self, prefilled: Prefilled, steps: int, track: Track, indexed_layers: Sequence[int]) -> None:
        self._prefilled = prefilled
        self._steps = steps
        self._track = track
        self._indexed_layers = frozenset(indexed_layers)
        self._device: torch.device = prefilled.session.model.device
        self._slots: dict[Any, Slots] = {}

    def dense(self) -> DecodeCache:
        """All on the device; RunError where it does not fit."""
        self._check_room([rows for rows in self._prefilled.layers.values() if rows.window is None])
        return self._cache(lambda _, rows: self._dense_layer(rows))

    def dense_host(self) -> DecodeCache:
        """The layers that an index would serve are streamed in from host memory."""
        if self._device.type != "cuda":
            raise RunError("there is no GPU: the host's memory is the model's own, and dense is this run")
        prompts = [self._prompt(layer) for layer in sorted(self._indexed_layers)]
        streamer = Streamer(prompts, self._device)
        turns = {layer: turn for turn, layer in enumerate(sorted(self._indexed_layers))}

        def layer_of(layer: int, rows: LayerRows) -> DecodeLayer:
            return StreamedLayer(self._new_tokens(), (rows.keys, rows.values), streamer, turns[layer])

        return self._cache(layer_of)

    def window(self, k: int) -> DecodeCache:
        """Sinks and the last 512 + k tokens."""
        recent = min(RECENT_TOKENS + k, max(0, self._prefilled.tokens - SINK_TOKENS))
        filled = min(self._prefilled.tokens, SINK_TOKENS + recent)
        slots = Slots(filled, filled + self._steps, self._device, SINK_TOKENS, RECENT_TOKENS + k)
        return self._cache(lambda _, rows: WindowLayer(slots, _static(rows, recent)))

    def indexed(self, built: Built, retrieval: Retrieval) -> DecodeCache:
        """Sinks and the recent window on the device, an index a KV head for the rest."""
        room = min(self._steps, INSERT_BLOCK_TOKENS) if built.can_insert else self._steps
        slots = Slots(STATIC_TOKENS, STATIC_TOKENS + room, self._device)

        def layer_of(layer: int, rows: LayerRows) -> DecodeLayer:
            group = self._prefilled.session.layers[layer].group
            static = _static(rows, RECENT_TOKENS)
            return IndexedLayer(slots, static, built.indexes[layer], group, retrieval)

        return self._cache(layer_of)

    def _cache(self, layer_of: Callable[[int, LayerRows], DecodeLayer]) -> DecodeCache:
        layers: list[DecodeLayer] = []
        for layer, rows in sorted(self._prefilled.layers.items()):
            if layer in self._indexed_layers:
                layers.append(layer_of(layer, rows))
            elif rows.window is None:
                layers.append(self._dense_layer(rows))
            else:
                layers.append(self._sliding_layer(rows, rows.window))
        return DecodeCache(layers, self._prefilled.tokens, self._track)

    def _dense_layer(self, rows: LayerRows) -> DecodeLayer:
        return DenseLayer(self._new_tokens(), (rows.keys, rows.values))

    def _sliding_layer(self, rows: LayerRows, window: int) -> DecodeLayer:
        filled = rows.keys.shape[1]
        if (filled, window) not in self._slots:
            capacity = filled + self._steps
            self._slots[filled, window] = Slots(filled, capacity, self._device, window=window)
        return WindowLayer(self._slots[filled, window], (rows.keys, rows.values))

    def _new_tokens(self) -> Slots:
        rest = self._prefilled.tokens - whole_chunks(self._prefilled.tokens)
        return self._slots.setdefault("new", Slots(rest, rest + self._steps, self._device))

    def _prompt(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._prefilled.layers[layer]
        return rows.keys, rows.values

    def _check_room(self, layers: Sequence[LayerRows]) -> None:
        if self._device.type != "cuda":
            return
        torch.cuda.empty_cache()
        needed = sum(rows.keys.nbytes + rows.values.nbytes for rows in layers)
        free, _ = torch.cuda.mem_get_info(self._device)
        if needed > free:
            raise RunError(
                f"the cache needs {needed / 1e9:.1f} GB of GPU memory, {free / 1e9:.1f} GB are free"
            )


def _static(rows: LayerRows, recent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sinks and the last `recent` tokens (H, 128 + recent, d), or all where the prompt is shorter."""

    def part(all_rows: torch.Tensor) -> torch.Tensor:
        if all_rows.shape[1] <= SINK_TOKENS + recent:
            return all_rows
        return torch.cat([all_rows[:, :SINK_TOKENS], all_rows[:, -recent:]], 1)

    return part(rows.keys), part(rows.values)
