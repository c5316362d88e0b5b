"""What the modules of the command line share: where they print, common options, the report of a run."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from ra_bench.errors import InterruptedRunError, RaBenchError, UsageError
from ra_bench.report import require_report

out = Console(soft_wrap=True, markup=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
# BadParameter < UsageError < ClickException: the base of all that typer finds wrong with a command line.
CommandLineError: Any = typer.BadParameter.__mro__[2]
# For tables of numbers, whose columns are never squeezed: a narrow terminal or a pipe gets the whole lines.
wide = Console(width=200, markup=False, highlight=False)

NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html into the folder.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout instead of a table.")]


class Verbs(typer.Typer):
    """A group of verbs, none of which takes an empty value: `--out ''` is a variable that was not set."""

    def command(self, name: str | None = None, **settings: Any) -> Any:
        return super().command(name, cls=_Verb, **settings)


class _Verb(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; raises UsageError for an option or argument that is there but empty."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.get_params(ctx):
            value = given.get(parameter.name)
            if "" in (value if isinstance(value, list | tuple) else [value]):
                placed = (getattr(parameter, "metavar", None) or parameter.name.upper()).strip("[].")
                name = parameter.opts[0] if parameter.param_type_name == "option" else placed
                raise UsageError(f"{name} must not be empty")
        return super().parse_args(ctx, args)


def run_app(app: Any) -> NoReturn:
    """Runs a command line to its end; every error a user can cause is one line on stderr."""
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


def run_verb(verb: Callable[..., None]) -> NoReturn:
    """The same of the only verb of a module, for `python -m`."""
    app = Verbs(add_completion=False, rich_markup_mode=None)
    app.command()(verb)
    run_app(app)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"ra-bench: {message}")
    sys.exit(code)


@contextmanager
def shown(units: int, done: int, path: Path, mode: Any = "auto") -> Iterator[Any]:
    """A run's progress on stderr; an interrupted run says what is kept and how it goes on."""
    from ra_bench.progress import Progress

    try:
        with Progress(err, units, done, path, mode) as progress:
            yield progress
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"interrupted: {progress.done} of {units} units are kept in {path}; go on with: {command_line()}"
        ) from error


def print_results(
    rows: Sequence[dict[str, Any]],
    path: Path,
    tables: Callable[[], Iterable[str | Table]],
    long_columns: Collection[str],
    as_json: bool,
    report: bool,
) -> None:
    """Prints the rows that landed in `path`, as JSON lines or as `tables`; then the report, if wanted."""
    if as_json:
        for row in rows:
            print(json.dumps({name: value for name, value in row.items() if name not in long_columns}))
    else:
        for part in tables():
            (out if isinstance(part, str) else wide).print(part)
        out.print(f"{len(rows)} rows in {path}/rows")
    if report:
        report_of(path)


def report_of(path: Path) -> None:
    """Writes the page of a run into its folder; what hinders it is a line, for the rows are there."""
    try:
        require_report()
        from ra_bench.report.writing import write_report

        written = write_report([path], path / "report.html")
        err.print(f"report in {written.page}")
    except RaBenchError as error:
        err.print(f"no report: {error}")


def command_line() -> str:
    """The command as it was given, for a shell."""
    return shlex.join(["ra-bench", *sys.argv[1:]])


def names(text: str | None) -> tuple[str, ...]:
    """The parts of an argument that commas separate."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
