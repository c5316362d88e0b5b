"""Verbs about what was measured (report, diff) and about single methods (heads, drift)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ra_bench.arguments import check_file, parse_tokens
from ra_bench.cli_common import (
    Json,
    NoReport,
    Verbs,
    command_line,
    err,
    names,
    out,
    report_of,
    wide,
)
from ra_bench.report import require_report

app = Verbs()


@app.command()
def heads(
    data: Annotated[Path, typer.Option(help="A dump of all heads with --prompt repeated:2500x4.")],
    results: Annotated[Path, typer.Option("--out", help="The JSON file to write.")],
    induction: Annotated[float, typer.Option(help="Share of query heads that retrieve by induction.")] = 0.14,
    echo: Annotated[float, typer.Option(help="Share of query heads that retrieve by echo.")] = 0.01,
) -> None:
    """Tells which KV heads of a model retrieve, for razor: from a dump of random tokens that repeat."""
    from ra_bench.retrieval_heads import classify
    from ra_bench.vectors import DataSet

    check_file("--out", results)
    known = classify(DataSet.open(data), induction, echo)
    known.write(results)
    names = ", ".join(f"layer {layer} head {kv_head}" for layer, kv_head in known.retrieval)
    out.print(f"{len(known.retrieval)} of {len(known.scores)} KV heads retrieve: {names}")


@app.command()
def drift(
    indexes: Annotated[str, typer.Option(help="Specs, separated by commas.")],
    data: Annotated[
        str | None,
        typer.Option(help="A data set's path, URL or name (ra-bench data list). Default: the sample."),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Keys that are inserted, as 8192, or several numbers: 1024,4096.")
    ] = "8192",
    recall: Annotated[float, typer.Option(help="Recall@100 that the index built whole has to reach.")] = 0.95,
    threads: Annotated[int, typer.Option(help="Threads of builds; inserts take one.")] = 1,
    results: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rows. Default: results/drift-DATA-RUN.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what has been measured.")] = False,
    no_report: NoReport = False,
    as_json: Json = False,
) -> None:
    """Tells what inserts cost: each index built whole, and grown by inserts, on the same heads."""
    from ra_bench.data import open_data
    from ra_bench.datasets.sample import sample_path
    from ra_bench.drift_rows import Plan
    from ra_bench.registry import parse
    from ra_bench.registry import split as split_specs

    source = open_data(data or sample_path())
    counts = [parse_tokens(one, "--tokens") for one in names(tokens)]
    specs = tuple(str(parse(spec)) for spec in split_specs(indexes))
    plan = Plan(source, specs, tuple(counts), recall, threads)
    _drift(plan, results or plan.folder, force, no_report, as_json)


def _drift(plan: Any, path: Path, force: bool, no_report: bool, as_json: bool) -> None:
    """Runs a plan of `drift` and prints each unit's rows as they land."""
    from ra_bench import drift_rows
    from ra_bench.results import ResultFolder

    plan.check()
    folder = ResultFolder(path, plan.identity, drift_rows.COLUMNS)
    folder.note_command(command_line())
    rows: list[dict[str, Any]] = []
    if not as_json:
        print(drift_rows.heading(), flush=True)
    for unit in drift_rows.run(plan, folder, force):
        rows += unit
        for row in unit:
            short = {name: value for name, value in row.items() if name not in drift_rows.LONG_COLUMNS}
            print(json.dumps(short) if as_json else drift_rows.line(row), flush=True)
    if not as_json:
        out.print(f"{len(rows)} rows in {path}/rows")
    failed = drift_rows.failures(rows)
    if not no_report and len(failed) < len(rows):
        report_of(path)
    for row in failed:
        err.print(f"failed: {drift_rows.line(row)}")
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RESULTS]...", help="Folders of compare, decode and drift. Default: all in results/."
        ),
    ] = None,
    page: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Write each figure as SVG and PNG into this folder too.")
    ] = None,
) -> None:
    """Writes rows as one self-contained HTML page with charts."""
    require_report()
    from ra_bench.report.rows import default_folders
    from ra_bench.report.writing import write_report

    written = write_report(folders or default_folders(), page, figures)
    for note in written.notes:
        err.print(f"note: {note}")
    if figures is not None:
        out.print(f"{len(written.figures)} figures in {figures}")
    out.print(f"report in {written.page}")


@app.command("diff")
def diff_results(
    a: Annotated[Path, typer.Argument(help="Result folder of compare: before.")],
    b: Annotated[Path, typer.Argument(help="Result folder of compare: after.")],
    fail_on: Annotated[
        str | None,
        typer.Option(help="Gates on B less A, as mass_total<-0.01,p50>+20%; exit code 3 where one falls."),
    ] = None,
    certain: Annotated[
        bool, typer.Option("--certain", help="A gate falls only where the whole interval is beyond it.")
    ] = False,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare times of different machines too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tells what changed between two results: paired differences, how sure they are, and gates."""
    from ra_bench.diff import table
    from ra_bench.diff.changes import changes
    from ra_bench.diff.gates import fallen, parse_gates, refuse_untimed
    from ra_bench.diff.pairs import newly_failed, pair, unpaired
    from ra_bench.diff.quantities import QUANTITIES
    from ra_bench.diff.sides import read_side, refuse_unlike

    gates = parse_gates(fail_on) if fail_on is not None else []
    sides = read_side("A", a), read_side("B", b)
    refuse_unlike(*sides)
    if not across_machines:
        refuse_untimed(gates, *sides)
    paired = pair(*sides)
    found = changes(paired, QUANTITIES.values() if as_json else table.columns_of(gates), across_machines)
    for line in table.heading(*sides):
        err.print(line)
    if as_json:
        for change in found:
            print(json.dumps(table.as_row(change)))
    else:
        for one in table.tables(found, paired):
            wide.print(one)
        for line in table.summary(found):
            out.print(line)
    if not across_machines and not all(one.same_machine for one in paired):
        machines = " and ".join("; ".join(side.machines) for side in sides)
        err.print(f"times are not compared: {machines} are different machines (--across-machines)")
    for line in unpaired(*sides):
        err.print(line)
    failed = newly_failed(*sides)
    for line in failed:
        err.print(line)
    fell = fallen(gates, found, certain)
    for gate, change in fell:
        err.print(table.fallen_line(gate, change))
    if fell or (gates and failed):
        raise typer.Exit(3)
