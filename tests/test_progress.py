"""Progress that a person can trust, and a program can read."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ra_bench import progress
from ra_bench.progress import Progress, duration


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    return made


def shown(tmp_path, mode="auto", units=10, done=2) -> tuple[Progress, io.StringIO]:
    (tmp_path / "log").mkdir(exist_ok=True)
    text = io.StringIO()
    return Progress(Console(file=text, width=200, soft_wrap=True), units, done, tmp_path, mode), text


def test_time_left_is_that_of_the_units_left_at_the_pace_of_this_run(tmp_path, clock) -> None:
    told, _ = shown(tmp_path)
    assert told.left_s is None
    for unit in range(4):
        told.start(f"unit {unit}")
        clock.now += 5.0
        told.end(f"unit {unit}", "ok", "")

    assert told.left_s == pytest.approx(4 * 5.0)


def test_failures_are_counted_and_named(tmp_path, clock) -> None:
    told, text = shown(tmp_path)
    told.start("ra on head")
    told.end("ra on head", "oom", "used more than 1.0 GB")
    told.start("flat on head")
    told.end("flat on head", "skipped", "too short")

    assert told.failed == 1
    assert "3/10" in text.getvalue()
    assert "ra on head  oom: used more than 1.0 GB" in text.getvalue()


def test_what_units_share_is_no_unit(tmp_path, clock) -> None:
    told, _ = shown(tmp_path)
    told.start("truth of head")
    told.end("truth of head", "ok", "")

    assert told.done == 2


def test_quiet_tells_failures_only(tmp_path, clock) -> None:
    told, text = shown(tmp_path, "quiet")
    told.start("a")
    told.end("a", "ok", "")
    told.start("b")
    told.end("b", "failed", "why")

    (line,) = text.getvalue().splitlines()
    assert line.endswith("b  failed: why")


def test_json_is_a_line_an_event_and_the_log_has_the_same(tmp_path, clock) -> None:
    told, text = shown(tmp_path, "json")
    with told:
        told.start("a [b] on c")
        clock.now += 2.0
        told.end("a [b] on c", "failed", "why [/x]")

    events = [json.loads(line) for line in text.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["run", "start", "end", "ended"]
    assert events[2]["name"] == "a [b] on c"
    assert (events[2]["seconds"], events[2]["done"], events[2]["units"], events[2]["failed"]) == (
        2.0,
        3,
        10,
        1,
    )
    assert (tmp_path / "log" / "run.log").read_text() == text.getvalue()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path) -> None:
    told, _ = shown(tmp_path)
    (tmp_path / "log" / "run.log").unlink()
    (tmp_path / "log" / "run.log").mkdir()

    told.start("a")
    told.end("a", "ok", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "2 h"), (200000, "2 days")]
)
def test_durations_are_told_in_the_largest_fitting_unit(seconds, text) -> None:
    assert duration(seconds) == text
