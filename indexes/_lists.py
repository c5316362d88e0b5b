"""What methods of inverted lists with codes share: the efforts worth trying."""

from __future__ import annotations

from typing import Any


def probe_and_rerank_sweep(nlist: int, few: tuple[int, ...], many: tuple[int, ...]) -> list[dict[str, Any]]:
    """From 3 to 100 % of `nlist` lists, each share with few and with many exact scores (multiples of k).

    `few` and `many` say how many for the cheap, the middle and the dear third of the shares.
    """
    shares = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0)
    efforts = [
        (max(1, round(share * nlist)), step[i // 3]) for i, share in enumerate(shares) for step in (few, many)
    ]
    return [{"nprobe": nprobe, "rerank": rerank} for nprobe, rerank in dict.fromkeys(efforts)]
