"""ann-benchmarks' HDF5 files, and all others of that layout: train, test, neighbors, distances.

https://github.com/erikbern/ann-benchmarks. The attribute `distance` tells what the neighbours are by.
VIBE's files (`datasets/vibe.py`) have more, and are read here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ra_bench.data import Family, Known
from ra_bench.errors import UsageError
from ra_bench.vector_set import Parts, VectorSet
from ra_bench.vectors import HeadName

HDF5_SUFFIXES = (".hdf5", ".h5")
_MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_COMPRESSION = 10_000  # a data set larger than so many times what it takes on disk is a lie


def recognises(path: Path) -> bool:
    """A file named as HDF5."""
    return path.is_file() and path.suffix.lower() in HDF5_SUFFIXES


def open_hdf5(path: Path, **facts: Any) -> VectorSet:
    """An HDF5 file with train and test, and what else it has; `facts` are more fields of its `Parts`."""
    with path.open("rb") as file:
        if file.read(8) != _MAGIC:
            raise UsageError(f"data set '{path}' is not HDF5: it does not begin like one")
    name = HeadName(path.stem, 0, 0)

    def parts(_: HeadName) -> Parts:
        file = _open(path)
        distance = file.attrs.get("distance", "")
        distance = distance.decode() if isinstance(distance, bytes) else str(distance)
        if not distance:
            raise UsageError(f"data set '{path}' does not tell its distance (attribute `distance`)")
        arrays = {part: _array(path, file, part) for part in ("train", "test", "learn", "neighbors")}
        known = {"origin": f"{path.name}, {distance}"} | facts
        return Parts(
            keys=arrays["train"],
            test=arrays["test"],
            learn=arrays["learn"],
            neighbors=arrays["neighbors"],
            distance=distance,
            **known,
        )

    return VectorSet(path, [name], [path], parts)


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise UsageError(f"data set '{path}' is HDF5, which needs `pip install 'ra-bench[data]'`") from None
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())[:200]
        raise UsageError(f"data set '{path}' is not a whole HDF5 file: {message}") from error


def _array(path: Path, file: Any, part: str) -> Any:
    """An array of the file, not yet read; None where it has none."""
    import h5py

    found = file.get(part)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset) or len(found.shape or ()) != 2 or found.dtype.kind not in "fiu":
        raise UsageError(f"data set '{path}': {part} must be an array (rows, d) of numbers")
    stored_bytes = min(found.id.get_storage_size(), path.stat().st_size)
    if found.size * found.dtype.itemsize > stored_bytes * _MOST_COMPRESSION or not found.size:
        raise UsageError(
            f"data set '{path}': {part} says that it is {found.shape}, but takes {stored_bytes} bytes"
        )
    return found


def _known(name: str, about: str) -> Known:
    return Known(name, f"ann-benchmarks/{name}.hdf5", f"http://ann-benchmarks.com/{name}.hdf5", about)


FAMILY = Family(
    name="ann-benchmarks",
    layout="an HDF5 file with train and test (learn, neighbors), and the attribute distance",
    recognises=recognises,
    open=open_hdf5,
    known=(
        _known("glove-100-angular", "1,183,514 word vectors, d 100, cosine"),
        _known("sift-128-euclidean", "1,000,000 image descriptors, d 128, Euclidean"),
        _known("lastfm-64-dot", "292,385 tracks, d 65, inner product"),
    ),
)
