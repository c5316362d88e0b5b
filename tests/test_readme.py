"""The README is true: its file map, its method table, its example index, its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from ra_bench.cli import app
from ra_bench.conformance import check
from ra_bench.listing import markdown
from ra_bench.registry import info, names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = ("ra_bench", "indexes", "datasets")


def test_the_file_map_names_every_file_and_no_other() -> None:
    block = README.split("## File map")[1].split("##")[0]
    named, folder = set(), ""
    for line in block.splitlines():
        match = re.match(r"^ {4}( {2})?(\S+)  ", line + "  ")
        if match and match[1] is None:
            folder = match[2] if match[2].endswith("/") else ""
            named.add(match[2])
        elif match:
            named.add(folder + match[2])
    present = set()
    for room in ROOMS:
        for path in (ROOT / room).iterdir():
            if path.name == "__pycache__" or path.name.startswith("."):
                continue
            present.add(f"{room}/{path.name}" + "/" * path.is_dir())

    assert {
        name for name in named if name.startswith(ROOMS) and name.count("/") - name.endswith("/") == 1
    } == present
    assert all((ROOT / name).exists() for name in named)


def test_nothing_was_left_to_fill_in() -> None:
    assert not re.findall(r"^[A-Z_]{4,}$", README, re.MULTILINE)


def test_the_method_table_is_what_the_command_prints() -> None:
    table = markdown([info(name) for name in names()])

    assert table in README, f"`ra-bench list --markdown` prints what README.md must hold:\n{table}"


def test_the_example_index_passes_the_contract(tmp_path) -> None:
    code = README.split("```python")[1].split("```")[0]
    file = tmp_path / "halves.py"
    file.write_text(code)

    results = check(f"{file}::Halves")

    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("line", re.findall(r"^ {4}ra-bench (.*?)(?: {2,}#.*)?$", README, re.MULTILINE))
def test_every_command_in_the_readme_has_arguments_that_exist(line: str) -> None:
    verb, *arguments = shlex.split(line)

    command = get_command(app).get_command(None, verb)

    assert command is not None, verb
    command.make_context(verb, arguments)
