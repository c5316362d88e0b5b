"""Numbers as a command line takes them: `0,8-11`, `32k`."""

from __future__ import annotations

from ra_bench.errors import UsageError

LARGEST = 1_000_000


def parse_numbers(argument: str, text: str) -> list[int]:
    """`0,8-11` → [0, 8, 9, 10, 11], ascending, without repeats. Raises UsageError naming `argument`."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() for end in ends):
            raise UsageError(f"{argument} must be numbers and ranges such as 0,8,16-19, got '{text}'")
        low, high = int(ends[0]), int(ends[1])
        if low > high or high >= LARGEST:
            raise UsageError(f"{argument}: a range must rise and stay below {LARGEST}, got '{part.strip()}'")
        numbers.update(range(low, high + 1))
    return sorted(numbers)


def parse_tokens(text: str, argument: str = "--context") -> int:
    """A number of tokens: "4096", or "32k" for 32 * 1024. Raises UsageError."""
    digits, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise UsageError(f"{argument} must be a number of tokens such as 4096 or 32k, got '{text}'")
    return int(digits) * factor
