"""`Snapshot`: a stateful index as `build` left it, so that each series of tokens starts from the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ra_bench.index import Index


class Snapshot:
    """Keeps a built index that `observe` changes, and brings it back; of any other index it keeps nothing.

    Saved to disk; a method that cannot be saved is built again by `rebuild`. Used as a context.
    """

    def __init__(self, index: Index, rebuild: Callable[[], None]) -> None:
        self._index, self._rebuild = index, rebuild
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Snapshot:
        if not self._index.is_stateful:
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="ra-bench-snapshot-")
        try:
            self._index.save(Path(self._folder.name))
        except NotImplementedError:
            self._close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def restore(self) -> None:
        """Undoes all that the index has observed."""
        if self._folder is not None:
            self._index.restore(Path(self._folder.name), mmap=False)
        elif self._index.is_stateful:
            self._rebuild()

    def _close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
