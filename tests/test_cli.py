"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ra_bench.cli import app
from ra_bench.errors import UsageError


def ra_bench(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ra_bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "Missing option '--indexes'"),
        (["compare", "--indexes", ","], "--indexes must name at least one index"),
        (["compare", "--indexes", "hsnw"], "unknown index 'hsnw'. Did you mean 'hnsw'? Known: "),
        (["compare", "--indexes", "hnsw:ef_build=3"], "unknown 'hnsw' setting 'ef_build'"),
        (["compare", "--indexes", "ivf:nlist=many"], "nlist must be int, got 'many'"),
        (["compare", "--indexes", "flat@fly"], "unknown transform 'fly'"),
        (["compare", "--indexes", "no.py::X"], "no such file 'no.py'"),
        (["compare", "--indexes", "flat", "--data", "/nowhere"], "no such folder"),
        (["compare", "--indexes", "flat", "--memory-gb", "nan"], "--memory-gb must be more than 0, got nan"),
        (["compare", "--indexes", "ivf:nprobe=-5"], "nprobe must not be negative, got '-5'"),
        (["compare", "--indexes", "ivf:nlist=2:nlist=3"], "nlist must be given once"),
        (["compare", "--indexes", "flat", "--k", "0"], "--k must be at least 1, got 0"),
        (
            ["compare", "--indexes", "flat", "--k", "ten"],
            "--k must be numbers and ranges such as 0,8",
        ),
        (["compare", "--indexes", "flat", "--layers", "1-x"], "--layers must be numbers"),
        (
            ["compare", "--indexes", "flat", "--tables", "speed"],
            "--tables must be of recall,bytes,time, got 'speed'",
        ),
        (["compare", "--indexes", "flat", "--threads", "999999", "--dry-run"], "--threads must be at most "),
        (
            ["compare", "--indexes", "flat", "--seed", str(10**9), "--dry-run"],
            "--seed must be at least 0 and",
        ),
        (["decode", "--model", "x", "--indexes", "ra", "--seed", "9" * 27], "--seed must be at least 0 and"),
        (["dump", "--model", "x", "--out", "never", "--seed", "-1"], "--seed must be at least 0 and below"),
        (["drift", "--indexes", "flat", "--threads", "999999"], "--threads must be at most "),
        (["check", "nothing"], "unknown index 'nothing'"),
        (["conpare"], "No such command 'conpare'"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, message) -> None:
    done = ra_bench(*arguments)

    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["compare", "--indexes", ""], "--indexes"),
        (["compare", "--indexes="], "--indexes"),
        (["compare", "--indexes", "flat", "--out", ""], "--out"),
        (["decode", "--model", "", "--indexes", "ra"], "--model"),
        (["drift", "--indexes", "flat", "--tokens", ""], "--tokens"),
        (["dump", "--model", "x", "--out", "never", "--prompt", "a", "--prompt", ""], "--prompt"),
        (["data", "gen", "--tokens", "4k", "--out="], "--out"),
        (["results", "export", "csv", "results", "--out", ""], "--out"),
        (["results", "list", "--json", ""], "PLACES"),
        (["diff", "before", ""], "B"),
    ],
)
def test_an_empty_value_is_refused_by_every_verb(arguments, name) -> None:
    told = CliRunner().invoke(app, arguments)

    assert isinstance(told.exception, UsageError)
    assert str(told.exception) == f"{name} must not be empty"


def test_no_verb_is_left_out_of_the_check_for_empty_values() -> None:
    groups = [get_command(app)]
    verbs = []
    while groups:
        for command in groups.pop().commands.values():
            (groups if hasattr(command, "commands") else verbs).append(command)

    assert len(verbs) > 12
    assert {type(verb).__name__ for verb in verbs} == {"_Verb"}


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("scaling", ["--out", ""], "--out must not be empty"),
        ("scaling", ["--out", "never", "--tokens", "9x"], "--tokens must be a number of tokens"),
        ("layer_scaling", ["--data="], "--data must not be empty"),
        ("layer_scaling", ["--threads", "999999"], "--threads must be at most "),
        ("layer_scaling", ["--bogus"], "No such option: --bogus"),
    ],
)
def test_a_module_with_a_command_line_of_its_own_refuses_as_the_verbs_do(module, arguments, message) -> None:
    command = [sys.executable, "-m", f"ra_bench.{module}", *arguments]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith(f"ra-bench: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("given", "wanted"), [(None, "passive"), ("active", "active")])
def test_threads_of_openmp_sleep_while_they_wait_unless_the_user_wants_them_awake(
    given, wanted, monkeypatch
) -> None:
    """Before torch or faiss load, which read it then."""
    program = "import sys, ra_bench.cli; print('torch' in sys.modules or 'faiss' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"
    from ra_bench import cli

    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")  # undone at the end, whatever main does
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen = []
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(os.environ.get("OMP_WAIT_POLICY")))

    with pytest.raises(SystemExit):
        cli.main()

    assert seen == [wanted]


