"""The budgets at which methods without a common k are compared, and the tokens that they buy."""

from __future__ import annotations

from ra_bench.index import Index

# Bytes read a query, as shares of an index's keys and values; times, as shares of an exact scan's.
BYTE_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
TIME_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def ks_to_measure(index: Index, ks: tuple[int, ...], n: int) -> list[int]:
    """The `ks` asked for; for the oracle and the floors also the tokens that each share of n keys buys."""
    bought = [round(n * share) for share in BYTE_SHARES] if index.kind in ("exact", "floor") else []
    return sorted({*ks, *(k for k in bought if k)})


def share_text(share: float) -> str:
    """A share as a person reads it: 1/64, 1."""
    return "1" if share == 1 else f"1/{round(1 / share)}"
