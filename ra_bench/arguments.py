"""Numbers as a command line takes them: `0,8-11`, `32k`, `2/4`; and bounds that several verbs share."""

from __future__ import annotations

from pathlib import Path

from ra_bench import hardware
from ra_bench.errors import UsageError

LARGEST = 1_000_000
DIGITS = 18  # more than anything here has, and times a unit far below what int() refuses
SEEDS = 10**9  # faiss takes a C int, pynndescent 32 bits, and methods draw with the next seeds, too
BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_numbers(argument: str, text: str) -> list[int]:
    """`0,8-11` → [0, 8, 9, 10, 11], ascending, without repeats. Raises UsageError naming `argument`."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        rule = f"{argument} must be numbers and ranges such as 0,8,16-19"
        low, high = (_whole(end, rule, text) for end in (first, last if dash else first))
        if low > high or high >= LARGEST:
            raise UsageError(f"{argument}: a range must rise and stay below {LARGEST}, got '{part.strip()}'")
        numbers.update(range(low, high + 1))
    return sorted(numbers)


def parse_part(argument: str, text: str) -> tuple[int, int]:
    """`2/4` → (2, 4), the second of four. Raises UsageError naming `argument`."""
    part, _, parts = text.partition("/")
    rule = f"{argument} must be I/N such as 2/4"
    return _whole(part, rule, text), _whole(parts, rule, text)


def parse_tokens(text: str, argument: str = "--context") -> int:
    """A number of tokens: "4096", "32k" for 32 * 1024 or "1m" for 1024 * 1024. Raises UsageError."""
    factor = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    return _whole(digits, f"{argument} must be a number of tokens such as 4096 or 32k", text, 1) * factor


def parse_bytes(text: str, argument: str) -> int:
    """A size: "1000000", or "200g" for 200 * 10^9; k, m, g and t are powers of 1000. Raises UsageError."""
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    digits = text[: len(text) - len(unit)] if unit in BYTE_UNITS else ""
    rule = f"{argument} must be a number of bytes such as 500m or 64g"
    return _whole(digits, rule, text, 1) * BYTE_UNITS[unit]


def check_seed(seed: int) -> None:
    """Raises UsageError for a seed that not everything that draws can take."""
    if not 0 <= seed < SEEDS:
        raise UsageError(f"--seed must be at least 0 and below {SEEDS:,}, got {seed}")


def check_tokens(argument: str, tokens: int, decode_steps: int) -> None:
    """Raises UsageError for more tokens than the positions of a dump, 32-bit numbers, can tell apart."""
    if tokens + decode_steps >= 1 << 31:
        raise UsageError(
            f"{argument} and --decode-steps must be below 2^31 tokens, got {tokens} and {decode_steps}"
        )


def check_threads(threads: int, here: bool = True) -> None:
    """Raises UsageError for fewer than one thread or, where they run `here`, for more than cores.

    More would wait for each other, and what is timed with them would be the time of fewer; of far too many,
    OpenMP may end the process.
    """
    if threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    if here and threads > (cores := hardware.core_count()):
        raise UsageError(f"--threads must be at most {cores}, the cores that are here, got {threads}")


def check_file(argument: str, path: Path) -> None:
    """Raises UsageError where a file is to be written that is a folder: before anything is read for it."""
    if path.is_dir():
        raise UsageError(f"{argument} must be a file, got the folder '{path}'")


def _whole(digits: str, rule: str, text: str, least: int = 0) -> int:
    """The whole number `digits`, a part of the argument `text`. Raises UsageError, which tells the `rule`."""
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"{rule}, got '{text}'")
    if len(digits) > DIGITS:
        raise UsageError(f"{rule}, of at most {DIGITS} digits, got {len(digits)}: '{digits[:DIGITS]}…'")
    if int(digits) < least:
        raise UsageError(f"{rule}, got '{text}'")
    return int(digits)
