"""The bundle of one head: what every unit of that head shares, computed once and read by memory map.

Holds the indexed rows, the test queries with their exact answers, and the learn queries with their exact
neighbours. A worker process opens it; an index gets the part that it may see (`learn_inputs`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench.attention import merge, partial_attention
from ra_bench.errors import UsageError
from ra_bench.head import Head, Rope
from ra_bench.metrics import output_error, share_of
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS, Split, SplitName, divide, evenly
from ra_bench.truth import exact_topk
from ra_bench.vectors import DataSet

READY = "bundle.json"


@dataclass(frozen=True)
class Request:
    """What to prepare: one head of a data set, how it is divided, and what the indexes of the plan want.

    `learn` maps a number of learn queries to the number of exact neighbours of each.
    """

    data: str
    head: tuple[str, int, int]
    split: SplitName
    max_queries: int
    k_max: int
    causal_learn: bool
    learn: Mapping[int, int]
    seed: int


class Bundle:
    """A prepared head, opened from its folder. Arrays are read-only memory maps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / READY).read_text())

    def __getattr__(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if name.startswith("_") or not path.exists():
            raise AttributeError(name)
        array = np.load(path, mmap_mode="r")
        setattr(self, name, array)
        return array

    def learn_inputs(self, wanted: int, neighbors: int) -> tuple[np.ndarray | None, Head]:
        """The learn queries (m, d) float32 for an index that wants that many, and what it may know.

        With the `neighbors` nearest keys of each that it asked for, whatever others asked for.
        """
        facts = dict(self.facts["about"])
        rope = facts.pop("rope")
        about = Head(**facts, key_positions=self.key_positions, rope=_rope_from_json(rope))
        if wanted == 0 or not self.facts["learn"].get(str(wanted), 0):
            return None, about
        part = f"learn{wanted}"
        about = replace(
            about,
            query_positions=getattr(self, f"{part}_positions"),
            query_heads=getattr(self, f"{part}_heads"),
            query_neighbors=getattr(self, f"{part}_neighbors")[:, :neighbors] if neighbors else None,
        )
        return getattr(self, f"{part}_queries"), about


def prepare(request: Request, folder: Path) -> str:
    """Computes the bundle of one head into `folder`; the fact file is written last.

    Returns why the head cannot serve as a test of indexes, or an empty string. Raises UsageError for a
    damaged data set, a context too short, or a k above the number of indexed keys.
    """
    head = DataSet.open(request.data).load(request.head)
    if head.metadata.window is not None:
        return f"layer {head.name.layer} attends within a window of {head.metadata.window} tokens only"
    split = divide(head, request.split, request.max_queries, request.seed)
    n = split.indexed.stop - split.indexed.start
    if request.k_max > n:
        raise UsageError(f"--k must be at most the {n} indexed keys of {head.name}, got {request.k_max}")
    recent = slice(split.indexed.stop, split.indexed.stop + RECENT_TOKENS)
    arrays = {
        "recent_keys": np.ascontiguousarray(head.keys[recent]),
        "recent_values": np.ascontiguousarray(head.values[recent]),
        "keys": np.ascontiguousarray(head.keys[split.indexed]),
        "values": np.ascontiguousarray(head.values[split.indexed]),
        "key_positions": head.key_positions[split.indexed],
        "test_queries": np.ascontiguousarray(split.test.vectors, np.float32),
    }
    arrays |= _truth(arrays, head.keys[split.static], head.values[split.static], split, request.k_max)
    folder.mkdir(parents=True, exist_ok=True)
    learn_facts: dict[str, int] = {}
    knn_s: dict[str, float] = {}
    for wanted, neighbors in request.learn.items():
        learn, seconds = _learn(arrays, split, head.about.group, wanted, neighbors, request.causal_learn)
        if neighbors:
            knn_s[str(wanted)] = seconds
        learn_facts[str(wanted)] = len(learn.get(f"learn{wanted}_queries", ()))
        arrays |= learn
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    about = {name: value for name, value in vars(head.about).items() if not isinstance(value, np.ndarray)}
    about["rope"] = _rope_to_json(head.about.rope)
    facts: dict[str, Any] = {"about": about, "learn": learn_facts, "knn_s": knn_s, "request": asdict(request)}
    facts["dtype"] = str(arrays["keys"].dtype)
    (folder / READY).write_text(json.dumps(facts))
    return ""


def _truth(
    arrays: Mapping[str, np.ndarray], static_keys: np.ndarray, static_values: np.ndarray, split: Split, k: int
) -> dict[str, np.ndarray]:
    """Exact top-k inside the index, and exact attention of the index, the static part and both."""
    queries, keys, values = arrays["test_queries"], arrays["keys"], arrays["values"]
    index_part = partial_attention(queries, keys, values)
    static_part = partial_attention(queries, static_keys, static_values, split.static_limits)
    output, lse = merge([index_part, static_part])
    return {
        "true_scores": exact_topk(queries, keys, k)[1],
        "index_output": index_part[0],
        "index_lse": index_part[1],
        "static_output": static_part[0],
        "static_lse": static_part[1],
        "total_output": output,
        "total_lse": lse,
        # What is left when the index finds nothing: the floor of every chart.
        "static_mass": share_of(static_part[1], lse),
        "static_error": output_error(static_part[0], output),
    }


def _learn(
    arrays: Mapping[str, np.ndarray], split: Split, group: int, wanted: int, neighbors: int, causal: bool
) -> tuple[dict[str, np.ndarray], float]:
    """Learn queries for one wish, evenly spaced over the learnable tokens, with their neighbours if wanted.

    And the seconds that finding the neighbours took.
    """
    learn = evenly(split.learn, group, max(group, wanted - len(split.leaked.vectors))).joined(split.leaked)
    if not len(learn.vectors):
        return {}, 0.0
    limit = None
    if causal:  # a token among the sinks sees no indexed key: nothing to learn from it
        sees = learn.positions[::group] >= SINK_TOKENS + neighbors
        learn = learn.blocks(sees, group)
        limit = np.searchsorted(arrays["key_positions"], learn.positions, side="right")
    part = f"learn{wanted}"
    found = {
        f"{part}_queries": np.ascontiguousarray(learn.vectors, np.float32),
        f"{part}_positions": learn.positions,
        f"{part}_heads": learn.heads,
    }
    if not neighbors:
        return found, 0.0
    started = time.perf_counter()
    found[f"{part}_neighbors"] = exact_topk(learn.vectors, arrays["keys"], neighbors, limit)[0]
    return found, time.perf_counter() - started


def _rope_to_json(rope: Rope | None) -> dict[str, Any] | None:
    if rope is None:
        return None
    return vars(rope) | {"inverse_frequencies": np.asarray(rope.inverse_frequencies, float).tolist()}


def _rope_from_json(facts: dict[str, Any] | None) -> Rope | None:
    if facts is None:
        return None
    return Rope(**facts | {"inverse_frequencies": np.asarray(facts["inverse_frequencies"])})


def wants(learn: Sequence[tuple[int, int]]) -> dict[int, int]:
    """(learn queries, neighbours) of each index of a plan → neighbours per number of learn queries."""
    merged: dict[int, int] = {}
    for queries, neighbors in learn:
        if queries > 0:
            merged[queries] = max(merged.get(queries, 0), neighbors)
    return merged
