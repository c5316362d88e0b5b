"""A comparison as the command line runs it: where rows land, how it goes on, what is printed, how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ra_bench import compare as comparison
from ra_bench import reproduce
from ra_bench.progress import Progress
from ra_bench.results import LONG_COLUMNS, ResultFolder, Row, content_address
from ra_bench.table import failures, skipped, tables

NUMBERS_WIDTH = 200  # columns of numbers are never squeezed
out = Console(soft_wrap=True, markup=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def run(
    settings: comparison.Settings,
    results: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    published: str | None = None,
) -> bool:
    """Compares, or checks what was `published` on the files that are here; returns whether all went well."""
    verdicts: list[reproduce.Verdict] = []
    if published is None:
        rows = compare(settings, results, force, dry_run, as_json)
    else:
        rows = []
        for one in reproduce.present(published):
            of_head = replace(settings, data=str(one.path), indexes=reproduce.indexes(), ks=reproduce.KS)
            measured = compare(of_head, results and results / one.name, force, dry_run, as_json)
            verdicts += reproduce.verdicts(one.name, measured) if measured else []
            rows += measured
        for verdict in verdicts:
            (err if as_json else out).print(verdict.line)
    for line in skipped(rows):
        err.print(line)
    failed = failures(rows)
    for line in failed:
        err.print(f"failed: {line}")
    return not failed and all(verdict.holds for verdict in verdicts)


def compare(
    settings: comparison.Settings, results: Path | None, force: bool, dry_run: bool, as_json: bool
) -> list[Row]:
    """Runs a comparison, prints what came out, and returns its rows."""
    plan = comparison.make_plan(settings)
    name = f"{plan.data.path.resolve().name}-{content_address(plan.identity)[:8]}"
    path = results or Path("results") / name
    if dry_run:
        for unit in plan.units:
            out.print(unit.name)
        return []
    folder = ResultFolder(path, plan.identity)
    done = sum(folder.has(unit.address) for unit in plan.units) if not force else 0
    with Progress(err, len(plan.units), done, path) as progress:
        rows = comparison.run_plan(plan, folder, progress, force)
    if as_json:
        for row in rows:
            print(json.dumps({name: value for name, value in row.items() if name not in LONG_COLUMNS}))
    else:
        for table in tables(rows):
            Console(width=NUMBERS_WIDTH, markup=False, highlight=False).print(table)
        out.print(f"{len(rows)} rows in {path}/rows")
    return rows
