"""What the graph indexes share: the queue lengths worth trying."""

from __future__ import annotations


def ef_sweep(n: int, k: int) -> list[int]:
    """Queue lengths from k to 32 k, at most half of the `n` keys, without repeats."""
    multiples = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
    most = max(n // 2, 1)
    return sorted({min(max(round(multiple * max(k, 10)), 1), most) for multiple in multiples})
