"""Numbers as a command line takes them: `0,8-11`, `32k`, `2/4`."""

from __future__ import annotations

from ra_bench.errors import UsageError

LARGEST = 1_000_000
BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


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


def parse_part(argument: str, text: str) -> tuple[int, int]:
    """`2/4` → (2, 4), the second of four. Raises UsageError naming `argument`."""
    part, _, parts = text.partition("/")
    if not all(number.isascii() and number.isdigit() for number in (part, parts)):
        raise UsageError(f"{argument} must be I/N such as 2/4, got '{text}'")
    return int(part), int(parts)


def parse_tokens(text: str, argument: str = "--context") -> int:
    """A number of tokens: "4096", "32k" for 32 * 1024 or "1m" for 1024 * 1024. Raises UsageError."""
    factor = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise UsageError(f"{argument} must be a number of tokens such as 4096 or 32k, got '{text}'")
    return int(digits) * factor


def parse_bytes(text: str, argument: str) -> int:
    """A size: "1000000", or "200g" for 200 * 10^9; k, m, g and t are powers of 1000. Raises UsageError."""
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    digits = text[: len(text) - len(unit)]
    if unit not in BYTE_UNITS or not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise UsageError(f"{argument} must be a number of bytes such as 500m or 64g, got '{text}'")
    return int(digits) * BYTE_UNITS[unit]
