"""`ra-bench data`: verbs about data sets, and nothing else. stdout is for results, stderr for progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ra_bench.arguments import parse_numbers, parse_tokens
from ra_bench.cli_common import Json, Verbs, err, out, wide

app = Verbs(
    help="Data sets: what there is, what is in one, and making new ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Data = Annotated[str, typer.Argument(help="A data set's path or name; 'sample' is the built-in one.")]
Layers = Annotated[str | None, typer.Option(help="Layers of the data set, as 0,8-11. Default: all.")]
KvHeads = Annotated[str | None, typer.Option(help="KV heads, as 0,2-3. Default: all.")]


@app.command("list")
def list_data(as_json: Json = False) -> None:
    """Lists the families that can be read, and the data sets that are known by name."""
    from ra_bench.data import families

    rows = [(family, known) for family in families() for known in family.known or (None,)]
    if as_json:
        for family, known in rows:
            facts: dict[str, Any] = {"family": family.name, "layout": family.layout}
            if known is not None:
                facts |= {"name": known.name, "about": known.about, "source": known.source}
                facts |= {"path": str(known.path), "present": known.path.exists()}
            print(json.dumps(facts))
        return
    table = Table(pad_edge=False)
    for column in ("family", "name", "here", "what it is, where to get it, where it is to lie"):
        table.add_column(column, overflow="fold")
    for family, known in rows:
        if known is None:
            table.add_row(family.name, "", "", family.layout)
        else:
            what = f"{known.about}\n{known.source}\n{known.path}"
            table.add_row(family.name, known.name, "yes" if known.path.exists() else "no", what)
    Console(width=max(112, out.width), markup=False, highlight=False).print(table)


@app.command()
def info(data: Data, layers: Layers = None, kv_heads: KvHeads = None, as_json: Json = False) -> None:
    """Prints what a data set holds and how hard each head is; keeps the difficulty beside the data set."""
    from ra_bench.data_info import describe

    source = _open(data)
    rows = describe(source, source.select(**_chosen(layers, kv_heads)), _progress)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    out.print(f"{source.path}: {len(source.heads)} heads, content {source.hash[:16]}")
    table = Table(pad_edge=False)
    titles = [name.removeprefix("difficulty_").replace("_", " ") for name in rows[0]]
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*[_cell(value) for value in row.values()])
    wide.print(table)


@app.command()
def verify(data: Data) -> None:
    """Reads every file of a data set: checksums, shapes, finite numbers, and the neighbours it brings."""
    for line in _open(data).verify(_progress):
        out.print(line)


@app.command("import")
def import_data(
    data: Data,
    results: Annotated[Path, typer.Option("--out", help="Folder for the dump.")],
    softmax_scale: Annotated[
        float | None,
        typer.Option(help="What queries are multiplied by before the softmax, where you know it."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model that made the vectors.")] = None,
    max_keys: Annotated[int | None, typer.Option(help="Take the first keys only.")] = None,
) -> None:
    """Writes another family's data set as a dump: one format, checksums, nothing invented."""
    from ra_bench.data_import import import_into

    made = import_into(_open(data), results, softmax_scale, model, max_keys, _progress)
    out.print(f"{len(made.heads)} {'head' if len(made.heads) == 1 else 'heads'} in {made.path}")


@app.command()
def gen(
    results: Annotated[Path, typer.Option("--out", help="Folder for the dump.")],
    tokens: Annotated[str, typer.Option(help="Tokens of the generated prefill, as 128k or 4m.")],
    like: Annotated[
        str, typer.Option(help="The dump whose heads to imitate. Default: the sample.")
    ] = "sample",
    layers: Layers = None,
    kv_heads: KvHeads = None,
    decode_steps: Annotated[int, typer.Option(help="Decoded tokens; their queries are the tests.")] = 64,
    learn_queries: Annotated[int, typer.Option(help="Prefill query rows to keep, evenly spaced.")] = 32768,
    ood: Annotated[float, typer.Option(help="Factor on how far queries are from keys.")] = 1.0,
    norm_spread: Annotated[float, typer.Option(help="Exponent of key norms about their mean.")] = 1.0,
    sharpness: Annotated[float, typer.Option(help="Factor on queries: masses gather in fewer keys.")] = 1.0,
    drift: Annotated[float, typer.Option(help="Factor on the shift of decode queries.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Generates attention-like heads of any length, fitted to those of a dump."""
    from ra_bench.generate import Knobs, Request, generate

    source = _open(like)
    request = Request(
        parse_tokens(tokens, "--tokens"),
        decode_steps,
        learn_queries,
        Knobs(ood, norm_spread, sharpness, drift),
        seed,
    )
    made = generate(
        source,
        source.select(**_chosen(layers, kv_heads)),
        results,
        request,
        lambda head, done, total: err.print(f"{head}: {done:,} of {total:,} tokens"),
    )
    out.print(f"{len(made.heads)} {'head' if len(made.heads) == 1 else 'heads'} in {made.path}")


def _open(text: str) -> Any:
    from ra_bench.data import open_data
    from ra_bench.datasets.sample import sample_path

    return open_data(sample_path() if text == "sample" and not Path(text).exists() else text)


def _chosen(layers: str | None, kv_heads: str | None) -> dict[str, list[int] | None]:
    return {
        "layers": None if layers is None else parse_numbers("--layers", layers),
        "kv_heads": None if kv_heads is None else parse_numbers("--kv-heads", kv_heads),
    }


def _progress(what: str) -> None:
    err.print(f"reading {what}")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.3g}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"
