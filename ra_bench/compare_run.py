"""A comparison as the command line runs it: where rows land, how it goes on, what is printed, how it ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ra_bench import compare as comparison
from ra_bench import reproduce
from ra_bench.arguments import check_threads
from ra_bench.budget_table import compared
from ra_bench.cli_common import command_line, err, out, print_results, shown
from ra_bench.engine.task import Engine
from ra_bench.progress import Mode
from ra_bench.results import LONG_COLUMNS, ResultFolder, Row, content_address
from ra_bench.table import failures, skipped


@dataclass(frozen=True)
class Ending:
    """Where rows land and what is printed of them."""

    results: Path | None  # None: results/DATA-RUN
    force: bool
    dry_run: bool
    as_json: bool
    report: bool
    tables: tuple[str, ...] | None  # None: those that fit the rows
    progress: Mode = "auto"


def run(settings: comparison.Settings, ending: Ending, engine: Engine, published: str | None = None) -> bool:
    """Compares, or checks what was `published` on the files that are here; returns whether all went well."""
    verdicts: list[reproduce.Verdict] = []
    if published is None:
        rows = compare(settings, ending, engine)
    else:
        rows = []
        for one in reproduce.present(published):
            of_head = replace(settings, data=str(one.path), indexes=reproduce.indexes(), ks=reproduce.KS)
            folder = ending.results and ending.results / one.name
            measured = compare(of_head, replace(ending, results=folder), engine)
            verdicts += reproduce.verdicts(one.name, measured) if measured else []
            rows += measured
        for verdict in verdicts:
            (err if ending.as_json else out).print(verdict.line)
    for line in skipped(rows):
        err.print(line)
    failed = failures(rows)
    for line in failed:
        err.print(f"failed: {line}")
    return not failed and all(verdict.holds for verdict in verdicts)


def compare(settings: comparison.Settings, ending: Ending, engine: Engine) -> list[Row]:
    """Runs a comparison, prints what came out, and returns its rows."""
    plan = comparison.make_plan(settings, engine.machine_class())
    name = f"{plan.data.name}-{content_address(plan.identity)[:8]}"
    path = ending.results or Path("results") / name
    if ending.dry_run:
        for unit in plan.units:
            out.print(unit.name)
        return []
    folder = ResultFolder(path, plan.identity)
    folder.note_command(command_line())
    done = sum(folder.has(unit.address) for unit in plan.units) if not ending.force else 0
    with shown(len(plan.units), done, path, ending.progress) as watcher:
        rows = comparison.run_plan(plan, folder, watcher, ending.force, engine)
    tables = partial(compared, rows, ending.tables)
    print_results(rows, path, tables, LONG_COLUMNS, ending.as_json, ending.report)
    return rows


def engine_of(name: str, address: str, workers: int, fresh: bool, threads: int) -> Engine:
    """Where the units of `compare` run."""
    check_threads(threads, here=name == "local")
    if name == "ray":
        from ra_bench.engine.ray import RayEngine

        return RayEngine(address, threads)
    from ra_bench.engine.local import LocalEngine

    return LocalEngine(workers, fresh, threads)
