"""From text to tokens: the model's chat template, and as much filler as the context has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ra_bench.decode.tasks.passage import Passage
from ra_bench.errors import UsageError

_MARK = "\N{LEFT WHITE SQUARE BRACKET}text\N{RIGHT WHITE SQUARE BRACKET}"

# Templates that think aloud, or that name the day, are told not to: a prompt depends on its seed alone.
_TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class Template:
    """What a tokenizer puts around a user's message: `head` before it, `tail` after it up to the reply."""

    tokenizer: Any
    head: str
    tail: str
    first_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        """The chat template of a transformers `tokenizer`; without one, nothing but its first token."""
        if getattr(tokenizer, "chat_template", None) is None:
            bos = tokenizer.bos_token_id
            first = bos is not None and tokenizer("a", verbose=False)["input_ids"][0] == bos
            return cls(tokenizer, "", "\n", (bos,) if first else ())
        message = [{"role": "user", "content": _MARK}]
        text = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, **_TEMPLATE_ARGUMENTS
        )
        head, mark, tail = text.partition(_MARK)
        if not mark:
            raise UsageError("--model: its chat template leaves the user's message out")
        return cls(tokenizer, head, tail, ())

    def encode(self, passage: Passage) -> tuple[list[int], list[int]]:
        """The passage's context and question as token ids; the reply's beginning ends the question."""
        question = f"{passage.question}{self.tail}{passage.reply}"
        return [*self.first_ids, *self._ids(self.head + passage.context)], self._ids(question)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def most_units(count_tokens: Any, most_tokens: int, least: int, guess: int) -> int:
    """The largest number of filler units, from `least`, with `count_tokens(units)` within `most_tokens`.

    The count is taken to grow with the units, nearly in a straight line: after `guess`, each probe goes where
    the line through the last two meets the limit, every third one halves the interval. Returns `least` - 1
    where even `least` is too long.
    """
    low, high = least - 1, None
    probes: list[tuple[int, int]] = []
    units = max(least, guess)
    while high is None or high - low > 1:
        tokens = count_tokens(units)
        probes.append((units, tokens))
        if tokens <= most_tokens:
            low = units
        else:
            high = units
        units = _next_probe(probes, most_tokens, low, high)
    return low


def _next_probe(probes: list[tuple[int, int]], most_tokens: int, low: int, high: int | None) -> int:
    if high is not None and len(probes) % 3 == 0:
        return (low + high) // 2
    (units, tokens), (earlier_units, earlier_tokens) = probes[-1], probes[-2] if len(probes) > 1 else (0, 0)
    slope = (tokens - earlier_tokens) / (units - earlier_units) if units != earlier_units else 0.0
    step = (most_tokens - tokens) / slope if slope > 0 else 1.0
    aim = units + int(step // 1) + (1 if high is None else 0)
    return max(low + 1, aim if high is None else min(aim, high - 1))
