"""Result folders → one page, and its figures as files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from altair.utils.schemapi import debug_mode

import ra_bench
from ra_bench.arguments import check_file
from ra_bench.errors import RunError, UsageError
from ra_bench.report.about import Page
from ra_bench.report.charts import building, decoding, drifting, heads, matched, paired, quality, queries
from ra_bench.report.charts.headlines import headlines
from ra_bench.report.export import export
from ra_bench.report.material import Material
from ra_bench.report.page import left_out, render
from ra_bench.report.rows import read_runs
from ra_bench.results import write_whole

FAMILIES = (quality, matched, paired, heads, queries, building, drifting, decoding)


@dataclass(frozen=True)
class Written:
    """What was written, and what a user should know of the folders."""

    page: Path
    figures: list[Path]
    notes: list[str]


def write_report(folders: Sequence[Path], out: Path, figures: Path | None = None) -> Written:
    """Writes the page of result folders to `out`, and its figures into the folder `figures` if given.

    Raises UsageError for a folder that holds no results, RunError where disk fails.
    """
    check_file("--out", out)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UsageError(f"--figures must be a folder, got the file '{figures}'")
    page = make_page(folders)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, render(page).encode())
        files = export(page, figures) if figures is not None else []
    except OSError as error:
        raise RunError(f"the report cannot be written: {error}") from error
    return Written(out, files, page.notes)


def make_page(folders: Sequence[Path]) -> Page:
    """All that the page shows."""
    material = Material(read_runs(folders))
    with debug_mode(False):  # altair's checks of its own objects take most of the time; a test has them on
        figures, missing = left_out([one for family in FAMILIES for one in family.figures(material)])
    return Page(
        material=material,
        figures=figures,
        left_out=missing,
        headlines=headlines(material),
        notes=[note for run in material.runs for note in run.notes] + _mixed(material),
        made_s=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        version=ra_bench.__version__,
    )


def _mixed(material: Material) -> list[str]:
    """A line where runs do not share the machine or the number of threads."""
    notes = []
    machines = sorted({machine for run in material.runs for machine in run.machines})
    alone = {machine for run in material.runs if len(run.machines) > 1 for machine in run.machines}
    if len(machines) > 1 and not alone:
        notes.append(
            f"rows of {len(machines)} machines ({'; '.join(machines)});"
            " the page shows one at a time unless asked"
        )
    for verb in ("compare", "decode", "drift"):
        threads = sorted(
            {
                row["threads"]
                for run in material.runs
                if run.verb == verb
                for row in run.ok
                if row.get("threads")
            }
        )
        if len(threads) > 1:
            notes.append(
                f"{verb} was run with {' and '.join(map(str, threads))} threads; their times are not alike"
            )
    return notes
