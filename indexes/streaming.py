"""The first tokens and the newest ones, whatever the query: attention sinks and a rolling window.

Xiao et al., "Efficient streaming language models with attention sinks" (StreamingLLM), ICLR 2024, arXiv
2309.17453. Differs: what is dropped still counts as a position (the paper numbers the tokens of its cache
anew), since the vectors come rotated; the harness attends to 128 sinks and 512 recent tokens in any case, so
the paper's 4 sinks lie there, and the window here goes on behind the harness's. It is the floor `window`
under the paper's name and settings. Found here: on the sample's head 1,000 tokens more of window hold .30 of
the true top 1,000, with an output error of .110 (the exact top 1,000: .044); the paper promises no more than
fluency in what it forgets.
Build and insert O(1) a key, choosing O(budget), `search` O(budget d).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ra_bench.choosing import ChoosingIndex
from ra_bench.head import Head
from ra_bench.index import Found, Work

DEMO_WINDOW_TOKENS = 2000  # of the paper's demonstration


@dataclass
class Streaming(ChoosingIndex):
    """Keeps the keys at positions below `sinks` and the newest `recent` keys."""

    kind: ClassVar[str] = "policy"
    paper: ClassVar[str] = "arXiv 2309.17453"
    can_insert: ClassVar[bool] = True

    sinks: int = 4  # first tokens of the text that are kept, as far as the index holds them
    recent: int = 0  # newest keys that are kept; 0: as many as the budget of a call leaves

    _sink_keys = 0  # keys of the index that are sinks

    def __post_init__(self) -> None:
        for name in ("sinks", "recent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Counts the sinks; without positions, those of the keys are 0, 1, and so on."""
        super().build(keys, values, queries, about)
        positions = None if about is None else about.key_positions
        if positions is None:
            positions = np.arange(len(self.keys))
        self._sink_keys = int((np.asarray(positions) < self.sinks).sum())

    def budget_tokens(self, k: int | None, budget: int) -> int:
        """The call's budget, or else what the settings keep, or else k; the demonstration's without any."""
        kept = self._sink_keys + self.recent if self.recent else k
        if kept is None:
            kept = self._sink_keys + DEMO_WINDOW_TOKENS
        return min(len(self.keys), budget or kept)

    def choose(self, queries: np.ndarray, tokens: int) -> Found:
        """The sinks, then the newest keys; nothing is read to find them."""
        first = min(self._sink_keys, tokens)
        n = len(self.keys)
        kept = np.concatenate([np.arange(first), np.arange(n - (tokens - first), n)]).astype(np.int32)
        none = np.zeros(len(queries), np.int64)
        return Found(np.tile(kept, (len(queries), 1)), Work(none + tokens, none, none))

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Nothing to choose where the settings name the window, else budgets from k on."""
        return [{}] if self.recent else super().effort_sweep(n, k)

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Appends the block."""
        self.keep_inserted(keys, values)

    def save_state(self, folder: Path) -> None:
        """How many keys are sinks."""
        np.save(folder / "sinks.npy", np.array(self._sink_keys))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Reads it."""
        self._sink_keys = int(np.load(folder / "sinks.npy"))
        if not 0 <= self._sink_keys <= len(self.keys):
            raise ValueError(f"sinks must be at most {len(self.keys)} keys, got {self._sink_keys}")
