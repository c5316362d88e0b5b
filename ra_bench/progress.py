"""How a run tells a person where it stands: a line a unit on stderr, and what is left."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status


class Progress:
    """A watcher of `compare`: the current unit in a status line, each ended unit in a line of its own."""

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
        self.status.update(f"{self.done}/{self.units} done, now {name}")

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""
        is_unit = not name.startswith("truth of ")
        self.done += is_unit
        place = f"{self.done}/{self.units}" if is_unit else "-"
        elapsed_s = time.monotonic() - self.started_s
        tail = "" if status == "ok" else f"  {status}: {reason}"
        self.console.print(f"{place:>7}  {elapsed_s:6.1f} s  {name}{tail}", markup=False)


def total_memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
