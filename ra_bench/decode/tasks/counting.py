"""Counting words over the whole context: RULER's common words (cwe) and frequent words (fwe).

Definitions: arXiv 2404.06654.

cwe, as in RULER: a numbered list in which 10 words come 30 times and all others 3 times, after a solved
example of 40 words that come 10 and 3 times; an answer may have 120 tokens. Departures: the words are made
up, not English; below 4,096 tokens they come 6 times and once, in the example (20 words) 3 times and once.

fwe, as in RULER: coded words of six letters, the word of rank r in r^-2 of the places (zeta distribution), a
vocabulary of a fiftieth of the context; the first rank is dots to be ignored, the answer is the next three,
in 50 tokens. The sentences around the words are our own in both.
"""

from __future__ import annotations

import itertools
import math
import random
import string
from typing import NamedTuple

from ra_bench.decode.tasks.haystack import distinct, letters, made_up_word
from ra_bench.decode.tasks.passage import Build, Passage, Task
from ra_bench.decode.tasks.scores import all_contained

COMMON_WORDS = 10
_ZETA_2 = math.pi**2 / 6
_SHORT_TOKENS = 4096


class _Times(NamedTuple):
    """How often common and other words come."""

    common: int
    other: int


def _draw_common(rng: random.Random, number: int, context_tokens: int) -> Build:
    short = context_tokens < _SHORT_TOKENS
    example_words, example_times = (20, _Times(3, 1)) if short else (40, _Times(10, 3))
    times = _Times(6, 1) if short else _Times(30, 3)
    words = distinct(random.Random(rng.getrandbits(64)), made_up_word)
    seeds = rng.getrandbits(64), rng.getrandbits(64)
    example_list = list(itertools.islice(words, example_words))
    solved = ", ".join(example_list[:COMMON_WORDS])
    example = (
        f"{_word_list(example_list, example_times, seeds[0])}{_COMMON_QUESTION}\n{_COMMON_REPLY} {solved}\n\n"
    )
    drawn = list(itertools.islice(words, COMMON_WORDS))

    def build(units: int) -> Passage:
        drawn.extend(itertools.islice(words, max(0, COMMON_WORDS + units - len(drawn))))
        return Passage(
            context=example + _word_list(drawn[: COMMON_WORDS + units], times, seeds[1]),
            question=_COMMON_QUESTION,
            reply=_COMMON_REPLY,
            answers=tuple(drawn[:COMMON_WORDS]),
        )

    return build


_COMMON_QUESTION = f"Question: what are the {COMMON_WORDS} most common words in the list?"
_COMMON_REPLY = f"Answer: the {COMMON_WORDS} words that appear most often in the list are:"


def _word_list(words: list[str], times: _Times, seed: int) -> str:
    """The numbered list: the first ten of `words` are the common ones."""
    places = [word for word in words[:COMMON_WORDS] for _ in range(times.common)]
    places += [word for word in words[COMMON_WORDS:] for _ in range(times.other)]
    random.Random(seed).shuffle(places)
    numbered = " ".join(f"{place}. {word}" for place, word in enumerate(places, 1))
    return (
        "Below is a numbered list of words, some of which appear more often than others. "
        f"Remember those that appear most often.\n{numbered}\n"
    )


def _draw_frequent(rng: random.Random, number: int, context_tokens: int) -> Build:
    coded = distinct(random.Random(rng.getrandbits(64)), letters(6, string.ascii_lowercase))
    vocabulary = ["...", *itertools.islice(coded, max(40, context_tokens // 50) - 1)]
    seed = rng.getrandbits(64)

    def build(units: int) -> Passage:
        places = [
            word
            for rank, word in enumerate(vocabulary, 1)
            for _ in range(int(units / (rank * rank * _ZETA_2)))
        ]
        random.Random(seed).shuffle(places)
        return Passage(
            context=(
                "Below is a coded text. Count how often each coded word appears and find the three "
                f"that appear most often.\n{' '.join(places)}\n"
            ),
            question=(
                "Question: what are the three most frequent words of the coded text? "
                "Leave out the dots '...' and explain nothing."
            ),
            reply="Answer: the three most frequent words of the coded text are:",
            answers=tuple(vocabulary[1:4]),
        )

    return build


COUNTING_TASKS = {
    "cwe": Task(
        "the ten common words of a numbered list", 120, "word of the list", 10, _draw_common, all_contained
    ),
    "fwe": Task(
        "the three most frequent words of a coded text", 50, "coded word", 200, _draw_frequent, all_contained
    ),
}
