"""Built indexes kept on disk, each in a folder named by the content of what built it.

    CACHE/ADDRESS/entry.json    sizes and SHA-256 of the index's files, and how long the build took
    CACHE/ADDRESS/index/        what `Index.save` wrote

An entry is there whole or not at all, and used only if every file is the one that was written: a torn or
foreign entry is built again. `Index.load` runs no code from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ra_bench.index import Index
from ra_bench.results import write_whole
from ra_bench.vectors import fingerprint

ENTRY = "entry.json"
WORTH_SAVING_S = 1.0  # a quicker build is quicker than reading it back, hashes checked


def load_or_build(index: Index, entry: Path | None, build: Callable[[], None]) -> float:
    """Restores `index` from `entry`, or calls `build` and keeps what came out; the build's time in seconds.

    The time is that of the build that made the entry. Without an entry, or where the method cannot save,
    it builds. A cache that cannot be written (a full disk) is no failure of the unit.
    """
    if entry is not None and (build_s := _restore(index, entry)) is not None:
        return build_s
    started = time.perf_counter()
    build()
    build_s = time.perf_counter() - started
    if entry is not None and build_s >= WORTH_SAVING_S:
        with contextlib.suppress(OSError, NotImplementedError):
            _keep(index, entry, build_s)
    return build_s


def _restore(index: Index, entry: Path) -> float | None:
    try:
        about: dict[str, Any] = json.loads((entry / ENTRY).read_text())
        build_s = float(about["build_s"])
        present = {str(file.relative_to(entry)) for file in entry.rglob("*") if file.name != ENTRY}
        files = {name for name in present if not (entry / name).is_dir()}
        whole = about["address"] == entry.name and files == set(about["files"])
        if not whole or any(fingerprint(entry / name) != about["files"][name] for name in files):
            return None
        index.restore(entry / "index", mmap=False)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None
    return build_s


def _keep(index: Index, entry: Path, build_s: float) -> None:
    """Writes the entry beside its place, then gives it its name; of two runs the first one wins."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.partial")
    try:
        index.save(partial / "index")
        files = {}
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            files[str(file.relative_to(partial))] = fingerprint(file)
        facts = {"address": entry.name, "build_s": build_s, "files": files}
        write_whole(partial / ENTRY, json.dumps(facts).encode())
        if entry.exists():  # it was not restored, so it is torn or foreign
            shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
