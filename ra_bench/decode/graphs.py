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

from ra_bench.decode.fusing import fused
from ra_bench.decode.track import CudaTrack, EventTimes, HostCall, HostTrack, Moment, Track

# Of a user: graphs where the model allows, graphs of a model whose small parts are compiled, or no graphs.
CAPTURES = ("auto", "compiled", "eager")


class GraphTrack(Track):
    """Captures a step and replays it. Where capture fails, steps run eagerly, and `note` says why.

    With `fuse`, a model, its small parts are compiled for the capture; where that fails, they are captured as
    they are.
    """

    def __init__(self, fuse: torch.nn.Module | None = None) -> None:
        self._fuse = fuse
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
            if self._fuse is not None:
                try:
                    with fused(self._fuse):
                        self._rehearse(body, rewind)
                        self._capture(body, "compiled")
                except Exception as error:  # whatever a compiler raises; other reasons will come again
                    self._note("compilation", error)
            if not self._captured:
                self._rehearse(body, rewind)
                self._capture(body, "graphs")
        if self._captured:
            self.run(body)  # the first replay uploads the graphs
            rewind()

    def _rehearse(self, body: Callable[[], None], rewind: Callable[[], None]) -> None:
        """Libraries set themselves up in their first calls, which cannot be captured."""
        for _ in range(2):
            self._eager.run(body)
            rewind()
        gc.collect()
        torch.cuda.synchronize()

    def _capture(self, body: Callable[[], None], name: str) -> None:
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
            self._note("capture", error)
        else:
            self.capture = name
            self._captured = True
        torch.cuda.synchronize()

    def _note(self, what: str, error: Exception) -> None:
        self.note = f"{what} failed: {' '.join(str(error).split())[:200]}"

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


def make_track(model: Any, capture: str) -> Track:
    """The track for steps of `model`: `capture` is one of `CAPTURES`, and means something on CUDA only."""
    if model.device.type != "cuda":
        return HostTrack()
    if capture == "eager":
        return CudaTrack()
    return GraphTrack(fuse=model if capture == "compiled" else None)
