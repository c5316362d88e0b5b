"""Rows on disk: whole or not at all, and never mistaken for another run's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ra_bench.diff.sides import read_side
from ra_bench.errors import RunError, UsageError
from ra_bench.exported import summary
from ra_bench.report.rows import read_runs
from ra_bench.results import COLUMNS, ResultFolder, content_address, read_commands

IDENTITY = {"verb": "compare", "ks": [10]}


def folder(path: Path) -> ResultFolder:
    return ResultFolder(path / "out", IDENTITY)


def test_rows_come_back_as_they_were_written(tmp_path) -> None:
    made = {"unit": "a", "status": "ok", "recall": 0.5, "recall_by_query": [0.25, 0.75], "k": 10}

    folder(tmp_path).write("a", [made])

    (row,) = folder(tmp_path).read(["a", "absent"])
    assert list(row) == list(COLUMNS)
    assert {name: row[name] for name in made} == made
    assert row["build_s"] is None


def test_a_full_disk_keeps_what_was_measured_and_leaves_no_half_file(tmp_path, monkeypatch) -> None:
    out = folder(tmp_path)
    out.write("a", [{"unit": "a", "status": "ok"}])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ra_bench.results.os.fsync", full)
    with pytest.raises(RunError, match=r"No space left on device; rows so far are kept"):
        out.write("b", [{"unit": "b", "status": "ok"}])

    assert [row["unit"] for row in out.read(["a", "b"])] == ["a"]
    assert [path.name for path in (tmp_path / "out" / "rows").iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not parquet at all"])
def test_a_damaged_row_file_is_named(tmp_path, damage) -> None:
    out = folder(tmp_path)
    out.write("a", [{"unit": "a", "status": "ok"}])
    (tmp_path / "out" / "rows" / "a.parquet").write_bytes(damage)

    with pytest.raises(RunError, match=r"a\.parquet' is damaged .*; delete it and run the same"):
        out.read(["a"])


def test_a_damaged_run_file_is_named(tmp_path) -> None:
    folder(tmp_path)
    (tmp_path / "out" / "run.json").write_text("{")

    with pytest.raises(UsageError, match=r"run\.json' cannot be read"):
        folder(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '"compare"', "{}", '{"verb": ["compare"]}', "[" * 100_000])
def test_a_run_file_that_describes_no_run_is_refused_by_whatever_reads_it(tmp_path, text) -> None:
    out = folder(tmp_path)
    out.write("a", [{"unit": "a", "status": "ok", "index": "flat"}])
    (out.path / "run.json").write_text(text)

    for read in (
        lambda: folder(tmp_path),
        lambda: read_side("A", out.path),
        lambda: read_runs([out.path]),
    ):
        with pytest.raises(UsageError, match=r"run\.json' (does not describe a run|cannot be read)"):
            read()
    assert summary(out.path).verb == "?"


def test_a_command_is_noted_once_and_after_those_that_were_noted_meanwhile(tmp_path, monkeypatch) -> None:
    out = folder(tmp_path)
    out.note_command("one")

    def seen_before_another_run_notes_its_own(path: Path) -> list[str]:
        seen = read_commands(path)
        with (path / "commands.txt").open("a") as file:
            file.write("two\n")
        return seen

    monkeypatch.setattr("ra_bench.results.read_commands", seen_before_another_run_notes_its_own)
    out.note_command("three")
    monkeypatch.undo()
    out.note_command("one")

    assert read_commands(out.path) == ["one", "two", "three"]
    assert (out.path / "commands.txt").read_text().count("\n") == 3


def test_equal_content_has_an_equal_address_whatever_its_order() -> None:
    assert content_address({"a": 1, "b": 2}) == content_address({"b": 2, "a": 1})
    assert content_address({"a": 1}) != content_address({"a": 2})
