"""How close a model with an index stays to dense attention, token by token of a given text.

Teacher-forced: the context is read, then each of the next tokens is fed as the text has it, whatever the
model would have said. Both runs predict the same tokens, so their logits can be compared row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ra_bench.errors import UsageError

FORCED_TOKENS = 256


class Fidelity(NamedTuple):
    """Each (t,), one a predicted token: `kl` of dense to other and `delta_nll`, in nats; `agrees`, bool.

    `delta_nll` is how much less likely the other run finds the text's token; `agrees` is whether both find
    the same token likeliest.
    """

    kl: np.ndarray
    agrees: np.ndarray
    delta_nll: np.ndarray


def compare_logits(dense: np.ndarray, other: np.ndarray, next_ids: Sequence[int]) -> Fidelity:
    """Compares logits (t, vocab) of two runs, whose row i predicts the text's token `next_ids[i]`.

    Computed in float64. Raises ValueError where shapes differ or logits are not finite.
    """
    ids = np.asarray(next_ids)
    if dense.shape != other.shape or dense.shape[:1] != ids.shape:
        raise ValueError(f"logits {dense.shape} and {other.shape} and ids {ids.shape} do not belong together")
    if not (np.isfinite(dense).all() and np.isfinite(other).all()):
        raise ValueError("logits must be finite")
    one, two = _log_softmax(dense), _log_softmax(other)
    rows = np.arange(len(ids))
    return Fidelity(
        kl=np.maximum((np.exp(one) * (one - two)).sum(axis=1), 0.0),
        agrees=one.argmax(axis=1) == two.argmax(axis=1),
        delta_nll=one[rows, ids] - two[rows, ids],
    )


def windows(
    token_ids: Sequence[int], context_tokens: int, count: int, first_ids: Sequence[int] = ()
) -> list[tuple[list[int], list[int]]]:
    """`count` parts of a text, each a context and the tokens that are forced after it.

    They follow each other; in a text too short for that they overlap, evenly spread.

    Together they have `context_tokens`, `first_ids` (a begin-of-text token) included; the forced ones are
    256, or an eighth of a shorter context. Raises UsageError where the text or the context is too short.
    """
    forced = min(FORCED_TOKENS, context_tokens // 8)
    if forced < 1:
        raise UsageError(f"--context must be at least 8 tokens for fidelity, got {context_tokens}")
    taken = context_tokens - len(first_ids)
    if len(token_ids) < taken:
        raise UsageError(
            f"the text for fidelity has {len(token_ids)} tokens, fewer than --context {context_tokens}"
        )
    last = len(token_ids) - taken
    step = min(taken, last / max(1, count - 1))
    starts = [int(step * number) for number in range(count)]
    parts = [[*first_ids, *token_ids[start : start + taken]] for start in starts]
    return [(part[:-forced], part[-forced:]) for part in parts]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized
