"""big-ann-benchmarks' binary files: a folder of base, query and learn vectors, and a ground truth.

https://github.com/harsha-simhadri/big-ann-benchmarks. A file begins with the number of rows and of dimensions
(uint32, little-endian); the rows follow: .fbin float32, .u8bin uint8, .i8bin int8. A ground truth (.ibin, or
with `groundtruth` or `gt` in its name) holds ids (uint32), then perhaps distances.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench.data import Family, Known
from ra_bench.errors import UsageError
from ra_bench.vector_set import Parts, VectorSet
from ra_bench.vectors import HeadName

TYPES: dict[str, Any] = {".fbin": np.dtype("<f4"), ".u8bin": np.dtype("u1"), ".i8bin": np.dtype("i1")}
_IDS = np.dtype("<u4")
_HEADER_BYTES = 8
ABOUT = "about.json"


def recognises(path: Path) -> bool:
    """Such a file, or a folder that has some."""
    if path.is_dir():
        return any(file.suffix in TYPES for file in path.iterdir())
    return path.suffix in TYPES


def read_rows(path: Path, dtype: np.dtype, may_be_longer: bool = False) -> np.ndarray:
    """The rows of one file, by memory map; UsageError where its header and its size do not agree."""
    size_bytes = path.stat().st_size
    if size_bytes < _HEADER_BYTES:
        raise UsageError(f"data set '{path}' is cut off: it has {size_bytes} bytes, its header alone 8")
    rows, dim = (int(number) for number in np.fromfile(path, "<u4", 2))
    expected = _HEADER_BYTES + rows * dim * dtype.itemsize
    fits = size_bytes >= expected if may_be_longer else size_bytes == expected
    if rows < 1 or dim < 1 or not fits:
        raise UsageError(
            f"data set '{path}': its header says {rows} rows of {dim} {dtype.name}, {expected} bytes; "
            f"it has {size_bytes}"
        )
    return np.memmap(path, dtype, "r", _HEADER_BYTES, (rows, dim))


def open_folder(path: Path) -> VectorSet:
    """A folder's base, query, learn and ground-truth files; a file alone stands for the folder it lies in."""
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in folder.iterdir() if file.suffix in TYPES)
    roles = {
        role: [file for file in files if role in _role_words(file)] for role in ("learn", "query", "base")
    }
    if not path.is_dir():
        roles["base"] = [path]
    for role in ("base", "query"):
        if len(roles[role]) != 1:
            names = ", ".join(file.name for file in roles[role] or files)
            raise UsageError(
                f"data set '{path}' must have one file with '{role}' in its name, it has {names}"
            )
    truth = [file for file in folder.iterdir() if _is_truth(file)]
    used = [roles["base"][0], roles["query"][0], *roles["learn"][:1], *truth[:1]]
    about = read_about(folder)

    def parts(_: HeadName) -> Parts:
        arrays = {role: read_rows(found[0], TYPES[found[0].suffix]) for role, found in roles.items() if found}
        return Parts(
            keys=arrays["base"],
            test=arrays["query"],
            learn=arrays.get("learn"),
            neighbors=read_rows(truth[0], _IDS, may_be_longer=True) if truth else None,
            distance=str(about.get("distance", "ip")),
            origin=f"{folder.resolve().name}; distance {about.get('distance', 'not told, taken as ip')}",
        )

    return VectorSet(path, [HeadName(folder.resolve().name, 0, 0)], used, parts)


def _role_words(file: Path) -> set[str]:
    """The one role that a file's name tells: learn queries are queries by name too."""
    for role in ("learn", "query", "base"):
        if role in file.name.lower():
            return {role}
    return set()


def _is_truth(file: Path) -> bool:
    name = file.name.lower()
    return file.suffix == ".ibin" or (file.suffix == ".bin" and ("groundtruth" in name or "gt" in name))


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` beside the files tells: their distance."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"data set '{folder}': {ABOUT} cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise UsageError(f"data set '{folder}': {ABOUT} must be an object")
    return about


FAMILY = Family(
    name="big-ann",
    layout="a folder with base*, query* (learn*) .fbin, .u8bin or .i8bin, a truth .ibin, and about.json",
    recognises=recognises,
    open=open_folder,
    known=(
        Known(
            "text2image-1m",
            "text2image-1m",
            "https://research.yandex.com/blog/benchmarks-for-billion-scale-similarity-search"
            " (base.1M.fbin, query.public.100K.fbin, query.learn.50M.fbin)",
            "Yandex text-to-image: image keys, text queries, d 200, inner product",
        ),
    ),
)
