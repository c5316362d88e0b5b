"""Variable tracking: RULER's vt (arXiv 2404.06654): which names hold a value, through a chain of assignments.

As in RULER: one chain of four hops (five names of five capitals, a 5-digit number) among noise, in order,
after one short solved example; an answer may have 30 tokens. Departure: the sentences around it are our own.
"""

from __future__ import annotations

import itertools
import random
import string

from ra_bench.decode.tasks.haystack import DEPTHS, NOISE, distinct, insert, letters, number_of
from ra_bench.decode.tasks.passage import Build, Passage, Task
from ra_bench.decode.tasks.scores import all_contained

HOPS = 4
_EXAMPLE_LINES = 5
_INTRODUCTION = "Variables are assigned in the text below. Follow the chain of assignments.\n"


def _draw(rng: random.Random, number: int, context_tokens: int) -> Build:
    names = distinct(random.Random(rng.getrandbits(64)), letters(5, string.ascii_uppercase))
    values = distinct(random.Random(rng.getrandbits(64)), number_of(5))
    chains = [(next(values), list(itertools.islice(names, HOPS + 1))) for _ in range(2)]
    depths = [sorted(rng.sample(DEPTHS, HOPS + 1)) for _ in range(2)]
    (example_value, example_names), (value, chain) = chains
    example = (
        _INTRODUCTION
        + _text(example_value, example_names, depths[0], _EXAMPLE_LINES)
        + f"\n{_question(example_value)}\n{_reply(example_value)} {', '.join(example_names)}\n\n"
    )

    def build(units: int) -> Passage:
        return Passage(
            context=f"{example}{_INTRODUCTION}{_text(value, chain, depths[1], units)}\n",
            question=_question(value),
            reply=_reply(value),
            answers=tuple(chain),
            depths=tuple(depths[1]),
        )

    return build


def _text(value: str, names: list[str], depths: list[float], lines: int) -> str:
    """Noise with the chain in it: the first name gets the value, each other one the name before it."""
    held = [value, *(f"VAR {name}" for name in names)]
    assignments = [f"VAR {name} = {what}" for name, what in zip(names, held, strict=False)]
    return "\n".join(insert([NOISE] * lines, assignments, depths))


def _question(value: str) -> str:
    return f"Question: which variables hold the value {value}, directly or through others?"


def _reply(value: str) -> str:
    return f"Answer: the {HOPS + 1} variables that hold the value {value} are:"


VARIABLE_TASKS = {
    "vt": Task(
        "the five variables of one chain of assignments, among noise",
        30,
        "line of noise",
        1,
        _draw,
        all_contained,
    )
}
