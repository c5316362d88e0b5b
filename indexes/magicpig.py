"""Draws keys by hashing, the likelier the nearer to the query, and corrects each for its chance to be drawn.

Chen et al., "MagicPIG: LSH sampling for efficient LLM generation", ICLR 2025, arXiv 2410.16179. As in the
paper: SimHash of the centred keys, 10 bits by 150 tables, a key is drawn where it shares the query's bucket
in at least two, and its logit falls by the logarithm of the chance of that. Differs: the exact sinks and
recent tokens are the harness's; the centre is that of the keys of the build; hashing counts as bytes read (in
the paper the GPU hashes, and the CPU reads the tables). `search` ranks what was drawn by inner product, so
that recall tells how many of the true top-k were. A query that draws nothing gets an empty part. Found here:
as in the paper it draws some 2 % of the keys (676 of the sample's head) and gives an output error of .062,
between those of the exact top 100 (.110) and top 1,000 (.044), for a seventh of a scan's bytes; the 100 best
keys are at cosines of .24 to .44 only, so that the draw holds a fifth of the mass and the correction does the
rest: the log-sum-exp is off by .26 on average (300 tables: .11, output error .029).
Build O(n bits tables d), search O(bits tables d + bucket entries + drawn d), insert O(bits tables d) a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, Partial, Work
from ra_bench.partition import ragged

HASHED_ROWS = 4096  # keys that are hashed in one go
LEAST_UNSORTED_KEYS = 1024  # later keys that are searched one by one before the tables are sorted anew
UNSORTED_SHARE = 0.125  # or this share of the sorted ones
LEAST_CHANCE = 1e-12


class Draw(NamedTuple):
    """What a query drew: `ids` (s,), their `logits` (s,), the logarithms of their chances; and the cost."""

    ids: np.ndarray
    logits: np.ndarray
    log_chances: np.ndarray
    touched_keys: int
    entries: int


@dataclass
class MagicPIG(Index):
    """Hash tables over the keys: of each, the keys sorted by code, and where each code starts."""

    kind: ClassVar[str] = "sampling"
    paper: ClassVar[str] = "arXiv 2410.16179"
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("ra_bench.indexes._native._native",)

    bits: int = 10  # of a code: the paper's K
    tables: int = 150  # the paper's L
    collisions: int = 2  # tables in which a key must share the query's bucket: 1 or 2

    def __post_init__(self) -> None:
        if self.collisions not in (1, 2):
            raise ValueError(f"collisions must be 1 or 2, got {self.collisions}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits must be in 1 to 16, got {self.bits}")
        if self.tables < self.collisions:
            raise ValueError(f"tables must be at least {self.collisions}, got {self.tables}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Centres and hashes the keys, and sorts each table."""
        super().build(keys, values, queries, about)
        self._set_hash(self.keys.mean(axis=0, dtype=np.float64).astype(np.float32))
        codes, self._norms = self._hash_keys(self.keys)
        self._sort(codes)

    def _set_hash(self, centre: np.ndarray) -> None:
        """Draws the planes (d, tables bits), the same for the same seed."""
        self._centre = centre
        shape = (len(centre), self.tables * self.bits)
        self._planes = np.random.default_rng(self.seed).standard_normal(shape, np.float32)

    def _codes(self, rows: np.ndarray, tables: int) -> np.ndarray:
        """Codes (m, tables) of `rows` (m, d): a bit a plane, set on its positive side."""
        sides = (rows @ self._planes[:, : tables * self.bits] > 0).reshape(len(rows), tables, self.bits)
        powers = (1 << np.arange(self.bits)).astype(np.float32)
        return (sides.astype(np.float32) @ powers).astype(np.uint16)

    def _hash_keys(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (tables, n) of the centred `keys` (n, d), and their norms (n,)."""
        codes, norms = np.empty((self.tables, len(keys)), np.uint16), np.empty(len(keys), np.float32)
        for start in range(0, len(keys), HASHED_ROWS):
            block = slice(start, start + HASHED_ROWS)
            rows = keys[block].astype(np.float32) - self._centre
            codes[:, block], norms[block] = self._codes(rows, self.tables).T, np.linalg.norm(rows, axis=1)
        return codes, norms

    def _sort(self, codes: np.ndarray) -> None:
        """Tables over `codes` (tables, n); later keys come behind them, in `_unsorted` (tables, any)."""
        bucket_count = 1 << self.bits
        self._members: np.ndarray = np.empty(codes.shape, np.int32)
        self._starts = np.zeros((self.tables, bucket_count + 1), np.int32)
        for table, column in enumerate(codes):
            self._members[table] = np.argsort(column, kind="stable")
            np.cumsum(np.bincount(column, minlength=bucket_count), out=self._starts[table, 1:])
        self._unsorted: np.ndarray = np.empty((self.tables, 0), np.uint16)

    def _sorted_codes(self) -> np.ndarray:
        """The codes (tables, any) that the tables were made of."""
        codes = np.empty(self._members.shape, np.uint16)
        every = np.arange(1 << self.bits, dtype=np.uint16)
        for table, starts in enumerate(self._starts):
            codes[table, self._members[table]] = every.repeat(np.diff(starts))
        return codes

    def chances(self, cosines: np.ndarray, tables: int) -> np.ndarray:
        """How likely a key at an angle to the query is drawn from `tables` tables: the paper's u."""
        one_bit = 1 - np.arccos(np.clip(cosines.astype(np.float64), -1, 1)) / np.pi
        one_table = one_bit**self.bits
        missed = (1 - one_table) ** tables
        if self.collisions == 2:
            missed += tables * one_table * (1 - one_table) ** (tables - 1)
        return np.clip(1 - missed, LEAST_CHANCE, 1)

    def _table_count(self, probed: int) -> int:
        return min(self.tables, max(probed, self.collisions)) if probed else self.tables

    def draw(self, queries: np.ndarray, probed: int = 0) -> Iterator[Draw]:
        """What each of `queries` (m, d) draws from the first `probed` tables, or all where it is 0."""
        from ra_bench.indexes._native._native import dot_rows  # compiled

        tables = self._table_count(probed)
        queries = np.ascontiguousarray(queries, np.float32)
        sorted_keys = self._members.shape[1]
        firsts = np.arange(tables, dtype=np.int64) * sorted_keys
        rows = np.arange(tables)
        for query, codes in zip(queries, self._codes(queries, tables), strict=True):
            starts = self._starts[rows, codes]
            counts = self._starts[rows, codes.astype(np.int64) + 1] - starts
            entries = ragged(self._members.ravel(), (firsts + starts)[None], counts[None])[0]
            if self._unsorted.shape[1]:
                places = (self._unsorted[:tables] == codes[:, None]).nonzero()[1]
                entries = np.append(entries, (sorted_keys + places).astype(np.int32))
            entries.sort()
            named, ids = _shared(entries, self.collisions)
            touched_keys = int(np.searchsorted(named, sorted_keys)) + self._unsorted.shape[1]
            logits = dot_rows(query, self.keys, ids)
            sizes = np.linalg.norm(query) * self._norms[ids]
            cosines = (logits - query @ self._centre) / np.maximum(sizes, 1e-30)
            chances = np.log(self.chances(cosines, tables))
            yield Draw(ids, logits, chances, touched_keys, len(entries))

    def search(self, queries: np.ndarray, k: int | None, *, probed: int = 0) -> Found:
        """The `k` (by default all) best of the keys drawn from the first `probed` (0: all) tables."""
        draws = list(self.draw(queries, probed))
        width = max((len(draw.ids) for draw in draws), default=0) if k is None else k
        ids = np.full((len(draws), width), -1, np.int32)
        for row, draw in enumerate(draws):
            best = draw.ids[np.argsort(-draw.logits, kind="stable")[:width]]
            ids[row, : len(best)] = best
        return Found(ids, self._work(draws, probed, self.keys.shape[1] * self.keys.itemsize))

    def attend(self, queries: np.ndarray, k: int | None, *, probed: int = 0) -> Partial:
        """The estimate from all that is drawn; `k` is ignored. Its log-sum-exp estimates that of all keys."""
        values = self.values_to_attend
        draws = list(self.draw(queries, probed))
        output = np.zeros((len(draws), values.shape[1]), np.float32)
        lse = np.full(len(draws), -np.inf, np.float32)
        for row, (ids, logits, log_chances, _, _) in enumerate(draws):
            if len(ids):
                corrected = logits - log_chances
                weights = np.exp(corrected - corrected.max()).astype(np.float32)
                output[row] = weights @ values[ids].astype(np.float32) / weights.sum()
                lse[row] = corrected.max() + np.log(weights.sum())
        row_bytes = self.keys.shape[1] * (self.keys.itemsize + values.itemsize)
        work = self._work(draws, probed, row_bytes)
        work.attended = work.exact
        return Partial(output, lse, work)

    def _work(self, draws: list[Draw], probed: int, row_bytes: int) -> Work:
        """Planes, codes not sorted yet, bucket entries, and for each key drawn its norm and `row_bytes`."""
        tables = self._table_count(probed)
        hashes = tables * (len(self._planes) * self.bits * 4 + self._unsorted.shape[1] * 2)
        touched = np.array([draw.touched_keys for draw in draws], np.int64)
        drawn = np.array([len(draw.ids) for draw in draws], np.int64)
        entries = np.array([draw.entries for draw in draws], np.int64)
        return Work(touched, drawn, hashes + 4 * entries + drawn * (row_bytes + 4))

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> None:
        """None: what is drawn stands for all keys."""

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """A quarter of the tables, half, all."""
        return [{"probed": max(self.collisions, self.tables // part)} for part in (4, 2, 1)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Hashes the block; it is compared code by code until the tables are sorted anew."""
        first = len(self.keys)
        self.keep_inserted(keys, values)
        codes, norms = self._hash_keys(self.keys[first:])
        self._norms = np.concatenate([self._norms, norms])
        self._unsorted = np.concatenate([self._unsorted, codes], axis=1)
        if self._unsorted.shape[1] > max(LEAST_UNSORTED_KEYS, UNSORTED_SHARE * self._members.shape[1]):
            self._sort(np.concatenate([self._sorted_codes(), self._unsorted], axis=1))

    @property
    def nbytes(self) -> Bytes:
        """Tables (4 bytes a key and table), planes, norms, and the codes of keys not sorted yet."""
        held = (self._members, self._starts, self._planes, self._centre, self._norms, self._unsorted)
        return Bytes(sum(array.nbytes for array in held))

    def save_state(self, folder: Path) -> None:
        """Tables, centre and norms; the planes are drawn again."""
        np.save(folder / "members.npy", self._members)
        np.savez(
            folder / "hash.npz",
            starts=self._starts,
            centre=self._centre,
            norms=self._norms,
            unsorted=self._unsorted,
        )

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads them; the tables from the file as they are needed, with `mmap`."""
        self._members = np.load(folder / "members.npy", mmap_mode="r" if mmap else None)
        with np.load(folder / "hash.npz") as saved:
            self._starts, self._norms, self._unsorted = saved["starts"], saved["norms"], saved["unsorted"]
            self._set_hash(saved["centre"])
        if self._members.shape[1] + self._unsorted.shape[1] != len(self.keys):
            raise ValueError(f"tables must hold {len(self.keys)} keys, got {self._members.shape[1]}")


def _shared(entries: np.ndarray, collisions: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys that sorted `entries` name, and those that they name at least `collisions` (1 or 2) times."""
    again = entries[1:] == entries[:-1]
    firsts = np.append(True, ~again) if len(entries) else again
    named = entries[firsts]
    if collisions == 1:
        return named, named
    return named, entries[1:][again & firsts[:-1]]  # the second of equal ones follows the first