def test_compare_prints_rows_as_json_lines_on_stdout_and_progress_on_stderr(dump, tmp_path) -> None:
    """And prints the tables that are asked for, from the rows that are there."""
    arguments = ["compare", "--indexes", "flat", "--data", dump, "--k", "10", "--out", tmp_path / "out"]

    done = ra_bench(*arguments, "--json")

    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["index"] for row in rows} == {"flat", "window", "random"}
    assert "3 units" in done.stderr
    again = ra_bench(*arguments, "--tables", "recall,bytes,time")
    assert "3 of them measured before" in again.stderr
    for title in ("k=10, at equal recall@10", "at equal bytes read a query", "at equal time of attend"):
        assert title in again.stdout
    assert f"{len(rows)} rows in" in again.stdout


def test_dry_run_prints_the_plan_and_writes_nothing(dump, tmp_path) -> None:
    out = tmp_path / "out"

    done = ra_bench("compare", "--indexes", "flat", "--data", dump, "--dry-run", "--out", out)

    assert done.stdout.splitlines() == [
        f"{name} on doc000/layer3/head0" for name in ("flat", "window", "random")
    ]
    assert not out.exists()


def test_a_raw_graph_brings_its_lifted_twin(dump) -> None:
    done = ra_bench("compare", "--indexes", "hnsw", "--data", dump, "--dry-run")

    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["hnsw", "hnsw@lift"]


def test_list_tells_every_index_as_a_json_object() -> None:
    done = ra_bench("list", "--json")

    listed = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert {"flat", "hnsw", "ivf", "ivfpq", "nsg", "pynndescent", "ra", "random", "window"} <= set(listed)
    assert listed["ra"]["query_aware"] is True
    assert listed["hnsw"]["query_aware"] is False
    for one in listed.values():
        assert one["available"] or one["reason"].startswith("not installed"), one
        assert one["idea"]
        keys = {
            "name",
            "kind",
            "paper",
            "idea",
            "where",
            "query_aware",
            "insert",
            "available",
            "reason",
            "extra",
        }
        assert set(one) == keys


def test_a_failed_unit_gives_exit_code_1_and_its_reason(dump, tmp_path) -> None:
    spec = f"{Path(__file__).parent / 'planted_indexes.py'}::Raises"

    done = ra_bench("compare", "--indexes", spec, "--data", dump, "--k", "10", "--out", tmp_path / "out")

    assert done.returncode == 1
    assert "planted failure" in done.stderr
    assert "Traceback" not in done.stderr
    assert "flat" in done.stdout, "the table of what was measured is printed all the same"


def test_text_that_looks_like_markup_is_printed_as_it_is(dump, tmp_path) -> None:
    spec = f"{Path(__file__).parent / 'planted_indexes.py'}::Brackets"

    done = ra_bench("compare", "--indexes", spec, "--data", dump, "--k", "10", "--out", tmp_path / "out")

    assert done.returncode == 1
    assert "ValueError: wrong [/x] shape [float32]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_head_that_does_not_apply_is_no_failure(make_dump, tmp_path) -> None:
    out = tmp_path / "out"

    done = ra_bench("compare", "--indexes", "flat", "--data", make_dump(window=64), "--out", out)

    assert done.returncode == 0, done.stderr
    assert "skipped: layer 3 attends within a window of 64 tokens only" in done.stderr


def test_a_read_only_output_folder_is_one_line(dump) -> None:
    done = ra_bench("compare", "--indexes", "flat", "--data", dump, "--out", "/proc/nothing")

    assert done.returncode == 1
    assert "--out '/proc/nothing' cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
