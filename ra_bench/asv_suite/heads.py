"""What is measured: two heads, and every index built on them once, into asv's cache folder.

asv runs each combination of parameters in a process of its own and calls `setup` before every timed call, so
nothing is built there: `setup_cache` builds, and `setup` maps what it saved.
"""

from __future__ import annotations

import functools
import os
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DATA = ("sample", "synthetic")
# Any registry names may be watched, one's own index too: RA_BENCH_ASV_INDEXES=scann,my_index.py::MyIndex
INDEXES = tuple(os.environ.get("RA_BENCH_ASV_INDEXES", "flat,ivf,ivfpq,hnsw@lift,ra,qivf").split(","))
# Places in a method's own sweep of search settings, cheap to dear.
EFFORTS = {"low": 0.2, "middle": 0.5, "high": 0.8}
K = 100
MAX_TEST_QUERIES = 448  # 64 tokens of the sample's seven query heads

SYNTHETIC_TOKENS, SYNTHETIC_STEPS, SYNTHETIC_GROUP, SYNTHETIC_DIM = 6000, 64, 4, 128


class Measured(NamedTuple):
    """What `setup_cache` found out about an index at one effort; all of it is better when lower."""

    miss: float  # 1 - recall@K
    output_error: float  # relative, static part merged
    keys_read: float | None  # share of the indexed keys; None where a library hides it


class State(NamedTuple):
    """Of one index on one head: why it does not apply or what broke, or its sizes and qualities."""

    absent: str = ""
    error: str = ""
    bytes_per_key: float = 0.0
    efforts: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never written to
    measured: dict[str, Measured] = {}  # noqa: RUF012


States = dict[tuple[str, str], State]


class Built:
    """Base of the suites that need built indexes; asv runs its `setup_cache` once for all of them."""

    timeout = 900.0

    def setup_cache(self) -> States:
        """Prepares both heads, builds, saves and judges every index; runs in asv's cache folder."""
        states = {}
        for data in DATA:
            prepare_head(data)
        for data in DATA:
            for spec in INDEXES:
                try:
                    states[data, spec] = build_and_judge(data, spec)
                except Exception:  # one index that breaks must not take the others with it
                    states[data, spec] = State(error=traceback.format_exc())
        return states


def state_of(states: States, data: str, spec: str) -> State:
    """The state of an index; skips (NotImplementedError) where it does not apply, fails where it broke."""
    state = states[data, spec]
    if state.absent:
        raise NotImplementedError(state.absent)
    if state.error:
        raise RuntimeError(f"{spec} on {data}:\n{state.error}")
    return state


def prepare_head(data: str) -> None:
    """Computes the bundle of a head: indexed keys, test queries with their truth, learn queries."""
    import torch

    from ra_bench.datasets.sample import sample_path
    from ra_bench.prepare import Request, prepare, wants
    from ra_bench.registry import create
    from ra_bench.vectors import DataSet

    torch.set_num_threads(os.cpu_count() or 1)  # the truth is not what is timed
    path = sample_path() if data == "sample" else write_synthetic(Path("synthetic"))
    present = [create(spec) for spec in INDEXES if not missing_here(spec)]
    request = Request(
        data=str(path),
        head=DataSet.open(path).heads[0],
        split="honest",
        max_queries=MAX_TEST_QUERIES,
        k_max=K,
        causal_learn=False,
        learn=wants([(index.learn_queries, index.learn_neighbors) for index in present]),
        seed=0,
    )
    refused = prepare(request, Path(f"bundle-{data}"))
    assert not refused, refused


def missing_here(spec: str) -> str:
    """Why the index cannot run here: a library that is not installed, or a name this version lacks."""
    from ra_bench.errors import UsageError
    from ra_bench.registry import create

    try:
        create(spec)
    except UsageError as error:
        return str(error)
    return ""


@functools.cache
def bundle(data: str) -> Any:
    """The prepared head in asv's cache folder."""
    from ra_bench.prepare import Bundle

    return Bundle(Path(f"bundle-{data}"))


def build(data: str, spec: str) -> Any:
    """A new index over the head's keys, as `compare` builds it on one thread."""
    from ra_bench.registry import create

    head, index = bundle(data), create(spec)
    learn, about = head.learn_inputs(index.learn_queries, index.learn_neighbors)
    index.warm_up(head.keys.shape[1])
    index.build(np.asarray(head.keys), np.asarray(head.values), learn, about)
    return index


@functools.cache
def built(data: str, spec: str) -> Any:
    """The index that `setup_cache` built, by memory map; cached, as asv calls `setup` before every call."""
    from ra_bench.registry import load

    return load(index_folder(data, spec))


def index_folder(data: str, spec: str) -> Path:
    """Where the saved index lies."""
    return Path(f"index-{data}-{INDEXES.index(spec)}")


