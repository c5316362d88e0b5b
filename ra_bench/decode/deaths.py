"""Which runs the process died in, so that the same command goes on past an index that crashes it.

All runs of a sample share one process, its model and its prefill. A run that ends the process leaves its
mark in the results' folder; one that has done so twice is a failed row. Once may have been the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ra_bench.results import write_whole

DEADLY = 2


class Deaths:
    """The marks in a result folder: a file a run, for commands may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, unit: str) -> int:
        """How often the process died in this run without a break."""
        try:
            return int(self._mark(unit).read_text())
        except (OSError, ValueError):
            return 0

    def forget(self, unit: str) -> None:
        """The mark has been dealt with."""
        self._mark(unit).unlink(missing_ok=True)

    @contextmanager
    def watched(self, unit: str) -> Iterator[None]:
        """The run of `unit`; if the process dies in it, the mark stays."""
        write_whole(self._mark(unit), str(self.of(unit) + 1).encode())
        try:
            yield
        finally:  # an exception is no death
            self.forget(unit)

    def _mark(self, unit: str) -> Path:
        return self._folder / f"running-{unit}"
