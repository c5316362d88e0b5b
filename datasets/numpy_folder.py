"""Folders of NumPy arrays: keys.npy and queries.npy, or K_LAYER_HEAD.npy and Q_LAYER_HEAD.npy.

Also values (values.npy, V_LAYER_HEAD.npy); test.npy and learn.npy in place of queries.npy. Of `queries`
alone, taken as they follow each other, the last tenth tests, and the rest but a gap of 1024 is learned from.
`about.json` may tell `softmax_scale`, `group`, `model` and `distance`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from ra_bench.datasets.big_ann import read_about

from ra_bench.data import Family
from ra_bench.errors import UsageError
from ra_bench.split import GAP_TOKENS, TEST_SHARE
from ra_bench.vector_set import Parts, VectorSet
from ra_bench.vectors import HeadName

_OF_A_HEAD = re.compile(r"K_(\d+)_(\d+)\.npy")
_NAMES = {"keys": "K", "queries": "Q", "values": "V", "test": "T", "learn": "L"}


def recognises(path: Path) -> bool:
    """A folder with keys."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    return bool({"keys.npy", "K.npy"} & names) or any(_OF_A_HEAD.fullmatch(name) for name in names)


def open_folder(path: Path) -> VectorSet:
    """Each head of the folder that has keys and queries."""
    document = path.resolve().name
    places: dict[HeadName, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        if match := _OF_A_HEAD.fullmatch(file.name):
            layer, head = match.groups()
            files = {part: path / f"{letter}_{layer}_{head}.npy" for part, letter in _NAMES.items()}
            places[HeadName(document, int(layer), int(head))] = files
    has_layers = bool(places)
    if not places:
        files = {part: path / f"{part}.npy" for part in _NAMES}
        short = {part: path / f"{letter}.npy" for part, letter in _NAMES.items()}
        places = {HeadName(document, 0, 0): {p: files[p] if files[p].exists() else short[p] for p in files}}
    about = read_about(path)
    used = [file for files in places.values() for file in files.values() if file.exists()]

    def parts(name: HeadName) -> Parts:
        arrays = {part: _load(file) for part, file in places[name].items() if file.exists()}
        group = int(about.get("group", 1))
        if "queries" in arrays and "test" not in arrays:
            arrays |= _by_order(arrays["queries"], group)
        scale: Any = about.get("softmax_scale")
        return Parts(
            keys=arrays.get("keys"),
            test=arrays.get("test"),
            learn=arrays.get("learn"),
            values=arrays.get("values"),
            distance=str(about.get("distance", "ip")),
            softmax_scale=None if scale is None else float(scale),
            group=group,
            model=str(about.get("model", "")),
            origin=f"NumPy arrays of {document}",
        )

    return VectorSet(path, sorted(places), used, parts, has_layers=has_layers)


def _by_order(queries: np.ndarray, group: int) -> dict[str, np.ndarray]:
    tokens = len(queries) // max(1, group)
    first_test = (tokens - max(1, round(TEST_SHARE * tokens))) * group
    return {"test": queries[first_test:], "learn": queries[: max(0, first_test - GAP_TOKENS * group)]}


def _load(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is Python text, and may raise whatever parsing raises
        message = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} is not a whole NumPy array: {message}") from error
    return array


FAMILY = Family(
    name="numpy",
    layout="a folder with keys.npy and queries.npy (or test.npy and learn.npy), or K_1_0.npy and Q_1_0.npy",
    recognises=recognises,
    open=open_folder,
)
