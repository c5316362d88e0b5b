"""A step as CUDA graphs, cut where the host has something to do between two pieces of device work.

The model's own forward runs once while its operations are captured instead of executed. Where a layer of the
cache cuts, the graph under way ends, the host's call is noted, and the next graph begins: so the graphs hold
what any model does between its attentions, and no model file is patched. All graphs share one memory pool
and are replayed in the order of their capture, which keeps what one leaves for a later one in its place.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import torch

from ra_bench.decode.track import CudaTrack, EventTimes, HostCall, Track


class GraphTrack(Track):
    """Captures a step and replays it. Where capture fails, steps run eagerly, and `note` says why."""

    capture = "graphs"

    def __init__(self) -> None:
        self._eager: Track = CudaTrack()
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._plan: list[tuple[Any, str, HostCall | None]] = []
        self._graph: Any = None  # the one under capture
        self._captured = False
        self._times = EventTimes()

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
                body()
                self._end("model", None)
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

    def run(self, body: Callable[[], None]) -> dict[str, float]:
        self._stream.wait_stream(torch.cuda.current_stream())  # an insertion moves rows there
        with torch.cuda.stream(self._stream):
            if not self._captured:
                return self._eager.run(body)
            self._times.start()
            for graph, name, call in self._plan:
                graph.replay()
                self._times.close(name)
                if call is not None:
                    self._times.add_host(call() or 0.0)
                    self._times.open()
            self._stream.synchronize()
            return self._times.collect()

    def mark(self, name: str) -> None:
        if self._graph is None:  # a graph is not cut for the sake of a clock
            self._eager.mark(name)

    def cut(self, name: str, call: HostCall | None = None) -> None:
        if self._graph is None:
            self._eager.cut(name, call)
        else:
            self._end(name, call)
            self._begin()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self, name: str, call: HostCall | None) -> None:
        self._graph.capture_end()
        self._plan.append((self._graph, name, call))
        self._graph = None
