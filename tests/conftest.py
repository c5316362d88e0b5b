"""Shared fixtures: a small made dump, on which the whole path runs in seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

os.environ["RA_BENCH_NO_PLUGINS"] = "1"  # only this project's indexes, whatever else is installed
# Tests time nothing that matters: they must not wait for cores that a measurement of this user holds.
os.environ["RA_BENCH_CORE_LOCKS"] = f"{tempfile.gettempdir()}/ra-bench-tests-{os.getpid()}"

from ra_bench.vectors import HeadMetadata, HeadName
from ra_bench.writer import DumpWriter

GROUP, DIM, PREFILL_TOKENS, DECODE_STEPS = 2, 16, 3000, 24


def write_dump(
    folder: Path,
    seed: int = 0,
    decode_steps: int = DECODE_STEPS,
    prefill_tokens: int = PREFILL_TOKENS,
    kv_heads: int = 1,
    window: int | None = None,
) -> Path:
    """A dump of made vectors: keys of spread norms, queries from another distribution."""
    rng = np.random.default_rng(seed)
    metadata = HeadMetadata(
        model="made",
        revision="",
        group=GROUP,
        softmax_scale=DIM**-0.5,
        layer_kind="full_attention" if window is None else "sliding_attention",
        window=window,
        rope=None,
        rope_note="made vectors have no rotation",
        context_tokens=prefill_tokens,
        token_hash="",
        prompt="made",
        random_weights=False,
        versions={},
    )
    tokens = prefill_tokens + decode_steps
    with DumpWriter(folder) as writer:
        for kv_head in range(kv_heads):
            name = HeadName("doc000", 3, kv_head)
            norms = rng.lognormal(0.0, 0.3, (tokens, 1))
            keys = (norms * rng.normal(1.0, 1.0, (tokens, DIM))).astype(np.float16)
            values = rng.normal(0.0, 1.0, (tokens, DIM)).astype(np.float16)
            writer.open(name, "keys", DIM, metadata).append(keys, np.arange(tokens))
            writer.open(name, "values", DIM, metadata).append(values, np.arange(tokens))
            queries = rng.normal(-1.0, 2.0, (tokens, GROUP, DIM)).astype(np.float16)
            heads = np.tile(np.arange(GROUP) + kv_head * GROUP, tokens)
            positions = np.repeat(np.arange(tokens), GROUP)
            cut = prefill_tokens * GROUP
            rows = queries.reshape(-1, DIM)
            file = writer.open(name, "prefill_queries", DIM, metadata)
            file.append(rows[:cut], positions[:cut], heads[:cut])
            if decode_steps:
                file = writer.open(name, "decode_queries", DIM, metadata)
                file.append(rows[cut:], positions[cut:], heads[cut:], positions[cut:] - prefill_tokens)
        writer.finish({})
    return folder


@pytest.fixture(scope="session", autouse=True)
def core_locks():
    """Removes the locks."""
    yield
    shutil.rmtree(os.environ["RA_BENCH_CORE_LOCKS"], ignore_errors=True)


@pytest.fixture(scope="session")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head with decode queries."""
    return write_dump(tmp_path_factory.mktemp("dumps") / "made")


@pytest.fixture(scope="session")
def make_dump(tmp_path_factory: pytest.TempPathFactory):
    """Makes another dump: `make_dump(decode_steps=0)`."""

    def make(**options: int) -> Path:
        return write_dump(tmp_path_factory.mktemp("dumps") / "made", **options)

    return make
