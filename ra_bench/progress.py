"""How a run tells a person, on stderr, where it stands."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:
    from ra_bench.dump import Progress as Stage

Mode = Literal["auto", "json", "quiet"]
SHARED = ("waiting for cores", "truth of ", "prefill of ", "building ", "loading ")


class Progress:
    """A watcher of `compare` and `decode`: where the run stands, each ended unit in its own line, and a log.

    What is not a unit (the truth of a head, a prefill) has a name that begins with one of `SHARED`. In mode
    `json` each event is a JSON line on stderr; `quiet` prints nothing but failures. The log, `log/run.log` of
    the results' folder, has every event with its time, whatever the mode.
    """

    def __init__(self, console: Console, units: int, done: int, path: Path, mode: Mode = "auto") -> None:
        self.console, self.units, self.done, self.path, self.mode = console, units, done, path, mode
        self.failed = 0
        self.before = done
        self.running: dict[str, float] = {}
        self.began_s = time.monotonic()
        self.status = Status("", console=console)
        kept = f", {done} of them measured before" if done else ""
        self._print(f"{units} units{kept}; rows land in {path}")
        self._event("run", "", units=units, measured_before=done, folder=str(path))

    def __enter__(self) -> Self:
        if self.console.is_terminal and self.mode == "auto":
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.stop()
        how = "ended" if kind is None else "interrupted" if kind is KeyboardInterrupt else "broke"
        self._event(how, "", seconds=round(time.monotonic() - self.began_s, 3))

    @property
    def left_s(self) -> float | None:
        """Seconds until all is done, if the rest takes as long a unit as this run did; None before the first.

        A head's indexes come in the same order for each head: after the first head the guess is a good one.
        """
        ended = self.done - self.before
        if not ended:
            return None
        return (time.monotonic() - self.began_s) / ended * max(0, self.units - self.done)

    def start(self, name: str) -> None:
        """A unit starts, or something that units share."""
        self.running[name] = time.monotonic()
        self._event("start", name)
        self._show()

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""
        is_unit = not name.startswith(SHARED)
        good = status in ("ok", "skipped")
        self.done += is_unit
        self.failed += is_unit and not good
        elapsed_s = time.monotonic() - self.running.pop(name, time.monotonic())
        self._event("end", name, status=status, reason=reason, seconds=round(elapsed_s, 3))
        place = f"{self.done}/{self.units}" if is_unit else "-"
        tail = "" if status == "ok" else f"  {status}: {reason}"
        self._print(f"{place:>7}  {elapsed_s:6.1f} s  {name}{tail}", good)
        self._show()

    def _show(self) -> None:
        left = "" if self.left_s is None else f", about {duration(self.left_s)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        now = next(reversed(self.running), "")
        more = f" and {len(self.running) - 1} more" if len(self.running) > 1 else ""
        self.status.update(Text(f"{self.done}/{self.units} done{failed}{left}; now {now}{more}"))

    def _print(self, line: str, good: bool = True) -> None:
        if self.mode == "auto" or (self.mode == "quiet" and not good):
            self.console.print(line)

    def _event(self, event: str, name: str, **facts: Any) -> None:
        """A line of the log, and of stderr in mode `json`; a log that cannot be written stops no run."""
        left_s = None if self.left_s is None else round(self.left_s, 1)
        where = {"done": self.done, "units": self.units, "failed": self.failed, "left_s": left_s}
        line = json.dumps({"time": _now(), "event": event, "name": name} | facts | where)
        if self.mode == "json":
            self.console.file.write(line + "\n")
            self.console.file.flush()
        with contextlib.suppress(OSError), (self.path / "log" / "run.log").open("a") as log:
            log.write(line + "\n")


def duration(seconds: float) -> str:
    """`90` as "2 min", rounded, in the largest fitting unit."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class DumpProgress:
    """Shows a dump's stages on stderr: the size estimate, then a bar over layers and over decoded tokens."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            *Bars.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self.tasks: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tasks:  # bars that never began would leave an empty line
            self.bars.stop()

    def update(self, now: Stage) -> None:
        """Takes in where the dump stands."""
        if now.stage == "estimate":
            self.console.print(f"estimated size: {now.total / 1e6:,.1f} MB before compression")
        elif now.stage in ("load", "finish"):
            self.console.print({"load": "loading the model", "finish": "finishing the files"}[now.stage])
        else:
            place = (now.document, now.stage)
            unit = {"prefill": "layers", "decode": "tokens"}[now.stage]
            if place not in self.tasks:
                self.bars.start()
                self.tasks[place] = self.bars.add_task(
                    f"{now.stage} {now.document} ({unit})", total=now.total
                )
            self.bars.update(self.tasks[place], completed=now.done)
