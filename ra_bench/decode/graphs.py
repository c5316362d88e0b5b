"""A step as CUDA graphs, cut only where the host must act before the device can go on.

The model's own forward runs once while its operations are captured instead of executed. Where a layer of the
cache cuts, the graph under way ends, the host's call is noted, and the next graph begins: so the graphs hold
what any model does between its attentions, and no model file is patched. All graphs share one memory pool
and are replayed in the order of their capture, which keeps what one leaves for a later one in its place.

A mark cuts nothing: it records an external event into the graph, which the device stamps in every replay.
So a layer with an index is one graph: what was found for the layer before comes in and is merged, the model
goes on to its queries, they leave, and while the host searches, the end attends to the device's own tokens.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import torch

from ra_bench.decode.track import CudaTrack, EventTimes, HostCall, Moment, Track


class GraphTrack(Track):
    """Captures a step and replays it. Where capture fails, steps run eagerly, and `note` says why."""

    capture = "graphs"

    def __init__(self) -> None:
        self._eager: Track = CudaTrack()
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._plan: list[tuple[Any, HostCall | None]] = []
        self._graph: Any = None  # the one under capture
        self._captured = False
        self._spans = EventTimes(external=True)
        self._calls_s: list[float] = []

    def prepare(self, body: Callable[[], None], rewind: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):  # libraries set themselves up in their first calls, which cannot be captured
                self._eager.run(body)
                rewind()
            gc.collect()
            torch.cuda.synchronize()
            try:
                self._begin()
                self._spans.start()
                body()
                self._spans.close("model")
                self._end(None)
            except Exception as error:  # whatever a model's forward does that a graph cannot hold
                with contextlib.suppress(Exception):
                    self._graph.capture_end()
                self._graph = None
                self._plan.clear()
                self.capture = "eager"
                self.note = f"capture failed: {' '.join(str(error).split())[:200]}"
            torch.cuda.synchronize()
            self._captured = self.capture == "graphs"
        if self._captured:
            self.run(body)  # the first replay uploads the graphs
            rewind()

    def run(self, body: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())  # an insertion moves rows there
        with torch.cuda.stream(self._stream):
            if not self._captured:
                self._eager.run(body)
                return
            self._calls_s = []
            for graph, call in self._plan:
                graph.replay()
                if call is not None:
                    self._calls_s.append(call() or 0.0)
            self._stream.synchronize()

    def times(self) -> dict[str, float]:
        return self._spans.collect(self._calls_s) if self._captured else self._eager.times()

    def mark(self, name: str) -> Moment:
        return self._eager.mark(name) if self._graph is None else self._spans.close(name)

    def cut(self, name: str, call: HostCall) -> None:
        if self._graph is None:
            self._eager.cut(name, call)
            return
        self._spans.close(name, is_cut=True)
        self._end(call)
        self._begin()
        self._spans.open()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self, call: HostCall | None) -> None:
        self._graph.capture_end()
        self._plan.append((self._graph, call))
        self._graph = None
