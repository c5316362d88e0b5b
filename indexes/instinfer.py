"""SparF attention over keys and values on disk: two steps of page reads, and the mean value for the rest.

Pan et al., "InstInfer: in-storage attention offloading for cost-effective long-context LLM inference", arXiv
2409.04992 (HPCA 2025, as InstAttention). Differs: the reads go through the memory map of a file instead of a
drive's own processor, so the bytes are those that leave the flash chips, not those that cross the bus; every
query head reads for itself, as in the paper, whose models have no groups. Keys lie there twice: channel-
major, a page of a few channels of some hundred tokens, and row-major beside the values. A query's largest
channels give approximate weights (with SparQ's temperature, arXiv 2312.04985), the best keys are attended
exactly, and the mass outside them goes to the mean value; their log-sum-exp, less the logarithm of their
share, is told. Found here: at equal k its output is better than that of the exact top k (error .086 against
.107 on the sample's head at k = 100, 8 of 64 channels), which is the mean value's doing. Cold, the disk takes
nearly all of the time.
Build O(n d), search O(n channels), insert O(d) a key and a new map of the files.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.attention import with_mean_value
from ra_bench.choosing import ChoosingIndex
from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Partial, Work, pad_ids
from ra_bench.rerank import best_exact

PAGE_BYTES = 4096
COMPRESSION = 8  # the paper reads an eighth of the channels, then an eighth of the tokens


@dataclass
class InstInfer(ChoosingIndex):
    """The paper's SparF (Algorithm 1) over memory-mapped, unnamed files, gone when the index is."""

    paper: ClassVar[str] = "arXiv 2409.04992"
    can_insert: ClassVar[bool] = True

    page_channels: int = 2  # channels that share a page of the channel-major copy: the paper's 2 to 8
    cold: bool = False  # forget the files' pages before each call, so that it reads from the disk
    folder: str = ""  # where the files lie; empty means the system's temporary folder

    def __post_init__(self) -> None:
        if not 1 <= self.page_channels <= 64:
            raise ValueError(f"page_channels must be in 1 to 64, got {self.page_channels}")
        if self.folder and not Path(self.folder).is_dir():
            raise ValueError(f"folder must be a folder that exists, got '{self.folder}'")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Writes the files; from then on the rows are those of the files."""
        super().build(keys, values, queries, about)
        self._write_all()

    def _write_all(self) -> None:
        kind, d = self.keys.dtype, self.keys.shape[1]
        self._block = max(1, PAGE_BYTES // (self.page_channels * kind.itemsize))  # tokens of a page
        self._groups = -(-d // self.page_channels)
        self._channels = MappedRows(self.folder, kind, (self._groups, self.page_channels, self._block))
        self._key_rows = MappedRows(self.folder, kind, (d,))
        self._value_rows: MappedRows | None = None
        self._value_sum = np.zeros(d)
        keys, values = self.keys, self.values
        if values is not None:
            self._value_rows = MappedRows(self.folder, values.dtype, (d,))
        self.keys = np.empty((0, d), kind)
        self._append_rows(keys, values)

    def _append_rows(self, keys: np.ndarray, values: np.ndarray | None) -> None:
        """Writes rows behind the last, and the channel-major blocks from the last one that was not full."""
        first = len(self.keys)
        block = first // self._block
        tail = np.concatenate([self.keys[block * self._block :], keys])
        self._key_rows.write(first, keys)
        self.keys = self._key_rows.rows
        if self._value_rows is not None and values is not None:
            self._value_rows.write(first, values)
            self.values = self._value_rows.rows
            self._value_sum += values.sum(axis=0, dtype=np.float64)
        count = -(-len(tail) // self._block)
        padded = np.zeros((count * self._block, self._groups * self.page_channels), self.keys.dtype)
        padded[: len(tail), : tail.shape[1]] = tail
        shape = (count, self._block, self._groups, self.page_channels)
        self._channels.write(block, padded.reshape(shape).transpose(0, 2, 3, 1))

    def budget_tokens(self, k: int | None, budget: int) -> int:
        """As ever, but an eighth of the keys where neither is given."""
        return super().budget_tokens(k, budget or (max(1, len(self.keys) // COMPRESSION) if k is None else 0))

    def choose(self, queries: np.ndarray, tokens: int, *, channels: int = 0) -> Found:
        """The `tokens` keys of the largest weights by each query's `channels` (d / 8) largest channels."""
        return self._choose(queries, tokens, channels)[0]

    def search(self, queries: np.ndarray, k: int | None, *, budget: int = 0, channels: int = 0) -> Found:
        """The `k` best of the `budget` (k where it is 0) keys chosen from `channels` channels."""
        chosen = self.choose(queries, self.budget_tokens(k, budget), channels=channels)
        k = chosen.ids.shape[1] if k is None else k
        ids = best_exact(np.asarray(queries, np.float32), chosen.ids, self.keys, min(k, chosen.ids.shape[1]))
        exact = (chosen.ids >= 0).sum(axis=1)
        read = chosen.work.bytes_read
        pages = None if read is None else read + self._key_rows.pages(chosen.ids) * PAGE_BYTES
        return Found(pad_ids(ids, k), Work(chosen.work.keys_read, exact, pages))

    def _choose(self, queries: np.ndarray, tokens: int, channels: int) -> tuple[Found, np.ndarray]:
        """What `choose` finds, and the share (m,) of the approximate mass that it holds."""
        n, d = self.keys.shape
        channels = min(d, channels or max(1, d // COMPRESSION))
        if self.cold:
            self._channels.forget()
            self._key_rows.forget()
            if self._value_rows is not None:
                self._value_rows.forget()
        m = len(queries)
        ids, share = np.empty((m, tokens), np.int32), np.empty(m, np.float32)
        read = np.empty(m, np.int64)
        for row, query in enumerate(np.asarray(queries, np.float32)):
            weights, groups = self._weights(query, channels)
            best = np.argpartition(weights, n - tokens)[n - tokens :]
            ids[row], share[row] = best, weights[best].sum()
            read[row] = groups * len(self._channels.rows) * self._channels.row_bytes // self._groups
        every = np.full(m, n, np.int64)
        return Found(ids, Work(every, np.zeros_like(every), read)), share

    def _weights(self, query: np.ndarray, channels: int) -> tuple[np.ndarray, int]:
        """Approximate attention weights (n,) of one query, and how many channel groups they read."""
        import torch

        size = np.abs(query)
        chosen = np.sort(np.argpartition(size, len(size) - channels)[len(size) - channels :])
        group, place = chosen // self.page_channels, chosen % self.page_channels
        columns = torch.from_numpy(self._channels.rows[:, group, place])  # (blocks, channels, tokens)
        share = size[chosen].sum() / max(size.sum(), 1e-30)
        part = torch.from_numpy(query[chosen]) / max(float(share), 1e-30) ** 0.5
        logits = (part @ columns.float()).flatten()[: len(self.keys)]
        return logits.softmax(dim=0).numpy(), len(np.unique(group))

    def attend(self, queries: np.ndarray, k: int | None, *, budget: int = 0, channels: int = 0) -> Partial:
        """Exact attention over what is chosen, and the mean value for the mass that is not."""
        if self.values is None or self._value_rows is None:
            raise ValueError("attend needs values: build the index with values")
        from ra_bench.indexes._native._native import gather_attention  # compiled

        found, share = self._choose(queries, self.budget_tokens(k, budget), channels)
        output, lse = gather_attention(queries, found.ids, self.keys, self.values, self.threads)
        pages = self._key_rows.pages(found.ids) + self._value_rows.pages(found.ids)
        work = found.work
        work.bytes_read = (
            pages * PAGE_BYTES if work.bytes_read is None else work.bytes_read + pages * PAGE_BYTES
        )
        work.attended = (found.ids >= 0).sum(axis=1)
        mean = (self._value_sum / len(self.keys)).astype(np.float32)
        return with_mean_value(Partial(output, lse, work), share, mean)

    def attended_ids(self, queries: np.ndarray, k: int | None, **effort: Any) -> None:
        """None: the mean value stands for the rest."""

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """From d / 16 to d / 2 channels, then wider budgets."""
        d = self.keys.shape[1] or 128
        first, *wider = super().effort_sweep(n, k)
        channels = [{"channels": count} | first for count in sorted({max(1, d // p) for p in (16, 8, 4, 2)})]
        return channels + [{"channels": max(1, d // 2)} | effort for effort in wider]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Writes the block behind the last rows."""
        mapped = self.keys, self.values
        self.keys = mapped[0][:0]
        self.values = None if mapped[1] is None else mapped[1][:0]
        self._buffers = {}
        try:
            self.keep_inserted(keys, values)  # checks them, and makes them of our type
            block = self.keys, self.values
        finally:
            self.keys, self.values = mapped
            self._buffers = {}
        self._append_rows(*block)

    @property
    def nbytes(self) -> Bytes:
        """The sum of the values; everything else is on the disk."""
        return Bytes(self._value_sum.nbytes)

    def save_state(self, folder: Path) -> None:
        """The rows are all there is."""

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Writes the files again."""
        self._write_all()


class MappedRows:
    """Rows of one shape and type in an unnamed file, mapped into memory; the file goes with the object."""

    def __init__(self, folder: str, kind: np.dtype, shape: tuple[int, ...]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder or None)  # noqa: SIM115  (closed with the object)
        weakref.finalize(self, self._file.close)
        self._kind, self._shape = kind, shape
        self.row_bytes = int(np.prod(shape)) * kind.itemsize
        self.rows = np.empty((0, *shape), kind)

    def write(self, first: int, rows: np.ndarray) -> None:
        """Writes `rows` at place `first`, and maps the file anew."""
        self._file.seek(first * self.row_bytes)
        self._file.write(np.ascontiguousarray(rows).data)
        self._file.flush()
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)  # the kernel would read ahead of what is asked for
        count = max(len(self.rows), first + len(rows))
        self.rows = np.frombuffer(self._map, self._kind)[: count * int(np.prod(self._shape))]
        self.rows = self.rows.reshape(count, *self._shape)

    def forget(self) -> None:
        """Drops the file's pages from memory; the next access reads them from the disk."""
        os.fsync(self._file.fileno())  # a page that is not yet written stays
        self._map.madvise(mmap.MADV_DONTNEED)  # a page that is mapped stays, too
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def pages(self, ids: np.ndarray) -> np.ndarray:
        """How many distinct pages the rows `ids` (m, k) of the file touch, (m,); -1 touches none."""
        start = np.sort(ids.astype(np.int64), axis=1) * self.row_bytes
        first, last = start // PAGE_BYTES, (start + self.row_bytes - 1) // PAGE_BYTES
        before = np.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        new = last - np.maximum(first, before + 1) + 1
        return np.where(start >= 0, np.maximum(new, 0), 0).sum(axis=1)
