"""`ra-bench`: verbs and their arguments, nothing else. stdout is for results, stderr for progress.

Exit codes: 0 done; 1 something failed while it ran; 2 what was asked for cannot be done; 3 a gate of `diff`
fell; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from ra_bench.arguments import parse_bytes, parse_numbers, parse_tokens
from ra_bench.cli_analysis import app as analysis_verbs
from ra_bench.cli_common import Json, NoReport, Verbs, err, names, out, run_app
from ra_bench.cli_data import app as data_verbs
from ra_bench.cli_decode import app as decode_verbs
from ra_bench.cli_results import app as results_verbs
from ra_bench.errors import UsageError

app = Verbs(
    help="Which index should serve an LLM's attention, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(decode_verbs)
app.add_typer(analysis_verbs)
app.add_typer(data_verbs, name="data")
app.add_typer(results_verbs, name="results")


@app.command()
def dump(
    model: Annotated[str, typer.Option(help="A hub name, a folder, or a GGUF file.")],
    results: Annotated[Path, typer.Option("--out", help="Folder for the dump.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A text file, - for stdin, or repeated:2500x4 for random tokens four times over; "
            "several are several documents. Default: Python's sources."
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
    learn_share: Annotated[
        float, typer.Option(help="Keep the prefill queries of this share of the tokens, evenly spaced.")
    ] = 1.0,
    max_bytes: Annotated[str | None, typer.Option(help="Refuse a dump larger than this, as 64g.")] = None,
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Stored type.")] = "float16",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Only the model's config; marked in the dump.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights and tokens.")] = 0,
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
        learn_share=learn_share,
        max_bytes=None if max_bytes is None else parse_bytes(max_bytes, "--max-bytes"),
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
        str | None,
        typer.Option(help="Specs, separated by commas: NAME[:key=value]*[@transform]; 'all': all that run."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A data set's path, URL or name (ra-bench data list). Default: the sample."),
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
    reproduce: Annotated[
        Literal["vibe"] | None, typer.Option(help="Check published results on their own files.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    no_report: NoReport = False,
    as_json: Json = False,
) -> None:
    """Compares indexes on the same heads: quality against cost."""
    from ra_bench.compare import Settings
    from ra_bench.compare_run import Ending, engine_of, run
    from ra_bench.datasets.sample import sample_path
    from ra_bench.registry import left_out
    from ra_bench.registry import split as split_specs

    if indexes is None and reproduce is None:
        raise UsageError("Missing option '--indexes'; only --reproduce brings its own")
    if reproduce is not None and (indexes is not None or data is not None):
        raise UsageError("--reproduce brings its own --indexes and --data: give it alone")
    ending = Ending(results, force, dry_run, as_json, not no_report, _tables(tables), progress)
    where = engine_of(engine, address, workers, fresh, threads)
    for line in left_out(indexes or ""):
        err.print(f"left out: {line}")
    settings = Settings(
        indexes=tuple(split_specs("flat" if indexes is None else indexes)),
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
    )
    if not run(settings, ending, where, reproduce):
        raise typer.Exit(1)


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


def main() -> None:
    """Runs the command line; every error a user can cause is one line on stderr."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system ends a run as Ctrl-C does
    # Threads of OpenMP (torch, faiss) spin while they wait, through whole time slices where another process
    # wants the core: beside one, k-means took 2.3 times the CPU time and torch's small layers 20 times as
    # long. On a quiet machine it makes no difference. The libraries read this when they load.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run_app(app)


def _tables(text: str | None) -> tuple[str, ...] | None:
    """The names of the tables to print; None: what fits the rows."""
    from ra_bench.budget_table import TABLES

    if text is None:
        return None
    for name in names(text):
        if name not in TABLES:
            raise UsageError(f"--tables must be of {','.join(TABLES)}, got '{name}'")
    return names(text)


def _gigabytes(value: float) -> int:
    if not 0 < value < 1e9:
        raise UsageError(f"--memory-gb must be more than 0, got {value:g}")
    return int(value * 1e9)
