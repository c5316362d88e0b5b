"""The folder of a saved index: what it tells of itself, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def saved_about(folder: Path, expected: str) -> dict[str, Any]:
    """What `Index.save` told of the index in `folder`; ValueError where it is not a whole `expected`."""
    try:
        about = json.loads((folder / "index.json").read_text())
        found = about["class"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is not a saved index: {error}") from error
    if found != expected:
        raise ValueError(f"{folder} holds a {found} index, not {expected}")
    for name, size in about.get("files", {}).items():  # a library may crash on half a file
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"{folder} is not a whole {expected} index: {name} must be {size} bytes")
    return about


def saved_files(folder: Path) -> list[Path]:
    """The files that `save` wrote into `folder`, but for those that tell that it ended."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "index.json"]
