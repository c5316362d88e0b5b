"""One decoded token: the model's forward through a cache, and the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ra_bench.decode.cache import DecodeCache


@dataclass(frozen=True)
class Step:
    """A step's likeliest next token, its seconds, and their parts by name."""

    next_token: int
    seconds: float
    parts: dict[str, float]


class Stepper:
    """Runs `model` a token at a time through `cache`, inside `cache.serving(model)`.

    `insert` moves tokens that left the window into the indexes after a step, and gives the seconds it took;
    it is part of the step. `logits` (1, vocab) are those of the last step, on the device.
    """

    def __init__(self, model: Any, cache: DecodeCache, insert: Callable[[], float] = lambda: 0.0) -> None:
        device = model.device
        pinned = device.type == "cuda"
        self._model = model
        self._cache = cache
        self._insert = insert
        self._token = torch.zeros(1, 1, dtype=torch.long, pin_memory=pinned)
        self._ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._next = torch.zeros(1, dtype=torch.long, pin_memory=pinned)
        self.logits: torch.Tensor = torch.empty(0)

    def prepare(self) -> float:
        """Rehearses, and captures where the track does; returns the seconds. Leaves the cache as it was."""
        started_s = time.perf_counter()
        self._cache.rehearsing = True
        self._cache.track.prepare(self._body, self._cache.rewind)
        self._cache.rehearsing = False
        return time.perf_counter() - started_s

    def step(self, token: int) -> Step:
        """Feeds `token` and waits for what comes next. Reading the clocks and counters is not its time."""
        started_s = time.perf_counter()
        self._token.fill_(token)
        self._cache.track.run(self._body)
        self._cache.count()
        run_s = time.perf_counter() - started_s
        parts = self._cache.track.times()
        self._cache.settle()
        parts["insert"] = self._insert()
        parts["harness"] = run_s - parts.pop("critical")
        seconds = run_s + parts["insert"]
        return Step(int(self._next[0]), seconds, parts)

    def _body(self) -> None:
        """The device's work of a step, all at fixed addresses."""
        self._ids.copy_(self._token, non_blocking=True)
        self._cache.begin()
        out = self._model(
            input_ids=self._ids,
            position_ids=self._cache.position,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = out.logits[:, -1]
        self._next.copy_(self.logits.argmax(-1), non_blocking=True)
        self._cache.end()
