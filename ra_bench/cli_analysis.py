"""Verbs about what was measured (report, diff) and about single methods (heads, drift)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ra_bench.cli_common import Json, err, names, out, wide
from ra_bench.report import require_report

app = typer.Typer()


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

    known = classify(DataSet.open(data), induction, echo)
    known.write(results)
    names = ", ".join(f"layer {layer} head {kv_head}" for layer, kv_head in known.retrieval)
    out.print(f"{len(known.retrieval)} of {len(known.scores)} KV heads retrieve: {names}")


@app.command()
def drift(
    indexes: Annotated[str, typer.Option(help="Specs, separated by commas.")],
    data: Annotated[Path | None, typer.Option(help="A dump's folder. Default: the built-in sample.")] = None,
    tokens: Annotated[int, typer.Option(help="Keys that are inserted.")] = 8192,
    recall: Annotated[float, typer.Option(help="Recall@100 that the index built whole has to reach.")] = 0.95,
    threads: Annotated[int, typer.Option(help="Threads of builds; inserts take one.")] = 1,
) -> None:
    """Tells what inserts cost: each index built whole, and grown by inserts, on the same heads."""
    from ra_bench.datasets.sample import sample_path
    from ra_bench.drift import measure_drift, table
    from ra_bench.vectors import DataSet

    dump = DataSet.open(sample_path() if data is None else data)
    for line in table(measure_drift(dump, names(indexes), tokens, recall, threads)):
        print(line, flush=True)


@app.command()
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RESULTS]...", help="Folders of compare and decode. Default: all in results/."
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
