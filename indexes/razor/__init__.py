"""Keeps all tokens of the few heads that retrieve; of others the newest, and one token for all the rest.

Tang et al., "RazorAttention: efficient KV cache compression through retrieval heads", ICLR 2025, arXiv
2407.15891. As in the paper the heads that retrieve are told once per model from random tokens that repeat
(`ra_bench.retrieval_heads`); the others keep max(4000, n / 5) tokens and a compensation token: the mean key
and the mean value of the dropped, whose weight counts as often as tokens were dropped. Differs: the sinks are
the harness's, and its recent tokens come on top of the buffer; with grouped heads a KV head retrieves if one
of its query heads does; a model without a file of heads has none that retrieve. Found here: on the sample's
head the paper's buffer of a fifth has an output error of .032, the same window without the compensation token
.034 (at 1,000 tokens .104 and .110): the mean key's logit, with the number of tokens it stands for, is a
median 4.3 below the log-sum-exp of the dropped keys, since the mean of exponentials is far above the
exponential of the mean. The file that lies here, of the sample's model, is of 500 tokens four times over: 18
of 48 KV heads retrieve, since the shares count query heads and a group has seven; the sample's head does not.
Build O(n d), `search` and attention O(n d) for a head that retrieves and O(buffer d) for others, insert
O(d) a key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes.flat import Flat

from ra_bench.attention import merge, partial_attention
from ra_bench.choosing import ChoosingIndex
from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Partial, Work, attended_work, gathered_work
from ra_bench.retrieval_heads import RetrievalHeads

BLOCK_TOKENS = 64  # sums of keys and values are kept for every so many tokens


@dataclass
class Razor(ChoosingIndex):
    """A full cache, or a buffer of the newest keys and the compensation token."""

    kind: ClassVar[str] = "policy"
    paper: ClassVar[str] = "arXiv 2407.15891"
    can_insert: ClassVar[bool] = True

    heads: str = ""  # file of `ra-bench heads`; empty: the one in indexes/razor/ of the model's name, if any
    buffer_share: float = 0.2  # of the tokens that other heads keep: 1 / the paper's C
    least_buffer: int = 4000  # tokens that they keep at least: the paper's S0

    retrieves = False  # set by build: whether this head keeps all tokens

    def __post_init__(self) -> None:
        if not 0 <= self.buffer_share <= 1:
            raise ValueError(f"buffer_share must be in [0, 1], got {self.buffer_share}")
        if self.least_buffer < 1:
            raise ValueError(f"least_buffer must be at least 1, got {self.least_buffer}")
        if self.heads:
            RetrievalHeads.read(Path(self.heads))

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Looks the head up and sums blocks of keys and values. ValueError if the file is another model's."""
        super().build(keys, values, queries, about)
        self.retrieves = self._looked_up(about)
        self._start()

    def _looked_up(self, about: Head | None) -> bool:
        if about is None:
            return False
        path = Path(self.heads) if self.heads else shipped_heads(about.model)
        if not path.is_file():
            return False
        known = RetrievalHeads.read(path)
        if about.model and known.model != about.model:
            raise ValueError(f"heads must be those of {about.model}, {path} is of {known.model}")
        return known.retrieves(about.layer, about.kv_head)

    def _start(self) -> None:
        d = self.keys.shape[1]
        # Row i sums the keys, then the values, before token i * BLOCK_TOKENS; rows are appended in place.
        self._sums, self._sum_count = np.zeros((1, 2 * d)), 1
        self._add_sums()

    def _add_sums(self) -> None:
        """Sums the blocks that are whole and not summed yet."""
        first, wanted = self._sum_count - 1, len(self.keys) // BLOCK_TOKENS
        if wanted == first:
            return
        if wanted + 1 > len(self._sums):
            grown = np.zeros((wanted + 1 + wanted // 4, self._sums.shape[1]))
            grown[: self._sum_count] = self._sums[: self._sum_count]
            self._sums = grown
        tokens = slice(first * BLOCK_TOKENS, wanted * BLOCK_TOKENS)
        d = self.keys.shape[1]
        for rows, columns in ((self.keys, slice(0, d)), (self.values, slice(d, 2 * d))):
            if rows is not None:
                blocks = rows[tokens].reshape(-1, BLOCK_TOKENS, d).sum(axis=1, dtype=np.float64)
                self._sums[first + 1 : wanted + 1, columns] = self._sums[first, columns] + blocks.cumsum(
                    axis=0
                )
        self._sum_count = wanted + 1

    def budget_tokens(self, k: int | None, budget: int) -> int:
        """All tokens of a head that retrieves; else the budget, or where it is 0 the paper's buffer."""
        n = len(self.keys)
        return n if self.retrieves else min(n, budget or max(self.least_buffer, round(self.buffer_share * n)))

    def choose(self, queries: np.ndarray, tokens: int) -> Found:
        """The newest keys; nothing is read to find them."""
        kept = np.arange(len(self.keys) - tokens, len(self.keys), dtype=np.int32)
        none = np.zeros(len(queries), np.int64)
        return Found(np.tile(kept, (len(queries), 1)), Work(none + tokens, none, none))

    def search(self, queries: np.ndarray, k: int | None, *, budget: int = 0) -> Found:
        """The `k` (by default all) best of the keys that are kept."""
        if self.budget_tokens(k, budget) < len(self.keys):
            return super().search(queries, k, budget=budget)
        every = Flat()
        every.keys, every.threads = self.keys, self.threads
        every._number_keys()
        return every.search(queries, k)

    def compensation(self, dropped: int) -> np.ndarray:
        """The mean key and, behind it, the mean value (2 d,) of the oldest `dropped` tokens, float32."""
        block = min(dropped // BLOCK_TOKENS, self._sum_count - 1)
        total = self._sums[block].copy()
        rest, d = slice(block * BLOCK_TOKENS, dropped), self.keys.shape[1]
        total[:d] += self.keys[rest].sum(axis=0, dtype=np.float64)
        total[d:] += self.values_to_attend[rest].sum(axis=0, dtype=np.float64)
        return (total / dropped).astype(np.float32)

    def attend(self, queries: np.ndarray, k: int | None, *, budget: int = 0) -> Partial:
        """Attention over what is kept, and over the compensation token of what is not; `k` is ignored."""
        values = self.values_to_attend
        queries = np.ascontiguousarray(queries, np.float32)
        tokens = self.budget_tokens(k, budget)
        if tokens == len(self.keys):  # ids of all keys would be a large array
            output, lse = partial_attention(queries, self.keys, values)
            read = np.full(len(queries), tokens, np.int64)
            return Partial(
                output, lse, gathered_work(Work(read, 0 * read, 0 * read), read, self.keys, values)
            )
        from ra_bench.indexes._native._native import gather_attention  # compiled

        chosen = self.choose(queries, tokens)
        output, lse = gather_attention(queries, chosen.ids, self.keys, values, self.threads)
        work = attended_work(chosen, self.keys, values)
        dropped = len(self.keys) - tokens
        mean_key, mean_value = np.split(self.compensation(dropped), 2)
        other = np.tile(mean_value, (len(queries), 1)), queries @ mean_key + np.float32(np.log(dropped))
        output, lse = merge([(output, lse), other])
        assert work.bytes_read is not None
        return Partial(output, lse, replace(work, bytes_read=work.bytes_read + 8 * len(mean_key)))

    def attended_ids(
        self, queries: np.ndarray, k: int | None, *, budget: int = 0, **_: Any
    ) -> np.ndarray | None:
        """All keys where none is dropped; None where the compensation token stands for the others."""
        tokens = self.budget_tokens(k, budget)
        return self.choose(queries, tokens).ids if tokens == len(self.keys) else None

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Buffers from k tokens on, the paper's among them; a head that retrieves has nothing to choose."""
        if self.retrieves:
            return [{"budget": 0}]
        own = max(self.least_buffer, round(self.buffer_share * n))
        budgets = {effort["budget"] for effort in super().effort_sweep(n, k)} | {min(n, own)}
        return [{"budget": budget} for budget in sorted(budgets)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Appends the block; as many tokens more are dropped."""
        self.keep_inserted(keys, values)
        self._add_sums()

    @property
    def nbytes(self) -> Bytes:
        """The sums of blocks."""
        return Bytes(self._sums.nbytes)

    def save_state(self, folder: Path) -> None:
        """Whether the head retrieves; the sums are made again."""
        np.save(folder / "retrieves.npy", np.array(self.retrieves))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads it and sums again."""
        self.retrieves = bool(np.load(folder / "retrieves.npy"))
        self._start()


def shipped_heads(model: str) -> Path:
    """Where the heads of a model lie in this folder, whether or not they do."""
    return Path(__file__).parent / f"{model.replace('/', '--')}.json"
