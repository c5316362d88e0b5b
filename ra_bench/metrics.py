"""Quality of what an index found: pure functions of arrays, one value per query.

Inputs are exact scores (logits) computed by the harness from ids and true vectors; scores that an index
reports are never used. A key found twice counts once: `distinct_scores` comes first.
"""

from __future__ import annotations

import numpy as np

# Two float32 sums of the same products in another order differ by about this much of the largest score.
TIE_TOLERANCE = 1e-5


def distinct_scores(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`scores` (m, k) with -inf where `ids` (m, k) holds -1 or a key that stands further left too."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    repeated = np.zeros(ids.shape, bool)
    np.put_along_axis(repeated[:, :], order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return np.where(repeated | (ids < 0), -np.inf, scores).astype(np.float32)


def recall(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Share of the exact top-k that was found, in [0, 1], higher is better; ties with the k-th are allowed.

    `found` (m, any) distinct scores, `true` (m, k) exact top-k scores, best first. 1 when all is found.
    """
    real = np.isfinite(true)
    wanted = real.sum(axis=1)
    last = np.take_along_axis(true, np.maximum(wanted - 1, 0)[:, None], axis=1)[:, 0]
    tolerance = TIE_TOLERANCE * np.maximum(np.abs(true[:, 0]), np.abs(last))
    hits = (found >= (last - tolerance)[:, None]).sum(axis=1)
    return np.minimum(hits, wanted) / np.maximum(wanted, 1)


def mass(found: np.ndarray, lse: np.ndarray) -> np.ndarray:
    """Share of the softmax mass `exp(lse)` (m,) that the found keys hold, in [0, 1], higher is better."""
    return np.exp(found.astype(np.float64) - lse[:, None]).sum(axis=1)


def share_of(part_lse: np.ndarray, total_lse: np.ndarray) -> np.ndarray:
    """Share of the softmax mass `exp(total_lse)` that a part of the keys holds, in [0, 1]."""
    return np.exp(np.asarray(part_lse, np.float64) - total_lse)


def output_error(approximate: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|o' - o| / |o| per query, from 0 on, lower is better; 1 is as bad as an output of zero."""
    norms = np.linalg.norm(exact.astype(np.float64), axis=1)
    errors = np.linalg.norm(approximate.astype(np.float64) - exact, axis=1)
    return errors / np.maximum(norms, np.finfo(np.float32).tiny)
