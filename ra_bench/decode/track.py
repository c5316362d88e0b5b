"""How a step's device work is run and timed: as it comes, or (`ra_bench.decode.graphs`) as captured graphs.

The layers of the cache tell a track where one kind of work ends: `mark` for time alone, `cut` where the host
has something to do in between. Times are seconds a step, by name.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

# What a host call between two pieces of device work gives: the seconds of its own work, without waiting.
HostCall = Callable[[], float | None]

# Overlaps with the host's work of the same cut.
OVERLAPPED = "gpu_attention"


class Track(ABC):
    """Runs steps. `capture` says how, for the rows; `note` why it is not as was asked for."""

    capture = "eager"
    note = ""

    @abstractmethod
    def run(self, body: Callable[[], None]) -> dict[str, float]:
        """Runs one step's device work and waits for it; returns its times, "critical" their longest path."""

    @abstractmethod
    def mark(self, name: str) -> None:
        """What was done since the last mark or cut was `name`."""

    @abstractmethod
    def cut(self, name: str, call: HostCall | None = None) -> None:
        """As `mark`; then the host runs `call`."""

    def prepare(self, body: Callable[[], None], rewind: Callable[[], None]) -> None:
        """What must happen once before the first step that counts; `rewind` undoes a run of `body`."""
        self.run(body)
        rewind()


class HostTrack(Track):
    """For a model on the CPU: everything happens when it is called."""

    def __init__(self) -> None:
        self._times: dict[str, float] = defaultdict(float)
        self._last_s = 0.0

    def run(self, body: Callable[[], None]) -> dict[str, float]:
        self._times = defaultdict(float)
        self._last_s = time.perf_counter()
        body()
        self.mark("model")
        self._times["critical"] = sum(self._times.values())
        return dict(self._times)

    def mark(self, name: str) -> None:
        now_s = time.perf_counter()
        self._times[name] += now_s - self._last_s
        self._last_s = now_s

    def cut(self, name: str, call: HostCall | None = None) -> None:
        self.mark(name)
        if call is not None:
            self._times["host"] += call() or 0.0
            self._last_s = time.perf_counter()


class EventTimes:
    """Spans of device work between CUDA events, which are read when the step has ended."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._used = 0
        self._open: Any = None
        self._spans: list[tuple[str, Any, Any, float]] = []

    def start(self) -> None:
        """A step begins."""
        self._used = 0
        self._spans = []
        self.open()

    def open(self) -> None:
        """The next span begins now."""
        self._open = self._record()

    def close(self, name: str) -> None:
        """A span ends, and the next begins."""
        ended = self._record()
        self._spans.append((name, self._open, ended, 0.0))
        self._open = ended

    def add_host(self, seconds: float) -> None:
        """The host worked so long while the last span ran on the device."""
        name, opened, ended, _ = self._spans[-1]
        self._spans[-1] = (name, opened, ended, seconds)

    def collect(self) -> dict[str, float]:
        """Seconds by name, after the device is done."""
        times: dict[str, float] = defaultdict(float)
        for name, opened, ended, host_s in self._spans:
            device_s = opened.elapsed_time(ended) / 1e3
            times[name] += device_s
            times["host"] += host_s
            overlapped_s = max(device_s, host_s) if name == OVERLAPPED else device_s + host_s
            times["critical"] += overlapped_s
        return dict(times)

    def _record(self) -> Any:
        if self._used == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        event = self._events[self._used]
        self._used += 1
        event.record()
        return event


class CudaTrack(Track):
    """For a model on CUDA without graphs: operations are launched one by one."""

    def __init__(self) -> None:
        self.times = EventTimes()

    def run(self, body: Callable[[], None]) -> dict[str, float]:
        self.times.start()
        body()
        self.times.close("model")
        torch.cuda.current_stream().synchronize()
        return self.times.collect()

    def mark(self, name: str) -> None:
        self.times.close(name)

    def cut(self, name: str, call: HostCall | None = None) -> None:
        self.times.close(name)
        if call is not None:
            self.times.add_host(call() or 0.0)
            self.times.open()
