"""Numbers of a command line are read right or refused in one line, however long they are."""

from __future__ import annotations

import pytest

from ra_bench.arguments import (
    check_seed,
    check_threads,
    check_tokens,
    parse_bytes,
    parse_numbers,
    parse_part,
    parse_tokens,
)
from ra_bench.errors import UsageError
from ra_bench.hardware import core_count

LONG = "9" * 5000  # int() raises ValueError for it


def test_numbers_are_read_with_their_ranges_and_units() -> None:
    assert parse_numbers("--k", "8-10, 0,9") == [0, 8, 9, 10]
    assert parse_part("--part", "2/4") == (2, 4)
    assert parse_tokens("32K") == 32 * 1024
    assert parse_bytes("64g", "--max-bytes") == 64 * 10**9
    assert parse_tokens("9" * 18) == 10**18 - 1


@pytest.mark.parametrize(
    "read",
    [
        lambda text: parse_numbers("--it", text),
        lambda text: parse_numbers("--it", f"0-{text}"),
        lambda text: parse_part("--it", f"1/{text}"),
        lambda text: parse_tokens(text, "--it"),
        lambda text: parse_tokens(f"{text}k", "--it"),
        lambda text: parse_bytes(f"{text}g", "--it"),
    ],
)
@pytest.mark.parametrize("digits", [19, 5000])
def test_a_number_of_too_many_digits_is_refused_in_one_short_line(read, digits) -> None:
    with pytest.raises(UsageError, match=rf"^--it .*of at most 18 digits, got {digits}: '9{{18}}…'$"):
        read(LONG[:digits])


@pytest.mark.parametrize("text", ["", "0", "k", "-1", "1.5", "٣", "4q", "²"])
def test_what_is_no_number_of_tokens_or_bytes_is_refused(text) -> None:
    with pytest.raises(UsageError, match=f"^--it must be a number of tokens such as .*, got '{text}'$"):
        parse_tokens(text, "--it")
    with pytest.raises(UsageError, match=f"^--it must be a number of bytes such as .*, got '{text}'$"):
        parse_bytes(text, "--it")


@pytest.mark.parametrize("seed", [-1, 10**9, 10**27])
def test_a_seed_that_does_not_fit_is_refused(seed) -> None:
    with pytest.raises(UsageError, match=rf"^--seed must be at least 0 and below 1,000,000,000, got {seed}$"):
        check_seed(seed)
    check_seed(10**9 - 1)


def test_more_threads_than_cores_are_refused_unless_they_run_elsewhere() -> None:
    with pytest.raises(UsageError, match=rf"^--threads must be at most {core_count()}, .* got 999999$"):
        check_threads(999_999)
    with pytest.raises(UsageError, match=r"^--threads must be at least 1, got 0$"):
        check_threads(0, here=False)
    check_threads(999_999, here=False)
    check_threads(core_count())


def test_more_tokens_than_positions_can_tell_apart_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--tokens and --decode-steps must be below 2\^31 tokens, got "):
        check_tokens("--tokens", (1 << 31) - 2, 2)
    check_tokens("--tokens", (1 << 31) - 2, 1)
