"""The `dense-host` baseline: exact attention, the prompt's cache in host memory, streamed in layer by layer.

Two layers' keys and values lie on the device at a time: while one is attended, the copy engine brings the
next over, as KV offloading does at its best.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ra_bench.decode.cache import LongLayer
from ra_bench.decode.slots import Slots

STAGES = 2


class Streamer:
    """Brings layer after layer onto the device, round and round, always one ahead. CUDA only."""

    def __init__(self, prompts: Sequence[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
        self._prompts = prompts
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        shapes = {tuple(keys.shape) for keys, _ in prompts}
        (shape,) = shapes
        dtype = prompts[0][0].dtype
        self.stages = [
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(STAGES)
        ]
        self._arrived = [torch.cuda.Event() for _ in range(STAGES)]
        self._attended = [torch.cuda.Event() for _ in range(STAGES)]
        self._coming = -1
        self._bring(0)

    def stage_of(self, turn: int) -> int:
        """Where the `turn`-th streamed layer arrives; fixed, so that graphs can hold its address."""
        return turn % STAGES

    def wait(self, turn: int) -> None:
        """Makes the device wait for the layer, and brings the next if that has another place."""
        torch.cuda.current_stream().wait_event(self._arrived[self.stage_of(turn)])
        if self.stage_of(self._after(turn)) != self.stage_of(turn):
            self._bring(self._after(turn))

    def attended(self, turn: int) -> None:
        """The layer's place may be taken once the work so far is done."""
        self._attended[self.stage_of(turn)].record()
        self._bring(self._after(turn))

    def _after(self, turn: int) -> int:
        return (turn + 1) % len(self._prompts)

    def _bring(self, turn: int) -> None:
        if self._coming == turn:  # it is under way already, or there: only one layer is streamed
            return
        stage = self.stage_of(turn)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._attended[stage])
            for here, there in zip(self.stages[stage], self._prompts[turn], strict=True):
                here.copy_(there, non_blocking=True)
            self._arrived[stage].record(self._stream)
        self._coming = turn


class StreamedLayer(LongLayer):
    """New tokens on the device, the prompt's in pinned host memory behind `streamer`."""

    def __init__(
        self, slots: Slots, prompt: tuple[torch.Tensor, torch.Tensor], streamer: Streamer, turn: int
    ) -> None:
        super().__init__(slots, prompt)
        self._streamer = streamer
        self._turn = turn

    def attend(self, queries: torch.Tensor, scale: float) -> torch.Tensor:
        """Exact attention over all tokens."""
        self.track.cut("model", lambda: self._streamer.wait(self._turn))
        stage = self._streamer.stages[self._streamer.stage_of(self._turn)]
        output = self.attend_all(queries, stage, scale)
        self.track.cut("gpu_attention", lambda: self._streamer.attended(self._turn))
        return output
