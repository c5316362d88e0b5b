"""What result folders hold, told to people and to programs."""

from __future__ import annotations

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from ra_bench.cli import app
from ra_bench.errors import UsageError
from ra_bench.exported import result_folders, rows_of, summary, write_csv
from ra_bench.results import COLUMNS, LONG_COLUMNS, ResultFolder


@pytest.fixture
def folder(tmp_path):
    """Two units, one of which failed."""
    made = ResultFolder(tmp_path / "results" / "one", {"verb": "compare"})
    good = {"unit": "a", "status": "ok", "index": "flat", "recall": 0.5, "recall_by_query": [0.25, 0.75]}
    made.write("a", [good, good | {"recall": 1.0, "effort": '{"ef": 3}'}])
    made.write("b", [{"unit": "b", "status": "failed", "index": "ra", "reason": 'a "quoted", reason'}])
    return made.path


def test_a_summary_counts_units_rows_failures_and_damage(folder) -> None:
    (folder / "rows" / "c.parquet").write_bytes(b"damaged")

    one = summary(folder)

    assert (one.verb, one.units, one.rows, one.failed, one.damaged) == ("compare", 3, 3, 1, 1)
    assert one.indexes == ["flat", "ra"]


def test_folders_are_found_alone_and_inside_another(folder) -> None:
    assert result_folders([folder]) == result_folders([folder.parent]) == [folder]
    with pytest.raises(UsageError, match=r"must be a result folder, or hold some: it has no run\.json"):
        result_folders([folder / "rows"])


def test_csv_gives_back_every_short_column(folder) -> None:
    sink = io.StringIO()

    assert write_csv(rows_of(folder, samples=False), sink) == 3

    rows = list(csv.DictReader(io.StringIO(sink.getvalue())))
    assert list(rows[0]) == [name for name in COLUMNS if name not in LONG_COLUMNS]
    assert [row["recall"] for row in rows] == ["0.5", "1.0", ""]
    assert rows[2]["reason"] == 'a "quoted", reason'


def test_json_lines_hold_the_samples_when_asked_for(folder) -> None:
    told = CliRunner().invoke(app, ["results", "export", "json", str(folder), "--samples"])

    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(rows) == 3
    assert rows[0]["recall_by_query"] == [0.25, 0.75]


def test_an_export_lands_in_a_file_whole(folder, tmp_path) -> None:
    target = tmp_path / "rows.csv"

    told = CliRunner().invoke(app, ["results", "export", "csv", str(folder), "--out", str(target)])

    assert told.exit_code == 0
    assert len(target.read_text().splitlines()) == 4
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("verb", ["results export csv {0}", "heads --data {0}", "report {0}"])
def test_a_folder_in_place_of_the_file_to_write_is_refused(folder, verb) -> None:
    told = CliRunner().invoke(app, [*verb.format(folder).split(), "--out", str(folder)])

    assert isinstance(told.exception, UsageError)
    assert str(told.exception) == f"--out must be a file, got the folder '{folder}'"


def test_the_list_is_json_too(folder) -> None:
    told = CliRunner().invoke(app, ["results", "list", str(folder.parent), "--json"])

    assert json.loads(told.stdout)["units"] == 2
