"""Indexes that misbehave on purpose, named on the command line as FILE.py::Class by the tests."""

from __future__ import annotations

import ctypes
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench.choosing import ChoosingIndex
from ra_bench.index import Found, Index, Partial, Work, pad_ids


@dataclass
class Prefix(Index):
    """Finds the best of the first keys only: quality grows with `share`, as effort should."""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        n = max(1, round(share * len(self.keys)))
        scores = queries @ self.keys[:n].astype(np.float32).T
        ids = np.argsort(-scores, axis=1)[:, :k]
        read = np.full(len(queries), n, np.int64)
        return Found(
            pad_ids(ids, k or n), Work(keys_read=read, exact=read, bytes_read=read * self.keys[0].nbytes)
        )

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        return [{"share": share} for share in (0.25, 0.5, 0.9, 1.0)]


@dataclass
class Spy(Prefix):
    """Writes down all that it is handed."""

    report: str = ""
    learn_queries: int = 64
    learn_neighbors: int = 5

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)
        seen = {
            "n": len(keys),
            "key_positions": np.asarray(about.key_positions).tolist(),
            "query_positions": np.asarray(about.query_positions).tolist(),
            "query_heads": np.asarray(about.query_heads).tolist(),
            "queries": queries.tolist(),
            "neighbors": about.query_neighbors.tolist(),
            "about": sorted(name for name in vars(about)),
            "threads": self.threads,
            "thread_variables": os.environ.get("OMP_NUM_THREADS"),
        }
        Path(self.report).write_text(json.dumps(seen))

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        assert queries.shape[0] % self.group == 0, "queries come in blocks of G"
        return super().search(queries, k, share=share)


@dataclass
class Threads(Prefix):
    """Writes down with how many threads each search of so many queries may run."""

    report: str = ""

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        with Path(self.report).open("a") as file:
            file.write(f"{len(queries)} {self.threads}\n")
        return super().search(queries, k, share=share)


@dataclass
class TooMany(Prefix):
    """Gives all keys whatever k is: recall would be 1."""

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        return super().search(queries, len(self.keys), share=share)


@dataclass
class Brackets(Prefix):
    """Fails with a text that looks like markup."""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        raise ValueError("wrong [/x] shape [float32]")


@dataclass
class Raises(Prefix):
    """Fails in its second setting, after the first was measured."""

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        if share > 0.25:
            raise RuntimeError("planted failure")
        return super().search(queries, k, share=share)


@dataclass
class Hangs(Prefix):
    """Never ends."""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        time.sleep(1000)


@dataclass
class Leaks(Prefix):
    """Takes memory without end."""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        held = []
        while True:
            held.append(np.ones(1 << 23))
            time.sleep(0.01)


@dataclass
class Crashes(Prefix):
    """Reads address 0."""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        ctypes.string_at(0)


@dataclass
class Garbage(Prefix):
    """Gives ids of keys that there are not."""

    wrong: int = 1 << 30

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        found = super().search(queries, k, share=share)
        found.ids[-1, -1] = self.wrong
        return found


@dataclass
class Mean(Index):
    """Selects nothing: its attention is the mean value, for as much mass as all keys of a zero query have."""

    has_search = False

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)

    def search(self, queries: np.ndarray, k: int | None) -> Found:
        raise NotImplementedError("Mean has no search")

    def attend(self, queries: np.ndarray, k: int | None, *, part: float = 1.0) -> Partial:
        m, n = len(queries), len(self.keys)
        count = max(1, round(part * n))
        mean = self.values_to_attend[:count].astype(np.float32).mean(axis=0)
        read = np.full(m, count, np.int64)
        work = Work(read, 0 * read, read * self.keys[0].nbytes, read)
        return Partial(np.tile(mean, (m, 1)), np.full(m, np.log(n), np.float32), work)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        return [{"part": part} for part in (0.1, 1.0)]


@dataclass
class Counting(Prefix):
    """Finds first the key of the number of tokens that it has observed: state, and nothing else."""

    seen = 0

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)
        self.seen = 0

    def search(self, queries: np.ndarray, k: int | None) -> Found:
        ids = np.tile(self.seen + np.arange(k), (len(queries), 1)) % len(self.keys)
        return Found(ids.astype(np.int32), Work())

    def observe(self, queries: np.ndarray) -> None:
        assert len(queries) == self.group * max(1, len(queries) // self.group)
        self.seen += 1

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        return [{}]

    def save_state(self, folder: Path) -> None:
        np.save(folder / "seen.npy", self.seen)

    def load_state(self, folder: Path, mmap: bool) -> None:
        self.seen = int(np.load(folder / "seen.npy"))


@dataclass
class UnsavedCounting(Counting):
    """The same, but it cannot be saved."""

    def save_state(self, folder: Path) -> None:
        raise NotImplementedError("not this one")


@dataclass
class Learner(Prefix):
    """Wants learn queries, and no neighbours of them."""

    learn_queries: int = 64

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)
        assert queries.shape[0] == self.learn_queries
        assert about.query_neighbors is None


@dataclass
class TooSure(Prefix):
    """Reads all keys at every effort."""

    all: bool = True

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        return super().search(queries, k)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        return [{}] if self.all else [{"share": share} for share in (0.5, 1.0, 1.5, 2.0)]


@dataclass
class Chooser(ChoosingIndex):
    """Chooses the truly best keys, as many as it is given."""

    def build(self, keys, values=None, queries=None, about=None) -> None:
        super().build(keys, values, queries, about)

    def choose(self, queries: np.ndarray, tokens: int) -> Found:
        scores = queries @ self.keys.astype(np.float32).T
        read = np.full(len(queries), len(self.keys), np.int64)
        ids = np.argsort(-scores, axis=1)[:, :tokens].astype(np.int32)
        return Found(ids, Work(read, read, read * self.keys[0].nbytes))


@dataclass
class Slow(Prefix):
    """Sleeps in each call."""

    grows: bool = False

    def search(self, queries: np.ndarray, k: int | None, *, share: float = 1.0) -> Found:
        time.sleep(0.004 if not self.grows else 0.001 if share == 0.25 else 0.02)
        return super().search(queries, k, share=share)
