"""`ra-bench decode`: a model that decodes, its attention served by indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ra_bench.arguments import parse_numbers, parse_part, parse_tokens
from ra_bench.cli_common import (
    Json,
    NoReport,
    Verbs,
    command_line,
    err,
    names,
    out,
    print_results,
    shown,
)

app = Verbs()


@app.command()
def decode(
    model: Annotated[str, typer.Option(help="A hub name, a folder, or a GGUF file.")],
    indexes: Annotated[str, typer.Option(help="Specs, separated by commas: NAME[:key=value]*[@transform].")],
    tasks: Annotated[str | None, typer.Option(help="Tasks, separated by commas. Default: passkey.")] = None,
    context: Annotated[str, typer.Option(help="Tokens of a prompt with its answer, as 4096 or 32k.")] = "4k",
    limit: Annotated[int, typer.Option(help="Samples a task.")] = 5,
    part: Annotated[
        str, typer.Option(help="Sample I of every N, as 2/4: commands with one --out share the work.")
    ] = "1/1",
    k: Annotated[str, typer.Option(help="Results a query, separated by commas.")] = "100",
    protocol: Annotated[
        Literal["question-sparse", "question-dense"],
        typer.Option(help="Whether the question is decoded through the index too, or prefilled."),
    ] = "question-sparse",
    baselines: Annotated[
        str, typer.Option(help="Which of dense,dense-host,flat,window to run; 'none' for none.")
    ] = "dense,dense-host,flat,window",
    dense_layers: Annotated[
        str | None, typer.Option(help="Layers that keep exact attention, as 0,1. Default: none.")
    ] = None,
    min_keys_read: Annotated[
        float | None,
        typer.Option(help="Least share of keys read a query: chooses what a spec leaves open of its effort."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer. Default: the task's; 32 with --random-weights.")
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Type of the index's rows.")
    ] = "float16",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    capture: Annotated[
        Literal["auto", "compiled", "eager"],
        typer.Option(help="auto: CUDA graphs where the model allows; compiled: its small parts fused, too."),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of build, search and a CPU's model. Default: all cores.")
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Only the model's config: latency and memory, no answers."),
    ] = False,
    rope_scaling: Annotated[str | None, typer.Option(help="Stretch the context, as yarn:4.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    text: Annotated[Path | None, typer.Option(help="The text of the fidelity task.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write what the first index decoded as a dump into this folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples, random weights and indexes.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model's repository run its own code.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rows. Default: results/MODEL-RUN.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what has been run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    no_report: NoReport = False,
    as_json: Json = False,
) -> None:
    """Serves a model's attention by indexes while it decodes: answers, latency, memory."""
    from ra_bench.decode.plan import Settings, make_plan
    from ra_bench.registry import left_out
    from ra_bench.registry import split as split_specs

    for line in left_out(indexes):
        err.print(f"left out: {line}")
    plan = make_plan(
        Settings(
            model=model,
            indexes=tuple(split_specs(indexes)),
            tasks=names(tasks),
            context_tokens=parse_tokens(context),
            limit=limit,
            part=parse_part("--part", part),
            ks=tuple(parse_numbers("--k", k)),
            protocol=protocol,
            baselines=() if baselines == "none" else names(baselines),
            dense_layers=tuple(parse_numbers("--dense-layers", dense_layers)) if dense_layers else (),
            min_keys_read=min_keys_read,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            capture=capture,
            seed=seed,
            random_weights=random_weights,
            revision=revision,
            rope_scaling=rope_scaling,
            text=text,
            record=record,
            trust_remote_code=trust_remote_code,
            **({} if threads is None else {"threads": threads}),
        )
    )
    if dry_run:
        for sample in plan.samples:
            for arm in plan.arms:
                out.print(f"{sample.task} {sample.number}: {arm}")
        return
    _decode(plan, results, force, no_report, as_json)


def _decode(plan: Any, results: Path | None, force: bool, no_report: bool, as_json: bool) -> None:
    """Runs a plan of `decode` and prints what came out."""
    from ra_bench.decode.harness import run_plan
    from ra_bench.decode.rows import COLUMNS, LONG_COLUMNS
    from ra_bench.decode.table import ended, heading, tables
    from ra_bench.results import ResultFolder, content_address

    path = results or Path("results") / f"{plan.model.source.name}-{content_address(plan.identity)[:8]}"
    folder = ResultFolder(path, plan.identity, COLUMNS)
    folder.note_command(command_line())
    addresses = [plan.address(sample, arm) for sample in plan.samples for arm in plan.arms]
    done = 0 if force else sum(folder.has(address) for address in addresses)
    with shown(len(addresses), done, path) as progress:
        rows = run_plan(plan, folder, progress, force)
    print_results(rows, path, lambda: [heading(rows), *tables(rows)], LONG_COLUMNS, as_json, not no_report)
    for line in ended(rows, ["skipped"]):
        err.print(line)
    failed = ended(rows, ["failed", "oom"])
    for line in failed:
        err.print(f"failed: {line}")
    if failed:
        raise typer.Exit(1)
