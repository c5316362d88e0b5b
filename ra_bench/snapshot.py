"""`Snapshot`: built indexes as they were at one moment, so that series of tokens start from the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ra_bench.index import Index


class Snapshot:
    """Keeps indexes on disk and brings them back; those that cannot be saved are built again by `rebuild`."""

    def __init__(self, indexes: Sequence[Index], rebuild: Callable[[], None]) -> None:
        self._indexes, self._rebuild = indexes, rebuild
        self._folder: tempfile.TemporaryDirectory | None = None

    def save(self) -> None:
        """Keeps the indexes as they are now; once, where they can be saved."""
        if self._folder is not None:
            return
        folder = tempfile.TemporaryDirectory(prefix="ra-bench-snapshot-")
        try:
            for number, index in enumerate(self._indexes):
                index.save(Path(folder.name, str(number)))
        except NotImplementedError:
            folder.cleanup()
            return
        self._folder = folder

    def restore(self) -> None:
        """Undoes all that the indexes have observed and inserted since."""
        if self._folder is None:
            self._rebuild()
            return
        for number, index in enumerate(self._indexes):
            index.restore(Path(self._folder.name, str(number)), mmap=False)

    def close(self) -> None:
        """Removes what `save` kept."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
