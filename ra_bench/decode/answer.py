"""The decoding of one sample through one cache: the question's tokens, then the answer, greedily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ra_bench.decode.step import Step, Stepper


@dataclass
class Answer:
    """What was decoded: `tokens` of the answer, and all steps, of which the first `forced` were given theirs.

    `logits` (forced, vocab) float32 are those of what follows each given token, where they are kept.
    """

    forced: int
    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    logits: np.ndarray | None = None

    @property
    def question_s(self) -> float:
        """Seconds of the given tokens."""
        return sum(step.seconds for step in self.steps[: self.forced])


def answer(
    stepper: Stepper,
    prompt_logits: torch.Tensor,
    forced: Sequence[int],
    new_tokens: int,
    stop: frozenset[int],
    keep_logits: bool = False,
    before_step: Callable[[int], None] = lambda _: None,
) -> Answer:
    """Feeds `forced`, then decodes up to `new_tokens` tokens or to one of `stop`, which is not kept.

    Without forced tokens the first of the answer is the likeliest by `prompt_logits` (1, vocab).
    `before_step(number)` is called before each step, on nobody's time.
    """
    made = Answer(len(forced))
    kept: list[np.ndarray] = []

    def take(token: int) -> int:
        before_step(len(made.steps))
        made.steps.append(stepper.step(token))
        return made.steps[-1].next_token

    following = int(prompt_logits.argmax())
    for token in forced:
        following = take(token)
        if keep_logits:
            kept.append(stepper.logits[0].float().cpu().numpy())
    if kept:
        made.logits = np.stack(kept)
    while len(made.tokens) < new_tokens and following not in stop:
        made.tokens.append(following)
        if len(made.tokens) < new_tokens:  # what would follow the last is not asked for
            following = take(following)
    return made
