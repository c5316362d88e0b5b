"""Native kernels by type of row, on the best instruction set and in plain C++; and the exact top-k."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

ROWS, DIM, GROUP = 32_768, 128, 8
KERNELS = ("", "plain")  # "" is the best that this CPU has
TYPES = ("float16", "float32")


@functools.cache
def vectors(dtype: str) -> tuple[Any, ...]:
    """Queries (GROUP, DIM), keys and values (ROWS, DIM), and ids (GROUP, 1000) in random order."""
    rng = np.random.default_rng(0)
    keys, values = (rng.normal(size=(ROWS, DIM)).astype(dtype) for _ in range(2))
    ids = np.stack([rng.permutation(ROWS)[:1000] for _ in range(GROUP)]).astype(np.int32)
    return rng.normal(size=(GROUP, DIM)).astype(np.float32), keys, values, ids


class Dot:
    """Inner products of one query with scattered rows: what a graph search does."""

    params = (KERNELS, TYPES)
    param_names = ("kernel", "type")

    def setup(self, kernel: str, dtype: str) -> None:
        """Draws the vectors once."""
        from ra_bench.indexes._native._native import dot_rows

        self.dot_rows = dot_rows
        queries, self.rows, _, ids = vectors(dtype)
        self.query, self.ids = queries[0], np.ascontiguousarray(ids.reshape(-1))

    def time_dot_rows(self, kernel: str, dtype: str) -> None:
        """8,000 rows of 128."""
        self.dot_rows(self.query, self.rows, self.ids, kernel)


class Gather:
    """Gather-attention: exact softmax over what a search found."""

    params = (TYPES, (100, 1000))
    param_names = ("type", "k")

    def setup(self, dtype: str, k: int) -> None:
        """Draws the vectors once."""
        from ra_bench.indexes._native._native import gather_attention

        self.gather_attention = gather_attention
        self.queries, self.keys, self.values, ids = vectors(dtype)
        self.ids = np.ascontiguousarray(ids[:, :k])

    def time_gather_attention(self, dtype: str, k: int) -> None:
        """One token of eight query heads."""
        self.gather_attention(self.queries, self.ids, self.keys, self.values, 1)


class Exact:
    """The exact top-k by which everything is judged, and the neighbours of learn queries are found."""

    def setup(self) -> None:
        """Draws the vectors once."""
        import torch  # noqa: F401 - loaded before the clock starts

        from ra_bench.truth import exact_topk

        self.exact_topk = exact_topk
        _, self.keys, _, _ = vectors("float16")
        self.queries = np.random.default_rng(1).normal(size=(256, DIM)).astype(np.float32)

    def time_exact_topk(self) -> None:
        """256 queries over 32,768 keys, k 100."""
        self.exact_topk(self.queries, self.keys, 100)


class Import:
    """What every command pays before it does anything."""

    def timeraw_import_registry(self) -> str:
        """The registry, without the libraries behind it."""
        return "import ra_bench.registry"

    def timeraw_command_line(self) -> str:
        """The command line's own module."""
        return "import ra_bench.cli"
