"""Needles in a haystack: RULER's niah tasks (arXiv 2404.06654).

As in RULER: a needle is a sentence with the type, the key and the value; keys are adjective-noun pairs,
values 7-digit numbers, or both are UUIDs; needles lie at some of 40 even depths; an answer may have 128
tokens. Departures: the sentences are our own; the essay is other prose and begins at a random word of it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ra_bench.decode.tasks.haystack import (
    DEPTHS,
    NOISE,
    distinct,
    essay,
    insert,
    number_of,
    random_uuid,
    word_pair,
)
from ra_bench.decode.tasks.passage import Build, Passage, Task
from ra_bench.decode.tasks.scores import all_contained

Haystack = Literal["noise", "essay", "needles"]

_SEVEN_DIGITS = number_of(7)


@dataclass(frozen=True)
class _Needles:
    """Keys and values of one kind, and the haystack that they lie in."""

    haystack: Haystack
    kind: str = "number"
    make_key: Callable[[random.Random], str] = word_pair
    make_value: Callable[[random.Random], str] = _SEVEN_DIGITS
    keys: int = 1
    values: int = 1

    def draw(self, rng: random.Random, number: int, context_tokens: int) -> Build:
        """Draws keys, values and depths; what is built from them asks for every key."""
        all_keys = distinct(random.Random(rng.getrandbits(64)), self.make_key)
        all_values = distinct(random.Random(rng.getrandbits(64)), self.make_value)
        keys = list(itertools.islice(all_keys, self.keys))
        needles = [(key, next(all_values)) for key in keys for _ in range(self.values)]
        depths = sorted(rng.sample(DEPTHS, len(needles)))
        rng.shuffle(needles)
        start = rng.randrange(1 << 30)
        others: list[str] = []  # grows with the haystack, always the same ones first

        def lines(units: int) -> list[str]:
            if self.haystack == "noise":
                return [NOISE] * units
            if self.haystack == "essay":
                return essay(start, units)
            while len(others) < units:
                others.append(self._sentence(next(all_keys), next(all_values)))
            return others[:units]

        def build(units: int) -> Passage:
            sentences = [self._sentence(*needle) for needle in needles]
            separator = " " if self.haystack == "essay" else "\n"
            return self._passage(
                separator.join(insert(lines(units), sentences, depths)),
                keys,
                tuple(value for _, value in needles),
                tuple(depths),
            )

        return build

    def _sentence(self, key: str, value: str) -> str:
        return f"One of the secret {self.kind}s of {key} is {value}."

    def _passage(
        self, text: str, keys: list[str], answers: tuple[str, ...], depths: tuple[float, ...]
    ) -> Passage:
        whom = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
        is_one = len(answers) == 1
        what = f"secret {self.kind} of {whom}" if is_one else f"secret {self.kind}s of {whom}"
        return Passage(
            context=(
                f"Secret {self.kind}s are hidden in the text below. Remember them: "
                f"you will be asked for them after the text.\n{text}\n"
            ),
            question=f"What {'is the' if is_one else 'are all the'} {what} that the text gives?",
            reply=f"The {what} in the text {'is' if is_one else 'are'}",
            answers=answers,
            depths=depths,
        )


def _task(description: str, unit: str, needles: _Needles) -> Task:
    return Task(description, 128, unit, 1 if needles.haystack != "essay" else 40, needles.draw, all_contained)


NEEDLE_TASKS = {
    "niah_single": _task("one number among repeated noise", "line of noise", _Needles("noise")),
    "niah_multikey_2": _task("one number among numbers of other keys", "other needle", _Needles("needles")),
    "niah_multikey_3": _task(
        "one UUID among UUIDs of other UUIDs",
        "other needle",
        _Needles("needles", "UUID", random_uuid, random_uuid),
    ),
    "niah_multivalue": _task("all four numbers of one key, in prose", "word", _Needles("essay", values=4)),
    "niah_multiquery": _task("the numbers of four keys, in prose", "word", _Needles("essay", keys=4)),
}
