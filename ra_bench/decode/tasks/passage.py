"""What the families of tasks share: a passage of text, and the description of a task."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A prompt as text. `context` is read first; `question` follows it; `reply` is how the answer begins.

    `answers` are what the text says; `depths` tell where each needle lies, as a share of the filler before
    it.
    """

    context: str
    question: str
    reply: str
    answers: tuple[str, ...]
    depths: tuple[float, ...] = ()


# Makes the passage of a number of filler units. A longer one has the same needles at the same depths.
Build = Callable[[int], Passage]


@dataclass(frozen=True)
class Task:
    """A task: what it asks, how long an answer may be, and how a passage is drawn and an answer scored.

    `draw(rng, number, context_tokens)` fixes all that is random in sample `number`; `unit` names its filler
    and `least_units` is how little of it still makes sense. `score(answers, text)` is in [0, 1].
    """

    description: str
    max_new_tokens: int
    unit: str
    least_units: int
    draw: Callable[[random.Random, int, int], Build]
    score: Callable[[tuple[str, ...], str], float]
