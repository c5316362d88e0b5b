"""The contract of an index: read this first.

Letters, once and for all: `H` KV heads, `G` query heads per KV head, `n` keys, `m` query rows, `d` head
dimension, `k` results.

An index holds the keys (and values) of one KV head and answers queries by inner product. Queries, the
learn queries too, arrive multiplied by the softmax scale, so that q·k is the attention logit. Query rows
come in blocks of G, one block a token. Sinks, windows, causality and the split of queries are the
harness's business, never an index's. An index never sees test queries before `search`, nor any truth.

To add a method: a dataclass that inherits `Index` and writes `build`, `search` and `effort_sweep`, in a file
of its own in indexes/, in a file named on the command line (`FILE.py::Class`), or behind an entry point in
the group `ra_bench.indexes`. `ra-bench check NAME` tests it against this contract.

Most methods need less, by a base class of their kind: `ScoringIndex` (scores of all keys), `PartitionIndex`
(pages or clusters), `ChoosingIndex` (attends to all keys of a token budget), `PolicyIndex` (keeps keys
whatever the query), `Compressor` (attends to all keys in a smaller form), `Wrapper` (of another index).
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from ra_bench.checked_rows import (
    all_finite,  # noqa: F401 - for those who import it from here
    checked_block,
    checked_rows,
)
from ra_bench.head import Head
from ra_bench.head_pool import over_heads
from ra_bench.saved_folder import saved_about, saved_files


@dataclass
class Work:
    """What a call read, per query row: each (m,) int64, or None where the library hides its count.

    `keys_read`: distinct keys touched in any form, exact or as a per-key code. `exact`: full dot products.
    `bytes_read`: keys, codes, centroids, links and values. `attended`: keys that took part in the softmax.
    A key read once for several rows counts for each of them in `keys_read`; its bytes are shared among them.
    """

    keys_read: np.ndarray | None = None
    exact: np.ndarray | None = None
    bytes_read: np.ndarray | None = None
    attended: np.ndarray | None = None


class LaterWorks(Sequence[Work]):
    """The works of a layer's heads, made by `make(h)` when they are first asked for.

    While a token is decoded the device waits for `attend_layer`, and nobody asks what it read until later.
    `make` must not depend on what an insertion changes.
    """

    def __init__(self, heads: int, make: Callable[[int], Work]) -> None:
        self._heads = heads
        self._make = make

    def __len__(self) -> int:
        return self._heads

    def __getitem__(self, h: Any) -> Any:
        return self._works[h]

    @functools.cached_property
    def _works(self) -> Sequence[Work]:
        return [self._make(h) for h in range(self._heads)]


class Found(NamedTuple):
    """Result of `search`: `ids` (m, k) int32, best first, -1 after the last real one; and the work."""

    ids: np.ndarray
    work: Work


class Partial(NamedTuple):
    """Result of `attend`: attention over a part of the keys, mergeable with other parts.

    `output` (m, d) float32, the softmax-weighted mean of the part's values; `lse` (m,) float32, the natural
    logarithm of the part's summed exponentials (-inf for an empty part, whose output is 0); and the work.
    """

    output: np.ndarray
    lse: np.ndarray
    work: Work


class Bytes(NamedTuple):
    """Memory of an index beyond the key and value rows it was given, in bytes: host and device apart."""

    host: int
    device: int = 0


class Index(ABC):
    """An index over the keys of one KV head.

    Subclasses are dataclasses: their fields are the build settings, and `__init__` only stores.
    """

    # What a method is, for `ra-bench list` and the README's table. `requires` names the modules it imports.
    # exact, floor, search, sampling (weighs what it draws), policy (keeps keys whatever the query),
    # compressor (reads all keys in a smaller form) or wrapper (of another index).
    kind: ClassVar[str] = "search"
    has_search: ClassVar[bool] = True  # False: it selects no keys, and only its `attend` speaks for it
    paper: ClassVar[str] = ""
    query_aware: ClassVar[bool] = False
    can_insert: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    needs_lift: ClassVar[bool] = False  # raw inner product ruins it: `compare` adds SPEC@lift beside it
    copies_keys: ClassVar[bool] = False  # its library holds rows of its own; `nbytes` counts them
    requires: ClassVar[tuple[str, ...]] = ()
    where: ClassVar[str] = "host"

    # How many learn queries `build` wants, and how many exact neighbours of each (Head.query_neighbors).
    learn_queries = 0
    learn_neighbors = 0
    # How many nearest keys of each key it wants. The harness may have them ready (Head.key_neighbors).
    key_neighbors = 0

    # Set by the harness before `build`; not settings. `spec` is the spec string that made the object.
    threads = 1
    seed = 0
    spec = ""

    # Set by `build`: the rows that `attend` reads, and G.
    keys = np.empty((0, 0), np.float32)
    values: np.ndarray | None = None
    group = 1

    # Set by `fix_effort`: what `search` takes where its caller says nothing.
    fixed_effort: Mapping[str, Any] = MappingProxyType({})

    def use_threads(self, threads: int) -> None:
        """Sets how many threads later calls may use."""
        self.threads = threads

    def warm_up(self, d: int) -> None:
        """Compiles or loads what the first call would; the harness calls it before the clock starts."""

    @abstractmethod
    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Builds the index over `keys` (n, d), float16 or float32; a second call replaces the first.

        `values` (n, d) are kept for `attend`; `queries` (m, d) float32 are learn queries in blocks of G.
        A subclass calls `super().build(keys, values, queries, about)` first: it checks the arrays, keeps
        them in `self.keys` and `self.values` (C-contiguous; copied only if they are not), and sets
        `self.group`. Inputs are never written to. Raises ValueError for a wrong shape, type or value.
        """
        self.keys = checked_rows("keys", keys)
        self.values = None if values is None else checked_rows("values", values)
        if self.values is not None and self.values.shape != self.keys.shape:
            raise ValueError(f"values must have the shape of keys {self.keys.shape}, got {self.values.shape}")
        if queries is not None and (queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]):
            raise ValueError(f"queries must be (m, {self.keys.shape[1]}), got {queries.shape}")
        self.group = about.group if about is not None else 1
        self._buffers: dict[str, np.ndarray] = {}

    @abstractmethod
    def search(self, queries: np.ndarray, k: int | None, **effort: Any) -> Found:
        """The `k` keys of largest inner product with each of `queries` (m, d) float32, as far as found.

        Effort settings are keyword-only arguments with defaults, in the method's own terms (`nprobe`,
        `ef`). `k=None` means the method's own budget. Pure: it changes nothing that a later call could see.
        """

    @abstractmethod
    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """The search settings worth trying for `n` keys and `k` results, cheap to dear."""

    def attend(self, queries: np.ndarray, k: int | None, **effort: Any) -> Partial:
        """Attention of `queries` (m, d) over the keys that `search` finds, exact over those.

        Override it where a method does more than select (estimates the rest, reweighs samples).
        Raises ValueError where `build` got no values.
        """
        from ra_bench.indexes._native._native import gather_attention  # compiled

        values = self.values_to_attend
        found = self.search(queries, k, **effort)
        output, lse = gather_attention(queries, found.ids, self.keys, values, self.threads)
        return Partial(output, lse, attended_work(found, self.keys, values))

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Adds a block of tokens that left the window; their ids follow the last. Not while searching.

        A subclass that can calls `keep_inserted` and sets `can_insert`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot insert")

    def keep_inserted(self, keys: np.ndarray, values: np.ndarray | None) -> None:
        """Appends an inserted block to `self.keys` and `self.values`, in amortised constant time a row."""
        if (values is None) != (self.values is None):
            raise ValueError("an index built with values must be given values, and one built without none")
        if values is not None and values.shape != keys.shape:
            raise ValueError(f"values to insert must have the shape of keys {keys.shape}, got {values.shape}")
        block = checked_block("keys", keys, self.keys)  # both are checked before either is kept
        if self.values is not None and values is not None:
            self.values = self._append("values", self.values, checked_block("values", values, self.values))
        self.keys = self._append("keys", self.keys, block)

    def _append(self, name: str, rows: np.ndarray, block: np.ndarray) -> np.ndarray:
        end = len(rows) + len(block)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < end:
            buffer = np.empty((end + end // 4, rows.shape[1]), rows.dtype)
            buffer[: len(rows)] = rows
            self._buffers[name] = buffer
        buffer[len(rows) : end] = block
        return buffer[:end]

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> np.ndarray | None:
        """Ids (m, any) over which `attend` is exact; None where it estimates, and no set of ids tells it."""
        return self.search(queries, k, **effort).ids if type(self).attend is Index.attend else None

    def observe(self, queries: np.ndarray) -> None:
        """Shows `queries` (G, d) of one decoded step to a method with state; the others ignore it."""

    @property
    def is_stateful(self) -> bool:
        """Whether `observe` changes later answers, and the harness must call it after each step."""
        return type(self).observe is not Index.observe

    @property
    def nbytes(self) -> Bytes:
        """Memory that the index holds beyond the key and value rows it was given."""
        return Bytes(0)

    def save(self, folder: Path) -> None:
        """Writes the built index into `folder` with its rows, so that `load` needs nothing else."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_state(folder)
        np.save(folder / "keys.npy", self.keys)
        if self.values is not None:
            np.save(folder / "values.npy", self.values)
        about = {
            "class": type(self).__name__,
            "spec": self.spec,
            "settings": asdict(self) if is_dataclass(self) else {},
            "group": self.group,
            "seed": self.seed,
            "has_values": self.values is not None,
            "files": {str(file.relative_to(folder)): file.stat().st_size for file in saved_files(folder)},
        }
        (folder / "index.json").write_text(json.dumps(about))  # last: its presence marks a whole index

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> Self:
        """The index that `save` wrote into `folder`: the same answers, no rebuild.

        With `mmap` the rows and the index's own arrays are read from the files as they are needed.
        Raises ValueError for a truncated or foreign file. `registry.load` finds the class by itself.
        """
        settings = saved_about(folder, cls.__name__)["settings"]
        try:
            index = cls(**settings)
        except TypeError as error:
            raise ValueError(f"{folder} was not saved by this {cls.__name__}: {error}") from error
        index.restore(folder, mmap)
        return index

    def restore(self, folder: Path, mmap: bool = True) -> None:
        """Replaces this index by the one that `save` wrote into `folder`; errors as `load`."""
        about = saved_about(folder, type(self).__name__)
        mode: Literal["r"] | None = "r" if mmap else None
        try:
            self.group, self.seed = about["group"], about["seed"]
            self.keys = np.load(folder / "keys.npy", mmap_mode=mode)
            self.values = np.load(folder / "values.npy", mmap_mode=mode) if about["has_values"] else None
            self._buffers = {}
            self.load_state(folder, mmap)
        except (OSError, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"{folder} is not a whole {type(self).__name__} index: {error}") from error

    def save_state(self, folder: Path) -> None:
        """Writes what `build` made, beside the rows; a method that can be saved overrides both hooks."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved")

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads what `save_state` wrote; raises ValueError where it does not fit `self.keys`."""
        raise NotImplementedError(f"{type(self).__name__} cannot be loaded")

    @classmethod
    def build_layer(
        cls,
        indexes: Sequence[Index],
        keys: Sequence[np.ndarray],
        values: Sequence[np.ndarray] | None = None,
        queries: Sequence[np.ndarray] | None = None,
        about: Sequence[Head] | None = None,
        threads: int = 1,
    ) -> None:
        """Builds the `H` indexes of one layer; by default a pool of `threads` over heads."""

        def one(h: int) -> None:
            indexes[h].build(
                keys[h],
                None if values is None else values[h],
                None if queries is None else queries[h],
                None if about is None else about[h],
            )

        over_heads(one, len(indexes), threads)

    @classmethod
    def attend_layer(
        cls,
        indexes: Sequence[Index],
        queries: np.ndarray,
        k: int | None,
        out: Partial,
        threads: int = 1,
        **effort: Any,
    ) -> Sequence[Work]:
        """One decoded token of a layer: `queries` (H, G, d) into `out` (H, G, d) and (H, G); work per head.

        The works may be made only when they are read (`LaterWorks`).

        By default a pool of `threads` searches the heads, and one native call of as many attends over what
        they found; a native method does both in one call. `out` is float32, C-contiguous. Raises ValueError
        as `attend` does.
        """
        from ra_bench.indexes._native._native import gather_attention_layer  # compiled

        rows = layer_rows(queries, len(indexes))
        if any(type(index).attend is not Index.attend for index in indexes):
            works = [Work()] * len(indexes)

            def attend(h: int) -> None:
                out.output[h], out.lse[h], works[h] = indexes[h].attend(queries[h], k, **effort)

            over_heads(attend, len(indexes), threads)
            return works
        found = [Found(np.empty((0, 0), np.int32), Work())] * len(indexes)
        keys = [index.keys for index in indexes]
        values = [index.values_to_attend for index in indexes]

        def search(h: int) -> None:
            found[h] = indexes[h].search(queries[h], k, **effort)

        over_heads(search, len(indexes), threads)
        gather_attention_layer(rows, [one.ids for one in found], keys, values, out.output, out.lse, threads)
        return LaterWorks(len(indexes), lambda h: attended_work(found[h], keys[h], values[h]))

    @property
    def values_to_attend(self) -> np.ndarray:
        """The values; raises ValueError where `build` got none."""
        if self.values is None:
            raise ValueError("attend needs values: build the index with values")
        return self.values

    def fix_effort(self, **effort: Any) -> None:
        """Makes `effort` the default of every later search and attend of this object."""
        self.fixed_effort = effort
        if effort:
            self.search = functools.partial(self.search, **effort)  # type: ignore[method-assign]
            if type(self).attend is not Index.attend:  # the default attend goes through search
                self.attend = functools.partial(self.attend, **effort)  # type: ignore[method-assign]


def attended_work(found: Found, keys: np.ndarray, values: np.ndarray) -> Work:
    """The work of exact attention over what a search found: the search's own, and the rows gathered."""
    return gathered_work(found.work, (found.ids >= 0).sum(axis=1), keys, values)


def gathered_work(searched: Work, attended: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Work:
    """The work of a search, and of gathering `attended` (m,) keys and values after it."""
    row_bytes = keys.shape[1] * (keys.itemsize + values.itemsize)
    read = searched.bytes_read
    return Work(
        keys_read=searched.keys_read,
        exact=searched.exact,
        bytes_read=None if read is None else read + attended * row_bytes,
        attended=attended,
    )


def layer_rows(queries: np.ndarray, heads: int) -> np.ndarray:
    """Queries (H, G, d) of a layer of `heads` as a native call wants them: float32, C-contiguous."""
    if queries.ndim != 3 or len(queries) != heads:
        raise ValueError(f"queries must be ({heads}, G, d) for {heads} indexes, got {queries.shape}")
    return np.ascontiguousarray(queries, np.float32)


def pad_ids(ids: np.ndarray, k: int) -> np.ndarray:
    """`ids` (m, any) as (m, k) int32: cut at k, or filled up with -1."""
    out = np.full((len(ids), k), -1, np.int32)
    width = min(k, ids.shape[1])
    out[:, :width] = ids[:, :width]
    return out
