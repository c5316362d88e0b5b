"""What `ra-bench data info` tells of each head of a data set, and keeps in `difficulty.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ra_bench.data import DataSource
from ra_bench.difficulty import Difficulty, difficulty
from ra_bench.results import write_whole
from ra_bench.split import divide
from ra_bench.vector_set import cache_folder
from ra_bench.vectors import HeadName

MAX_QUERIES = 1024  # as `compare` has it, so that the rows of both agree


def describe(
    source: DataSource, heads: Sequence[HeadName], progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """A row for each head: what it holds and its difficulty, measured once and then read."""
    kept = _read(source)
    rows = []
    for name in heads:
        if str(name) not in kept:
            progress(str(name))
            kept[str(name)] = _measure(source, name)
            _write(source, kept)
        rows.append({"head": str(name) if source.has_layers else name.document} | kept[str(name)])
    return rows


def _measure(source: DataSource, name: HeadName) -> dict[str, Any]:
    head = source.load(name)
    split = divide(head, max_queries=MAX_QUERIES)
    keys = head.keys[split.indexed]
    measured = difficulty(keys, split.test.vectors, head.metadata.softmax_scale)
    return {
        "keys": len(head.keys),
        "indexed": len(keys),
        "d": keys.shape[1],
        "G": head.about.group,
        "type": str(keys.dtype),
        "values": "no" if head.values is None else "yes",
        "learn": len(split.learn.vectors),
        "test": len(split.test.vectors),
        **measured.row(),
    }


def difficulty_file(source: DataSource) -> Path:
    """Where the difficulty of a data set is kept: in its folder, or beside its file."""
    path = source.path
    return path / "difficulty.json" if path.is_dir() else path.with_name(path.name + ".difficulty.json")


def _identity(source: DataSource) -> dict[str, Any]:
    return {"data_hash": source.hash, "measures": list(Difficulty.__dataclass_fields__)}


def _read(source: DataSource) -> dict[str, Any]:
    for file in (difficulty_file(source), _fallback(source)):
        try:
            found = json.loads(file.read_text())
            if found["of"] == _identity(source):
                return dict(found["heads"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _write(source: DataSource, kept: dict[str, Any]) -> None:
    text = json.dumps({"of": _identity(source), "heads": kept}, indent=1).encode()
    try:
        write_whole(difficulty_file(source), text)
    except OSError:  # a data set that may only be read
        file = _fallback(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)


def _fallback(source: DataSource) -> Path:
    return cache_folder() / "difficulty" / f"{source.hash[:32]}.json"