def tokens_of(data: str) -> list[np.ndarray]:
    """The test queries as one-token blocks (G, d), as decoding asks."""
    queries = np.array(bundle(data).test_queries)
    return np.split(queries, len(queries) // bundle(data).facts["about"]["group"])


def build_and_judge(data: str, spec: str) -> State:
    """Builds and saves an index, and measures its quality at each effort."""
    if absent := missing_here(spec):
        return State(absent=absent)
    head, index = bundle(data), build(data, spec)
    sweep = index.effort_sweep(len(head.keys), K)
    efforts: dict[str, dict[str, Any]] = {}
    for name, place in EFFORTS.items():
        effort = sweep[round(place * (len(sweep) - 1))]
        if effort not in efforts.values():  # an exact scan knows one effort only
            efforts[name] = effort
    measured = {name: judge(data, index, effort) for name, effort in efforts.items()}
    index.save(index_folder(data, spec))
    memory = index.nbytes
    return State(
        bytes_per_key=(memory.host + memory.device) / len(head.keys), efforts=efforts, measured=measured
    )


def judge(data: str, index: Any, effort: dict[str, Any]) -> Measured:
    """Miss, output error and share of keys read over all test queries."""
    from ra_bench import metrics
    from ra_bench.attention import merge
    from ra_bench.truth import recall_of

    head = bundle(data)
    queries, keys = np.array(head.test_queries), np.asarray(head.keys, np.float32)
    found, part = index.search(queries, K, **effort), index.attend(queries, K, **effort)
    recall = recall_of(queries, keys, found.ids, head.true_scores[:, :K])
    output, _ = merge([(part.output, part.lse), (head.static_output, head.static_lse)])
    error = metrics.output_error(output, head.total_output)
    read = found.work.keys_read
    share = None if read is None else float(np.mean(read)) / len(keys)
    return Measured(1.0 - float(recall.mean()), float(error.mean()), share)


def write_synthetic(folder: Path) -> Path:
    """A made head with what makes attention hard to index: spread norms, rotated channels, far-off queries.

    Seeded and written out here rather than made by a tuned generator: it must be the same at every commit.
    """
    from ra_bench.vectors import HeadMetadata, HeadName
    from ra_bench.writer import DumpWriter

    metadata = HeadMetadata(
        model="synthetic",
        revision="",
        group=SYNTHETIC_GROUP,
        softmax_scale=SYNTHETIC_DIM**-0.5,
        layer_kind="full_attention",
        window=None,
        rope=None,
        rope_note="made vectors; their rotation is not told",
        context_tokens=SYNTHETIC_TOKENS,
        token_hash="",
        prompt="synthetic",
        random_weights=False,
        versions={},
    )
    keys, values, queries = synthetic_vectors()
    name, positions = HeadName("doc000", 0, 0), np.arange(len(keys))
    cut, heads = SYNTHETIC_TOKENS * SYNTHETIC_GROUP, np.tile(np.arange(SYNTHETIC_GROUP), len(keys))
    at = np.repeat(positions, SYNTHETIC_GROUP)
    with DumpWriter(folder) as writer:
        writer.open(name, "keys", SYNTHETIC_DIM, metadata).append(keys, positions)
        writer.open(name, "values", SYNTHETIC_DIM, metadata).append(values, positions)
        file = writer.open(name, "prefill_queries", SYNTHETIC_DIM, metadata)
        file.append(queries[:cut], at[:cut], heads[:cut])
        file = writer.open(name, "decode_queries", SYNTHETIC_DIM, metadata)
        file.append(queries[cut:], at[cut:], heads[cut:], at[cut:] - SYNTHETIC_TOKENS)
        writer.finish({})
    return folder


def synthetic_vectors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values (tokens, d), queries (tokens * G, d) in blocks of G, all float16.

    Keys gather around topics that hold for stretches of text; each query aims at a topic seen before, from a
    mean of its own; both are rotated by their position.
    """
    rng = np.random.default_rng(2409)
    tokens, d, group = SYNTHETIC_TOKENS + SYNTHETIC_STEPS, SYNTHETIC_DIM, SYNTHETIC_GROUP
    topics = rng.normal(0, 1, (96, d))
    topic = topics[rng.integers(0, len(topics), tokens // 24 + 1)].repeat(24, axis=0)[:tokens]
    keys = topic + 0.8 * rng.normal(size=(tokens, d)) + rng.normal(0, 1.5, d)
    keys *= rng.lognormal(0, 0.25, (tokens, 1))
    aims = topics[rng.integers(0, len(topics), (tokens, group))]
    queries = 0.9 * aims + 0.5 * rng.normal(size=(tokens, group, d)) + rng.normal(0, 0.8, d)
    values = rng.normal(size=(tokens, d)) + 0.5 * topic
    angles = np.arange(tokens)[:, None] * 10_000.0 ** (-np.arange(d // 2) / (d // 2))
    keys = rotate(keys, angles)
    queries = rotate(queries, angles[:, None, :]).reshape(-1, d)
    return keys.astype(np.float16), values.astype(np.float16), queries.astype(np.float16)


def rotate(rows: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rows (..., d) with channel i and i + d/2 turned by `angles` (..., d/2): rotary embedding."""
    first, second = np.split(rows, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
