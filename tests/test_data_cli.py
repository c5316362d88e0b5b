"""`ra-bench data`: results on stdout, progress on stderr, errors in one line."""

from __future__ import annotations

import json
import sys

import pytest

from ra_bench.cli import main


@pytest.fixture
def ra_bench(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ra-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_list_tells_families_and_known_sets_and_whether_they_are_here(ra_bench):
    code, out, _ = ra_bench("data", "list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    llama = next(row for row in rows if row.get("name") == "llama-128-ip")
    assert llama["family"] == "vibe"
    assert not llama["present"]
    assert llama["source"].startswith("https://")


def test_a_dump_is_generated_described_and_verified(ra_bench, tmp_path):
    made = tmp_path / "made"
    code, out, err = ra_bench(
        "data", "gen", "--out", made, "--tokens", "1500", "--decode-steps", 4, "--learn-queries", 70
    )
    assert (code, out) == (0, f"1 head in {made}\n"), err
    code, out, _ = ra_bench("data", "verify", made)
    assert code == 0
    assert "1504 keys, 98 queries: whole, finite, as their SHA-256" in out
    code, out, _ = ra_bench("data", "info", made, "--json")
    row = json.loads(out)
    assert row["difficulty_mahalanobis_queries"] > row["difficulty_mahalanobis_keys"]
    assert (made / "difficulty.json").exists()
    assert ra_bench("data", "info", made)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "/nowhere"], "no such folder or file"),
        (["info", ""], "must not be empty"),
        (["info", "sample", "--layers", "3"], "has no layer 3; it has 12"),
        (["verify", "yi-128-ip"], "get it from https://"),
        (["import", "sample", "--out", "never"], "is a dump already"),
        (["gen", "--out", "never", "--tokens", "9x"], "--tokens must be a number of tokens"),
        (["gen", "--out", "never", "--tokens", "10"], "--tokens must be at least 641, got 10"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(ra_bench, arguments, message):
    code, out, err = ra_bench("data", *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
