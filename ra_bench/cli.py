"""`ra-bench`: verbs and their arguments, nothing else. stdout is for results, stderr for progress.

Exit codes: 0 done; 1 something failed while it ran; 2 what was asked for cannot be done; 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ra_bench.arguments import parse_numbers, parse_tokens
from ra_bench.cli_results import app as results_verbs
from ra_bench.errors import InterruptedRunError, RaBenchError, UsageError

# BadParameter < UsageError < ClickException: the base of all that typer finds wrong with a command line.
CommandLineError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="Which index should serve an LLM's attention, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(results_verbs, name="results")
# Columns of numbers are never squeezed: a narrow terminal or a pipe gets the whole lines.
NUMBERS_WIDTH = 200
out = Console(soft_wrap=True, markup=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout instead of a table.")]


@app.command()
def dump(
    model: Annotated[str, typer.Option(help="A hub name, a folder, or a GGUF file.")],
    results: Annotated[Path, typer.Option("--out", help="Folder for the dump.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A text file, or - for stdin; several are several documents. Default: Python's sources."
        ),
    ] = None,
    context: Annotated[str, typer.Option(help="Tokens to prefill, as 4096 or 32k.")] = "4k",
    rope_scaling: Annotated[str | None, typer.Option(help="Stretch the context, as yarn:4.")] = None,
    layers: Annotated[str, typer.Option(help="Layers, as 0,8-11, or all.")] = "all",
    kv_heads: Annotated[str, typer.Option(help="KV heads, as 0,2-3, or all.")] = "all",
    decode_steps: Annotated[
        int, typer.Option(help="Tokens to decode; their queries are the true tests.")
    ] = 32,
    query_stride: Annotated[int, typer.Option(help="Keep the prefill queries of every so many tokens.")] = 1,
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Stored type.")] = "float16",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Only the model's config; marked in the dump.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model's repository run its own code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a dump that is there.")] = False,
) -> None:
    """Records real queries, keys and values of a model's prefill and decoding, as Parquet."""
    from ra_bench.dump_plan import DumpSettings
    from ra_bench.progress import DumpProgress

    settings = DumpSettings(
        model=model,
        out=results,
        context_tokens=parse_tokens(context),
        prompts=tuple(prompt or ()),
        revision=revision,
        rope_scaling=rope_scaling,
        layers=layers,
        kv_heads=kv_heads,
        decode_steps=decode_steps,
        query_stride=query_stride,
        dtype=dtype,
        device=device,
        random_weights=random_weights,
        seed=seed,
        trust_remote_code=trust_remote_code,
        force=force,
    )
    with DumpProgress(err) as progress:
        from ra_bench.dump import dump as record

        data = record(settings, progress.update)
    out.print(
        f"{len(data.heads)} {'head' if len(data.heads) == 1 else 'heads'} in {data.path}", highlight=False
    )


