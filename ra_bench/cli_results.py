"""`ra-bench results`: lists result folders and exports their rows."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from ra_bench.arguments import check_file
from ra_bench.cli_common import Verbs, out
from ra_bench.errors import UsageError

app = Verbs(help="What result folders hold.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_results(
    places: Annotated[
        list[Path] | None, typer.Argument(help="Result folders, or folders of them. Default: results.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
) -> None:
    """Lists result folders: what ran, how much has landed, what failed."""
    from ra_bench.exported import result_folders, summary

    summaries = [summary(folder) for folder in result_folders(places or [Path("results")])]
    if as_json:
        for one in summaries:
            print(json.dumps(asdict(one)))
        return
    table = Table(pad_edge=False)
    for column in ("folder", "verb", "units", "rows", "failed", "damaged", "MB", "last", "indexes"):
        table.add_column(column, justify="right" if column in ("units", "rows", "failed", "MB") else "left")
    for one in summaries:
        counts = [str(count) for count in (one.units, one.rows, one.failed, one.damaged)]
        names = ", ".join(one.indexes)
        table.add_row(one.folder, one.verb, *counts, f"{one.bytes / 1e6:.1f}", one.last, names)
    Console(width=max(112, out.width), markup=False, highlight=False).print(table)


@app.command("export")
def export_results(
    form: Annotated[Literal["csv", "json"], typer.Argument(help="csv, or json: one object a line.")],
    folder: Annotated[Path, typer.Argument(help="A result folder.")],
    file: Annotated[Path | None, typer.Option("--out", help="File to write. Default: stdout.")] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="With the columns of a value a query or call.")
    ] = False,
) -> None:
    """Exports all rows of a result folder."""
    from ra_bench.exported import result_folders, rows_of, write_csv, write_json
    from ra_bench.results import write_whole

    if file is not None:
        check_file("--out", file)
    (first, *_) = result_folders([folder])
    if first != folder:
        raise UsageError(f"'{folder}' must be one result folder, got a folder of them")
    text = io.StringIO()
    count = {"csv": write_csv, "json": write_json}[form](rows_of(folder, samples), text)
    if file is None:
        sys.stdout.write(text.getvalue())
        return
    write_whole(file, text.getvalue().encode())
    print(f"{count} rows in {file}", file=sys.stderr)
