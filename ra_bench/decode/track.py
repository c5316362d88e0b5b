"""How a step's device work is run and timed: as it comes, or (`ra_bench.decode.graphs`) as captured graphs.

The layers of the cache tell a track where one kind of work ends: `mark` for time alone, `cut` only where the
host must act before the device can go on. Times are seconds a step, by name.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

# What a host call between two pieces of device work gives: the seconds of its own work, without waiting.
HostCall = Callable[[], float | None]

# Overlaps with the host's work of the same cut.
OVERLAPPED = "gpu_attention"


class Moment(Protocol):
    """A point in a step's device work, which a host call may wait for."""

    def synchronize(self) -> None:
        """Returns once the device is past it."""


class Track(ABC):
    """Runs steps. `capture` says how, for the rows; `note` why it is not as was asked for."""

    capture = "eager"
    note = ""

    @abstractmethod
    def run(self, body: Callable[[], None]) -> None:
        """Runs one step's device work and host calls, and waits for them."""

    @abstractmethod
    def times(self) -> dict[str, float]:
        """Of the last run: "host" of its calls, "critical" its longest path. Read it off the clock."""

    @abstractmethod
    def mark(self, name: str) -> Moment:
        """What was done since the last mark or cut was `name`."""

    @abstractmethod
    def cut(self, name: str, call: HostCall) -> None:
        """As `mark`; the host runs `call` once all work so far is launched, and before what follows is.

        So `call` may wait for an earlier mark while the device does what lies between the two, and may
        enqueue waits and records that what follows comes after.
        """

    def prepare(self, body: Callable[[], None], rewind: Callable[[], None]) -> None:
        """What must happen once before the first step that counts; `rewind` undoes a run of `body`."""
        self.run(body)
        rewind()


class _Past:
    """A moment of a track whose work is done when it is called."""

    def synchronize(self) -> None:
        pass


PAST = _Past()


class HostTrack(Track):
    """For a model on the CPU: everything happens when it is called."""

    def __init__(self) -> None:
        self._times: dict[str, float] = defaultdict(float)
        self._last_s = 0.0

    def run(self, body: Callable[[], None]) -> None:
        self._times = defaultdict(float)
        self._last_s = time.perf_counter()
        body()
        self.mark("model")

    def times(self) -> dict[str, float]:
        return {**self._times, "critical": sum(self._times.values())}

    def mark(self, name: str) -> Moment:
        now_s = time.perf_counter()
        self._times[name] += now_s - self._last_s
        self._last_s = now_s
        return PAST

    def cut(self, name: str, call: HostCall) -> None:
        self.mark(name)
        self._times["host"] += call() or 0.0
        self._last_s = time.perf_counter()


class _Span(NamedTuple):
    name: str
    opened: Any
    ended: Any
    is_cut: bool  # a host call belongs to it


class EventTimes:
    """Spans of device work between CUDA events, which are read when the step has ended.

    `external` events are recorded into a graph under capture, and anew whenever it is replayed.
    """

    def __init__(self, external: bool = False) -> None:
        self._external = external
        self._events: list[Any] = []
        self._used = 0
        self._open: Any = None
        self._spans: list[_Span] = []

    def start(self) -> None:
        """Forgets all spans, and opens the first."""
        self._used = 0
        self._spans = []
        self.open()

    def open(self) -> None:
        """The next span begins now."""
        self._open = self._record()

    def close(self, name: str, is_cut: bool = False) -> Moment:
        """A span ends, and the next begins; after a cut only where `open` says so."""
        ended = self._record()
        self._spans.append(_Span(name, self._open, ended, is_cut))
        self._open = ended
        return ended

    def collect(self, calls_s: Sequence[float]) -> dict[str, float]:
        """Seconds by name, after the device is done; `calls_s` are those of the cuts' host calls.

        Where the device waited for the host, no span was open.
        """
        times: dict[str, float] = defaultdict(float)
        calls = iter(calls_s)
        for span in self._spans:
            device_s = span.opened.elapsed_time(span.ended) / 1e3
            host_s = next(calls) if span.is_cut else 0.0
            times[span.name] += device_s
            times["host"] += host_s
            overlapped = span.name == OVERLAPPED
            times["critical"] += max(device_s, host_s) if overlapped else device_s + host_s
        return dict(times)

    def _record(self) -> Any:
        if self._used == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True, external=self._external))
        event = self._events[self._used]
        self._used += 1
        event.record()
        return event


class CudaTrack(Track):
    """For a model on CUDA without graphs: operations are launched one by one."""

    def __init__(self) -> None:
        self._spans = EventTimes()
        self._calls_s: list[float] = []

    def run(self, body: Callable[[], None]) -> None:
        self._calls_s = []
        self._spans.start()
        body()
        self._spans.close("model")
        torch.cuda.current_stream().synchronize()

    def times(self) -> dict[str, float]:
        return self._spans.collect(self._calls_s)

    def mark(self, name: str) -> Moment:
        return self._spans.close(name)

    def cut(self, name: str, call: HostCall) -> None:
        self._spans.close(name, is_cut=True)
        self._calls_s.append(call() or 0.0)
        self._spans.open()
