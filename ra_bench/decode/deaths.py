"""Which run the process died in, so that the same command goes on past an index that crashes it.

All runs of a sample share one process, its model and its prefill. A run that ends the process leaves its
mark in the results' folder; one that has done so twice is a failed row. Once may have been the user.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ra_bench.results import write_whole

DEADLY = 2


class Deaths:
    """The mark in a result folder: at most one run, and how often the process died in it without a break."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "running.json"
        try:
            about = json.loads(self._path.read_text())
            self._unit, self._count = str(about["unit"]), int(about["begun"])
        except (OSError, KeyError, TypeError, ValueError):
            self._unit, self._count = "", 0

    def of(self, unit: str) -> int:
        """How often the process died in this run."""
        return self._count if unit == self._unit else 0

    def forget(self) -> None:
        """The mark has been dealt with."""
        self._unit, self._count = "", 0
        self._path.unlink(missing_ok=True)

    @contextmanager
    def watched(self, unit: str) -> Iterator[None]:
        """The run of `unit`; if the process dies in it, the mark stays."""
        begun = self.of(unit) + 1
        write_whole(self._path, json.dumps({"unit": unit, "begun": begun}).encode())
        try:
            yield
        finally:  # an exception is no death
            self._path.unlink(missing_ok=True)
