"""How costs grow with the number of keys, on generated heads: `python -m ra_bench.scaling --help`.

Heads of several lengths are generated like a real one, each is compared as ever, and one table tells build
time, and p50, keys read and memory at equal recall. A growth exponent e says that a cost grows as n to the
e: the slope of a line through the logarithms, by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ra_bench.arguments import check_threads, parse_tokens
from ra_bench.cli_common import run_verb
from ra_bench.matched import at_recall, sweep_points
from ra_bench.results import Row
from ra_bench.table import number, plain_table

COSTS = {"build s": 2, "KNN s": 2, "p50 µs": 1, "keys read": 0, "MB": 1}


def costs_at(rows: Sequence[Row], recall: float) -> dict[str, float | None]:
    """The costs of one index on one head, by the names of COSTS; None where it does not get to `recall`."""
    first = rows[0]
    matched = at_recall(first["index"], sweep_points(rows), recall)
    share = matched.values.get("keys_share")
    return {
        "build s": first["build_s"],
        "KNN s": first["knn_s"],
        "p50 µs": matched.values.get("search_p50_us"),
        "keys read": None if share is None else share * first["n"],
        "MB": (first["host_bytes"] + first["device_bytes"]) / 1e6,
    }


def exponent(sizes: Sequence[int], costs: Sequence[float | None]) -> float | None:
    """The slope of log cost over log size; None with fewer than two costs above 0."""
    known = [(size, cost) for size, cost in zip(sizes, costs, strict=True) if cost]
    if len({size for size, _ in known}) < 2:
        return None
    x, y = np.log(np.array(known, float)).T
    return float(np.polyfit(x, y, 1)[0])


def table(measured: Mapping[int, Sequence[Row]], recall: float, k: int) -> Table:
    """A block for each index: its costs at each number of keys, and their exponents."""
    title = f"k={k}, at recall@{k} {recall:g}, generated heads"
    made = plain_table(title, ["index"], ["n", *COSTS])
    by_index: dict[str, dict[int, list[Row]]] = {}
    for rows in measured.values():
        for row in rows:
            if row["status"] == "ok" and row["k"] == k and row["index"] not in ("window", "random"):
                by_index.setdefault(row["index"], {}).setdefault(row["n"], []).append(row)
    for index, sizes in by_index.items():
        found = {n: costs_at(rows, recall) for n, rows in sorted(sizes.items())}
        for place, (n, costs) in enumerate(found.items()):
            cells = [number(costs[name], digits) for name, digits in COSTS.items()]
            made.add_row(index if place == 0 else "", f"{n:,}", *cells)
        slopes = [exponent(list(found), [costs[name] for costs in found.values()]) for name in COSTS]
        made.add_row("", "exponent", *[number(slope, 2) for slope in slopes], end_section=True)
    return made


class _Lines:
    """Tells on stderr what ended."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, name: str) -> None:
        """A child process starts."""

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""
        self._console.print(f"{name}  {status}  {reason}", markup=False, highlight=False)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the heads and the rows.")],
    indexes: Annotated[str, typer.Option(help="Specs, as compare takes them.")] = "ra,ivf,hnsw@lift",
    tokens: Annotated[str, typer.Option(help="Lengths, separated by commas.")] = "32k,128k,512k",
    like: Annotated[str, typer.Option(help="The dump whose first head to imitate.")] = "sample",
    k: Annotated[int, typer.Option(help="Results a query.")] = 100,
    recall: Annotated[float, typer.Option(help="Recall at which costs are compared.")] = 0.95,
    max_queries: Annotated[int, typer.Option(help="Test query rows.")] = 448,
    threads: Annotated[int, typer.Option(help="Threads of the build; latency is one thread.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds a unit may take.")] = 3600.0,
) -> None:
    """Generates heads of several lengths, compares indexes on each, and prints how costs grow."""
    from ra_bench.compare import Settings, make_plan, run_plan
    from ra_bench.data import open_data
    from ra_bench.datasets.sample import sample_path
    from ra_bench.generate import Request, generate
    from ra_bench.registry import split
    from ra_bench.results import ResultFolder

    check_threads(threads)
    err = Console(stderr=True)
    source = open_data(sample_path() if like == "sample" else like)
    measured: dict[int, Sequence[Row]] = {}
    for length in sorted(parse_tokens(text, "--tokens") for text in tokens.split(",")):
        head = out / f"head-{length}"
        if not (head / "dump.json").exists():
            generate(source, source.heads[:1], head, Request(length))
        settings = Settings(
            tuple(split(indexes)),
            str(head),
            (k,),
            max_queries=max_queries,
            repeats=2,
            threads=threads,
            timeout_s=timeout,
        )
        plan = make_plan(settings)
        measured[length] = run_plan(plan, ResultFolder(out / f"rows-{length}", plan.identity), _Lines(err))
        Console(width=140, markup=False, highlight=False).print(table(measured, recall, k))


if __name__ == "__main__":
    run_verb(main)
