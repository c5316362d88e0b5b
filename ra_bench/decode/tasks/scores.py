"""How answers are scored, as RULER and InfiniteBench define it: 0 for wrong, 1 for right, or a share."""

from __future__ import annotations

import re


def all_contained(answers: tuple[str, ...], text: str) -> float:
    """The share of `answers` that `text` contains, whatever the case (RULER's `string_match_all`)."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def first_integer(answers: tuple[str, ...], text: str) -> float:
    """Whether the first run of digits in `text` is the answer (InfiniteBench, passkey and number string)."""
    digits = re.search(r"[0-9]+", text)
    return float(digits is not None and digits.group() == answers[0])


def whole_word(answers: tuple[str, ...], text: str) -> float:
    """Whether the answer is a word of `text`, quotes and punctuation aside (InfiniteBench, key-value)."""
    return float(answers[0] in re.sub(r"[\n:\"'.,?!{}]", " ", text).split())