@app.command()
def compare(
    indexes: Annotated[
        str,
        typer.Option(help="Specs, separated by commas: NAME[:key=value]*[@transform]; 'all': all that run."),
    ],
    data: Annotated[
        str | None, typer.Option(help="A dump's folder or URL. Default: the built-in sample.")
    ] = None,
    k: Annotated[str, typer.Option(help="Results a query, separated by commas.")] = "100,1000",
    layers: Annotated[
        str | None, typer.Option(help="Layers of the data set, as 0,8-11. Default: all.")
    ] = None,
    kv_heads: Annotated[str | None, typer.Option(help="KV heads, as 0,2-3. Default: all.")] = None,
    split: Annotated[
        Literal["honest", "random"], typer.Option(help="random: learn from neighbours of test queries too.")
    ] = "honest",
    max_queries: Annotated[int, typer.Option(help="Test query rows a head.")] = 1024,
    causal_learn: Annotated[
        bool, typer.Option("--causal-learn", help="Learn queries see only keys before them.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of build and throughput; latency is one thread.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes over the test queries.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of split and indexes.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds a unit may take.")] = 1800.0,
    memory_gb: Annotated[
        float | None, typer.Option(help="Memory a unit may use. Default: its share of 80 % of all.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Units measured at the same time here, each on cores of its own.")
    ] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="A new process for each unit.")] = False,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where units run.")] = "local",
    address: Annotated[
        str, typer.Option(help="The Ray cluster: auto, an address, or local for a new one here.")
    ] = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps built indexes, by content. Default: none.")
    ] = None,
    progress: Annotated[
        Literal["auto", "json", "quiet"], typer.Option(help="How stderr tells where the run stands.")
    ] = "auto",
    results: Annotated[
        Path | None, typer.Option("--out", help="Folder for the rows. Default: results/DATA-RUN.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what has been measured.")] = False,
    tables: Annotated[
        str | None,
        typer.Option(
            help="Which of recall,bytes,time to print: indexes at equal recall, bytes read, time. Default:"
            " recall, and the others where a method has no search or attends to more than k keys."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Compares indexes on the same heads: quality against cost."""
    from ra_bench import compare as comparison
    from ra_bench.budget_table import compared
    from ra_bench.datasets.sample import sample_path
    from ra_bench.registry import left_out
    from ra_bench.registry import split as split_specs
    from ra_bench.results import LONG_COLUMNS, ResultFolder, content_address
    from ra_bench.table import failures, skipped

    shown_tables = _tables(tables)
    for line in left_out(indexes):
        err.print(f"left out: {line}")
    where = _engine(engine, address, workers, fresh, threads)
    plan = comparison.make_plan(
        comparison.Settings(
            indexes=tuple(split_specs(indexes)),
            data=data or str(sample_path()),
            ks=tuple(parse_numbers("--k", k)),
            layers=None if layers is None else tuple(parse_numbers("--layers", layers)),
            kv_heads=None if kv_heads is None else tuple(parse_numbers("--kv-heads", kv_heads)),
            split=split,
            max_queries=max_queries,
            causal_learn=causal_learn,
            threads=threads,
            repeats=repeats,
            seed=seed,
            timeout_s=timeout,
            memory_bytes=None if memory_gb is None else _gigabytes(memory_gb),
            cache=cache,
        ),
        where.machine_class(),
    )
    name = f"{plan.data.name}-{content_address(plan.identity)[:8]}"
    path = results or Path("results") / name
    if dry_run:
        for unit in plan.units:
            out.print(unit.name)
        return
    folder = ResultFolder(path, plan.identity)
    done = sum(folder.has(unit.address) for unit in plan.units) if not force else 0
    with _shown(len(plan.units), done, path, progress) as watcher:
        rows = comparison.run_plan(plan, folder, watcher, force, where)
    if as_json:
        for row in rows:
            print(json.dumps({name: value for name, value in row.items() if name not in LONG_COLUMNS}))
    else:
        for table in compared(rows, shown_tables):
            Console(width=NUMBERS_WIDTH, markup=False, highlight=False).print(table)
        out.print(f"{len(rows)} rows in {path}/rows")
    for line in skipped(rows):
        err.print(line)
    failed = failures(rows)
    for line in failed:
        err.print(f"failed: {line}")
    if failed:
        raise typer.Exit(1)


@app.command()
def decode(
    model: Annotated[str, typer.Option(help="A hub name, a folder, or a GGUF file.")],
    indexes: Annotated[str, typer.Option(help="Specs, separated by commas: NAME[:key=value]*[@transform].")],
    tasks: Annotated[str | None, typer.Option(help="Tasks, separated by commas. Default: passkey.")] = None,
    context: Annotated[str, typer.Option(help="Tokens of a prompt with its answer, as 4096 or 32k.")] = "4k",
    limit: Annotated[int, typer.Option(help="Samples a task.")] = 5,
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
        typer.Option(help="Least share of keys read a query: chooses the effort from the sweep."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer. Default: the task's; 32 with --random-weights.")
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Type of the index's rows.")
    ] = "float16",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    capture: Annotated[
        Literal["auto", "eager"], typer.Option(help="auto: CUDA graphs where the model allows.")
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
            tasks=_names(tasks),
            context_tokens=parse_tokens(context),
            limit=limit,
            ks=tuple(parse_numbers("--k", k)),
            protocol=protocol,
            baselines=() if baselines == "none" else _names(baselines),
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
    _decode(plan, results, force, as_json)


def _decode(plan: Any, results: Path | None, force: bool, as_json: bool) -> None:
    """Runs a plan of `decode` and prints what came out."""
    from ra_bench.decode.harness import run_plan
    from ra_bench.decode.rows import COLUMNS, LONG_COLUMNS
    from ra_bench.decode.table import ended, heading, tables
    from ra_bench.results import ResultFolder, content_address

    path = results or Path("results") / f"{plan.model.source.name}-{content_address(plan.identity)[:8]}"
    folder = ResultFolder(path, plan.identity, COLUMNS)
    addresses = [plan.address(sample, arm) for sample in plan.samples for arm in plan.arms]
    done = 0 if force else sum(folder.has(address) for address in addresses)
    with _shown(len(addresses), done, path) as progress:
        rows = run_plan(plan, folder, progress, force)
    if as_json:
        for row in rows:
            print(json.dumps({name: value for name, value in row.items() if name not in LONG_COLUMNS}))
    else:
        out.print(heading(rows))
        for table in tables(rows):
            Console(width=NUMBERS_WIDTH, markup=False, highlight=False).print(table)
        out.print(f"{len(rows)} rows in {path}/rows")
    for line in ended(rows, ["skipped"]):
        err.print(line)
    failed = ended(rows, ["failed", "oom"])
    for line in failed:
        err.print(f"failed: {line}")
    if failed:
        raise typer.Exit(1)


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
    for line in table(measure_drift(dump, _names(indexes), tokens, recall, threads)):
        print(line, flush=True)


@app.command("list")
def list_indexes(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The table of the README, in Markdown.")
    ] = False,
) -> None:
    """Lists the registry: every index, what it is, what it needs, and whether it can run here."""
    from ra_bench import listing
    from ra_bench.registry import info, names

    infos = [info(name) for name in names()]
    if as_json:
        for one in infos:
            print(json.dumps(asdict(one)))
    else:
        print(listing.markdown(infos) if markdown else listing.text(infos, out.width))


@app.command()
def check(
    specs: Annotated[list[str], typer.Argument(help="Index specs, or 'all'.")], as_json: Json = False
) -> None:
    """Checks indexes against the contract that all of them pass."""
    from ra_bench.conformance import check as run_checks
    from ra_bench.registry import create, info, names

    chosen = list(specs)
    if "all" in chosen:
        chosen = [name for name in names() if info(name).available]
    for spec in chosen:
        create(spec)
    failed = 0
    for spec in chosen:
        results = run_checks(spec)
        bad = [result for result in results if not result.passed]
        failed += len(bad)
        if as_json:
            for result in results:
                print(json.dumps({"index": spec} | asdict(result)))
            continue
        out.print(f"{spec}: {len(results) - len(bad)} of {len(results)} checks passed")
        for result in bad:
            out.print(f"  failed: {result.name}: {result.detail}")
    if failed:
        raise typer.Exit(1)


@contextmanager
def _shown(units: int, done: int, path: Path, mode: Any = "auto") -> Iterator[Any]:
    """A run's progress on stderr; an interrupted run says what is kept and how it goes on."""
    from ra_bench.progress import Progress

    try:
        with Progress(err, units, done, path, mode) as progress:
            yield progress
    except KeyboardInterrupt as error:
        again = shlex.join(["ra-bench", *sys.argv[1:]])
        raise InterruptedRunError(
            f"interrupted: {progress.done} of {units} units are kept in {path}; go on with: {again}"
        ) from error


def _engine(name: str, address: str, workers: int, fresh: bool, threads: int) -> Any:
    """Where the units of `compare` run."""
    if threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    if name == "ray":
        from ra_bench.engine.ray import RayEngine

        return RayEngine(address, threads)
    from ra_bench.engine.local import LocalEngine

    return LocalEngine(workers, fresh, threads)


def main() -> None:
    """Runs the command line; every error a user can cause is one line on stderr."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system ends a run as Ctrl-C does
    try:
        code = app(standalone_mode=False)
    except RaBenchError as error:
        _fail(str(error), error.exit_code)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except CommandLineError as error:
        _fail(error.format_message(), 2)
    except OSError as error:
        _fail(f"the system refuses: {error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; what was measured is kept, and the same command goes on from there", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _tables(text: str | None) -> tuple[str, ...] | None:
    """The names of the tables to print; None: what fits the rows."""
    from ra_bench.budget_table import TABLES

    if text is None:
        return None
    for name in _names(text):
        if name not in TABLES:
            raise UsageError(f"--tables must be of {','.join(TABLES)}, got '{name}'")
    return _names(text)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _gigabytes(value: float) -> int:
    if not 0 < value < 1e9:
        raise UsageError(f"--memory-gb must be more than 0, got {value:g}")
    return int(value * 1e9)


def _fail(message: str, code: int) -> Any:
    err.print(f"ra-bench: {message}")
    sys.exit(code)
