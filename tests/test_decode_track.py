"""How tracks cut, launch and time a step; CUDA's part is played by fakes with a clock of their own."""

from __future__ import annotations

import contextlib

import pytest
import torch

from ra_bench.decode.graphs import GraphTrack
from ra_bench.decode.track import CudaTrack, HostTrack

MODEL_S, COPY_S, ATTENTION_S, MERGE_S = 5e-3, 1e-3, 4e-3, 2e-3


class Device:
    """A device that works in order, a graph after the other; `now_s` is its clock, `log` what happened."""

    def __init__(self):
        self.now_s = 0.0
        self.log = []
        self.capturing = None

    def do(self, what):
        if self.capturing is None:
            what()
        else:
            self.capturing.append(what)

    def work(self, name, seconds):
        def run():
            self.now_s += seconds
            self.log.append(name)

        self.do(run)

    def host(self, name, seconds):
        """A host call that the device waits for."""

        def call():
            self.now_s += seconds
            self.log.append(name)
            return seconds

        return call


def fake_cuda(monkeypatch, device):
    class Event:
        def __init__(self, enable_timing, external):
            assert enable_timing
            self.external = external
            self.at_s = None

        def record(self):
            assert device.capturing is None or self.external

            def stamp():
                self.at_s = device.now_s

            device.do(stamp)

        def elapsed_time(self, later):
            return (later.at_s - self.at_s) * 1e3

        def synchronize(self):
            assert self.at_s is not None

    class Stream:
        def __init__(self, *_):
            pass

        def wait_stream(self, other):
            pass

        def synchronize(self):
            pass

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            assert device.capturing is None
            self.parts = device.capturing = []

        def capture_end(self):
            assert device.capturing is self.parts
            device.capturing = None

        def replay(self):
            device.log.append("launch")
            for part in self.parts:
                part()

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(cuda, "stream", lambda _: contextlib.nullcontext())


@pytest.fixture
def device(monkeypatch):
    made = Device()
    fake_cuda(monkeypatch, made)
    return made


def indexed_step(track, device, search_s, layers=2):
    """The body of a step as `IndexedLayer` makes it."""

    def body():
        for _ in range(layers):
            device.work("model", MODEL_S)
            track.mark("model")
            device.work("copy", COPY_S)
            track.mark("copy")
            device.work("attention", ATTENTION_S)
            track.cut("gpu_attention", device.host("search", search_s))
            device.work("merge", MERGE_S)
            track.mark("merge")
        device.work("model", MODEL_S)

    return body


def test_a_layer_with_an_index_is_one_launch_and_ends_at_the_search(device):
    track = GraphTrack()
    body = indexed_step(track, device, 3e-3)
    track.prepare(body, lambda: None)
    assert track.capture == "graphs"
    device.log.clear()
    track.run(body)
    layer = ["model", "copy", "attention", "search", "launch", "merge"]
    assert device.log == ["launch", *layer, *layer, "model"]


def test_marks_cut_nothing_and_are_timed(device):
    track = GraphTrack()

    def body():
        device.work("model", MODEL_S)
        track.mark("model")
        device.work("attention", ATTENTION_S)
        track.mark("gpu_attention")
        device.work("model", MODEL_S)

    track.prepare(body, lambda: None)
    device.log.clear()
    track.run(body)
    assert device.log == ["launch", "model", "attention", "model"]
    assert track.times() == pytest.approx(
        {"model": 2 * MODEL_S, "gpu_attention": ATTENTION_S, "host": 0, "critical": 2 * MODEL_S + ATTENTION_S}
    )


@pytest.mark.parametrize("search_s", [1e-3, 9e-3])
@pytest.mark.parametrize("kind", [GraphTrack, CudaTrack])
def test_a_search_hides_the_device_s_attention_or_is_hidden_by_it(kind, search_s, device):
    track = kind()
    body = indexed_step(track, device, search_s)
    track.prepare(body, lambda: None)
    for _ in range(2):  # nothing is left of the run before
        track.run(body)
    expected = {
        "model": 3 * MODEL_S,
        "copy": 2 * COPY_S,
        "gpu_attention": 2 * ATTENTION_S,
        "merge": 2 * MERGE_S,  # the wait for the host is not a part of it
        "host": 2 * search_s,
        "critical": 3 * MODEL_S + 2 * (COPY_S + max(ATTENTION_S, search_s) + MERGE_S),
    }
    assert track.times() == pytest.approx(expected)


def test_what_cannot_be_captured_runs_eagerly_and_says_why(device):
    track = GraphTrack()

    def body():
        device.work("model", MODEL_S)
        if device.capturing is not None:
            raise RuntimeError("not  permitted")
        track.cut("gpu_attention", device.host("search", 1e-3))

    track.prepare(body, lambda: None)
    assert track.capture == "eager"
    assert track.note == "capture failed: not permitted"
    track.run(body)
    assert track.times()["host"] == pytest.approx(1e-3)
    assert "launch" not in device.log


@pytest.mark.parametrize("compiles", [True, False])
def test_a_compiler_that_fails_leaves_graphs_of_the_model_as_it_is(compiles, device, monkeypatch):
    fusing = []

    @contextlib.contextmanager
    def fused(model):
        fusing.append(model)
        yield
        fusing.pop()

    monkeypatch.setattr("ra_bench.decode.graphs.fused", fused)

    def body():
        if fusing and not compiles:
            fusing.pop()
            raise RuntimeError("no compiler")
        device.work("fused" if fusing else "plain", MODEL_S)

    track = GraphTrack(fuse=torch.nn.Identity())
    track.prepare(body, lambda: None)
    device.log.clear()
    track.run(body)
    if compiles:
        assert (track.capture, track.note, device.log) == ("compiled", "", ["launch", "fused"])
    else:
        assert (track.capture, device.log) == ("graphs", ["launch", "plain"])
        assert track.note == "compilation failed: no compiler"


def test_on_the_host_a_mark_is_past_when_it_is_made():
    track = HostTrack()
    track.run(lambda: track.cut("gpu_attention", lambda: track.mark("copy").synchronize() or 0.25))
    times = track.times()
    assert times["host"] == 0.25
    assert times["critical"] == pytest.approx(sum(times[name] for name in times if name != "critical"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_mark_in_a_graph_is_not_past_before_its_replay_comes_to_it():
    track, seen = GraphTrack(), []
    counter = torch.zeros(1, device="cuda")
    here = torch.zeros(1, pin_memory=True)

    def body():
        torch.cuda._sleep(20_000_000)  # some 10 ms
        counter.add_(1)
        here.copy_(counter, non_blocking=True)
        sent = track.mark("copy")

        def call():
            sent.synchronize()
            seen.append(float(here[0]))

        track.cut("gpu_attention", call)

    track.prepare(body, lambda: None)
    assert track.capture == "graphs", track.note
    seen.clear()
    first = float(counter.item())
    for _ in range(5):
        track.run(body)
        assert track.times()["copy"] > 1e-3
    assert seen == [first + step for step in range(1, 6)]
