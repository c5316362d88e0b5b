"""How a run tells a person, on stderr, where it stands."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:
    from ra_bench.dump import Progress as Stage

SHARED = ("truth of ", "prefill of ", "building ", "loading ")


class Progress:
    """A watcher of `compare` and `decode`: the current unit in a status line, each ended one in its own line.

    What is not a unit (the truth of a head, a prefill) has a name that begins with one of `SHARED`.
    """

    def __init__(self, console: Console, units: int, done: int, path: Path) -> None:
        self.console, self.units, self.done = console, units, done
        self.started_s = 0.0
        self.status = Status("", console=console)
        kept = f", {done} of them measured before" if done else ""
        console.print(f"{units} units{kept}; rows land in {path}")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.stop()

    def start(self, name: str) -> None:
        """A child process starts."""
        self.started_s = time.monotonic()
        self.status.update(Text(f"{self.done}/{self.units} done, now {name}"))

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""
        is_unit = not name.startswith(SHARED)
        self.done += is_unit
        place = f"{self.done}/{self.units}" if is_unit else "-"
        elapsed_s = time.monotonic() - self.started_s
        tail = "" if status == "ok" else f"  {status}: {reason}"
        self.console.print(f"{place:>7}  {elapsed_s:6.1f} s  {name}{tail}")


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
