"""`ra-bench diff`: what pairs, what changed, which gates fall, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from ra_bench.cli import main
from ra_bench.diff.changes import changes
from ra_bench.diff.gates import parse_gates
from ra_bench.diff.pairs import pair, unpaired
from ra_bench.diff.quantities import QUANTITIES
from ra_bench.diff.sides import read_side
from ra_bench.errors import RunError, UsageError
from ra_bench.results import SCHEMA_VERSION, ResultFolder
from ra_bench.statistics import paired_by_head, paired_by_query, sign_flip_test

GROUP, TOKENS, REPEATS = 2, 40, 3
IDENTITY = {
    "verb": "compare",
    "data_hash": "d" * 64,
    "schema": SCHEMA_VERSION,
    "split": "honest",
    "max_queries": 80,
    "seed": 0,
}


def made_row(index="ivf", head=0, effort=1, k=10, seed=0, mass=0.0, slower=1.0, **facts) -> dict:
    """A row as `measure` writes it: scalars that agree with their samples."""
    rng = np.random.default_rng([seed, head, effort, k])
    hard = np.random.default_rng(head).uniform(0.5, 0.8, GROUP * TOKENS)  # of the queries: the same always
    masses = (hard + 0.02 * effort + mass + rng.normal(0, 0.001, hard.size)).astype(np.float32)
    times = (slower * effort * rng.uniform(90, 110, REPEATS * TOKENS)).astype(np.float32)
    return {
        "unit": f"{index}-{head}",
        "status": "ok",
        "data": "made",
        "data_hash": "d" * 64,
        "document": "doc000",
        "layer": 3,
        "kv_head": head,
        "group": GROUP,
        "n": 1000,
        "index": index,
        "settings": json.dumps({"nlist": 8}),
        "effort": json.dumps({"nprobe": effort}),
        "effort_rank": effort,
        "k": k,
        "repeats": REPEATS,
        "mass_total": float(masses.mean()),
        "mass_total_by_query": masses.tolist(),
        "search_p50_us": float(np.percentile(times, 50)),
        "search_us_samples": times.tolist(),
        "keys_read": 10.0 * effort,
        "machine": "a CPU, 2 cores",
        "environment": json.dumps({"commit": "c" * 40, "versions": {"numpy": "2"}}),
        "schema": SCHEMA_VERSION,
    } | facts


def write(path: Path, rows: list[dict], **identity) -> Path:
    folder = ResultFolder(path, IDENTITY | identity)
    for unit in dict.fromkeys(row["unit"] for row in rows):
        folder.write(unit, [row for row in rows if row["unit"] == unit])
    return path


def both(tmp_path: Path, a: list[dict], b: list[dict]):
    return read_side("A", write(tmp_path / "a", a)), read_side("B", write(tmp_path / "b", b))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def diff(monkeypatch, capsys):
    """Runs the command in this process: a new one would load everything again, dozens of times."""

    def run(a: Path, b: Path, *arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["ra-bench", "diff", str(a), str(b), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


def of(found, quantity: str, **setting):
    (change,) = [
        change
        for change in found
        if change.quantity.column == quantity
        and all(getattr(change.paired.setting, name) == value for name, value in setting.items())
    ]
    return change


def test_changes_are_the_paired_differences_of_the_rows(tmp_path) -> None:
    before = [made_row(head=head) for head in range(3)]
    after = [made_row(head=head, seed=1, mass=-0.05, slower=1.3) for head in range(3)]

    found = changes(pair(*both(tmp_path, before, after)), QUANTITIES.values())

    mass = of(found, "mass_total")
    masses = [[row["mass_total"] for row in side] for side in (before, after)]
    samples = [[np.array(row["mass_total_by_query"], np.float32) for row in side] for side in (before, after)]
    assert mass.value(relative=False) == pytest.approx(np.mean(masses[1]) - np.mean(masses[0]))
    assert mass.by_query(relative=False) == paired_by_query(*samples, block=GROUP)[1:]
    assert mass.by_head(relative=False) == paired_by_head(*map(np.array, masses))[1:]
    assert mass.p_value == sign_flip_test(np.subtract(masses[1], masses[0])) == 0.25
    low, high = mass.interval(relative=False)
    assert -0.06 < low < -0.05 + 0.002
    assert low < high < -0.04
    time = of(found, "search_p50_us")
    assert time.value(relative=True) == pytest.approx(0.3, abs=0.05)
    assert time.is_certain
    assert not time.is_better
    assert of(found, "keys_read").value(relative=True) == 0
    assert {change.quantity.column for change in found} == {"mass_total", "search_p50_us", "keys_read"}


def test_settings_are_paired_whatever_the_order_of_rows_and_of_json_keys(tmp_path) -> None:
    settings = {"nlist": 8, "train": 3}
    before = [
        made_row(effort=effort, k=k) | {"settings": json.dumps(settings)}
        for effort in (1, 2)
        for k in (5, 10)
    ]
    swapped = json.dumps(dict(reversed(settings.items())))
    after = [row | {"settings": swapped} for row in reversed(before)]

    paired = pair(*both(tmp_path, before, after))

    assert len(paired) == 4
    assert all(one.before[0]["mass_total"] == one.after[0]["mass_total"] for one in paired)


def test_what_is_unpaired_is_told_with_its_reason(tmp_path) -> None:
    before = [
        made_row(),
        made_row("hnsw"),
        made_row(head=1),
        made_row(effort=2),
        made_row(k=5),
        made_row("ra"),
    ]
    after = [made_row(), made_row("ra") | {"settings": json.dumps({"nlist": 9})}, made_row("new")]

    assert unpaired(*both(tmp_path, before, after)) == [
        "only in A: 1 row of ivf: B did not measure that effort",
        "only in A: 1 row of ivf: B did not measure that k",
        "only in A: 1 row of hnsw: B did not measure that index",
        "only in A: 1 row of ivf: B did not measure it on that head",
        "only in A: 1 row of ra: B built it with other settings (nlist)",
        "only in B: 1 row of ra: A built it with other settings (nlist)",
        "only in B: 1 row of new: A did not measure that index",
    ]


def test_rows_with_nothing_in_common_are_an_error(tmp_path) -> None:
    with pytest.raises(
        RunError, match="nothing in common: only in A: 1 row of ivf: B did not measure that index"
    ):
        pair(*both(tmp_path, [made_row()], [made_row("ra")]))


def test_times_of_different_machines_are_compared_only_when_asked(tmp_path) -> None:
    paired = pair(*both(tmp_path, [made_row()], [made_row(machine="another")]))

    assert {c.quantity.column for c in changes(paired, QUANTITIES.values())} == {"mass_total", "keys_read"}
    asked = {c.quantity.column for c in changes(paired, QUANTITIES.values(), across_machines=True)}
    assert asked == {"mass_total", "keys_read", "search_p50_us"}


def test_of_units_measured_twice_the_one_written_last_counts(tmp_path) -> None:
    path = write(tmp_path / "a", [made_row(unit="old"), made_row(unit="new", mass=0.1)])
    for age, unit in ((100, "old"), (10, "new")):
        os.utime(path / "rows" / f"{unit}.parquet", (1e9 - age, 1e9 - age))

    side = read_side("A", path)

    assert [row["unit"] for row in side.rows] == ["new"]
    assert side.outdated == 1


def test_samples_that_were_not_kept_leave_the_interval_by_head(tmp_path) -> None:
    before = [made_row(head=head, mass_total_by_query=None) for head in range(4)]
    after = [made_row(head=head, seed=1, mass=0.05, mass_total_by_query=None) for head in range(4)]

    change = of(changes(pair(*both(tmp_path, before, after)), QUANTITIES.values()), "mass_total")

    assert change.by_query(relative=False) is None
    assert change.interval(relative=False) == change.by_head(relative=False)


@pytest.mark.parametrize(
    ("expression", "falls"),
    [
        ("mass_total<-0.01", True),
        ("mass_total<-0.06", False),
        ("mass_total > -0.06", True),
        ("mass_total<-5%", True),
        ("mass_total<-20%", False),
        ("p50>+20%", True),
        ("p50>40%", False),
        ("search_p50_us>+10", True),
        ("search_p50_us>+50", False),
        ("keys_read>0", False),
        ("mass_total<-0.06,p50>+20%", True),
    ],
)
def test_a_gate_falls_where_a_change_is_beyond_it(tmp_path, expression, falls, diff) -> None:
    a = write(tmp_path / "a", [made_row()])
    b = write(tmp_path / "b", [made_row(seed=1, mass=-0.05, slower=1.3)])

    done = diff(a, b, "--fail-on", expression)

    assert done.returncode == (3 if falls else 0), done.stderr
    assert ("fell: ivf, k=10, nprobe=1: " in done.stderr) == falls


def test_a_certain_gate_falls_only_where_the_whole_interval_is_beyond_it(tmp_path) -> None:
    rows = [made_row(), made_row(seed=1, slower=1.02)]
    (change,) = changes(pair(*both(tmp_path, rows[:1], rows[1:])), [QUANTITIES["search_p50_us"]])
    value, (low, _) = change.value(relative=True), change.interval(relative=True)
    assert 0 < low < value

    (gate,) = parse_gates(f"p50>{50 * (low + value):.6f}%")

    assert gate.falls(change)
    assert not gate.falls(change, certain=True)
    (gate,) = parse_gates(f"p50>{99 * low:.6f}%")
    assert gate.falls(change, certain=True)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("mass<-0.01", "--fail-on: unknown quantity 'mass'. Did you mean 'mass_total'?"),
        (
            "mass_total=-0.01",
            "--fail-on must be gates such as mass_total<-0.01,p50>+20%, got 'mass_total=-0.01'",
        ),
        ("p50>", "got 'p50>'"),
        ("p50>20%%", "got 'p50>20%%'"),
        ("p50>nan", "got 'p50>nan'"),
        ("p50>1e999", "finite numbers, got 'p50>1e999'"),
        ("", "got ''"),
        ("p50>20%,", "got ''"),
    ],
)
def test_a_bad_gate_is_one_line_and_exit_code_2(tmp_path, expression, message) -> None:
    with pytest.raises(UsageError) as refused:
        parse_gates(expression)

    assert message in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_gate_on_what_was_not_measured_is_an_error_and_no_pass(tmp_path, diff) -> None:
    a, b = (write(tmp_path / name, [made_row()]) for name in "ab")

    done = diff(a, b, "--fail-on", "build_s>+20%")

    assert done.returncode == 1
    assert "--fail-on 'build_s>+20%': no pair of rows has a build_s" in done.stderr


def test_a_gate_on_times_of_different_machines_is_refused_unless_asked(tmp_path, diff) -> None:
    a = write(tmp_path / "a", [made_row()])
    b = write(tmp_path / "b", [made_row(machine="another")])

    refused = diff(a, b, "--fail-on", "p50>+20%")
    assert refused.returncode == 2
    assert "'p50>+20%' needs times of one machine, got a CPU, 2 cores and another" in refused.stderr
    assert diff(a, b, "--fail-on", "p50>+20%", "--across-machines").returncode == 0
    told = diff(a, b, "--fail-on", "mass_total<-0.01")
    assert told.returncode == 0
    assert "times are not compared: a CPU, 2 cores and another are different machines" in told.stderr


def test_with_gates_what_newly_fails_is_a_fall(tmp_path, diff) -> None:
    a = write(tmp_path / "a", [made_row(), made_row("ra")])
    failed = {"status": "failed", "reason": "it broke", "effort": None, "settings": None}
    b = write(tmp_path / "b", [made_row(), made_row("ra") | failed])

    done = diff(a, b, "--fail-on", "mass_total<-0.01")

    assert done.returncode == 3
    assert "ra on doc000/layer3/head0 was measured in A, and in B it is failed: it broke" in done.stderr
    assert diff(a, b).returncode == 0


def test_json_lines_hold_every_quantity_and_the_table_a_line_a_setting(tmp_path, diff) -> None:
    a = write(tmp_path / "a", [made_row(head=head, effort=effort) for head in (0, 1) for effort in (1, 2)])
    b = write(tmp_path / "b", [made_row(head=head, seed=1) for head in (0, 1)])

    lines = [json.loads(line) for line in diff(a, b, "--json").stdout.splitlines()]
    shown = diff(a, b).stdout

    assert {line["quantity"] for line in lines} == {"mass_total", "search_p50_us", "keys_read"}
    for line in lines:
        assert (line["index"], line["effort"], line["k"], line["heads"]) == ("ivf", {"nprobe": 1}, 10, 2)
        assert line["p_value"] is not None
    (mass,) = [line for line in lines if line["quantity"] == "mass_total"]
    assert mass["by_query"][0] <= mass["change"] <= mass["by_query"][1]
    assert shown.count("nprobe=1") == 1
    assert "keys_read: 0 better, 0 worse, 0 not certain, 1 equal" in shown


def test_versions_and_variables_that_differ_are_told(tmp_path, diff) -> None:
    here = {"versions": {"numpy": "2", "torch": "3"}, "variables": {"OMP_WAIT_POLICY": "passive"}}
    there = {"versions": {"numpy": "2", "torch": "4"}}
    a = write(tmp_path / "a", [made_row(environment=json.dumps(here))])
    b = write(tmp_path / "b", [made_row(environment=json.dumps(there))])

    told = diff(a, b).stderr

    assert "OMP_WAIT_POLICY: passive in A, none in B" in told
    assert "torch: 3 in A, 4 in B" in told
    assert "numpy:" not in told


def damaged(path: Path) -> None:
    (path / "rows" / "ivf-0.parquet").write_bytes(b"PAR1")


def of_another_schema(path: Path) -> None:
    table = pq.read_table(path / "rows" / "ivf-0.parquet")
    other = table.drop_columns(["schema"]).append_column("schema", [[99]])
    pq.write_table(other, path / "rows" / "ivf-0.parquet")


def marked(**facts):
    def write_marker(path: Path) -> None:
        (path / "run.json").write_text(json.dumps(IDENTITY | facts))

    return write_marker


def half_written(path: Path) -> None:
    (path / "rows" / "ivf-0.parquet").rename(path / "rows" / ".ivf-0.parquet.7.partial")


@pytest.mark.parametrize(
    ("spoil", "message", "code"),
    [
        (lambda path: (path / "run.json").unlink(), "has no run.json", 2),
        (lambda path: (path / "run.json").write_text("{"), "run.json' cannot be read", 2),
        (lambda path: (path / "rows" / "ivf-0.parquet").unlink(), "holds no rows", 2),
        (half_written, "holds no rows; its run was stopped before the first unit ended", 2),
        (damaged, "ivf-0.parquet' is damaged", 1),
        (of_another_schema, f"holds rows of schema version 99, this ra-bench reads {SCHEMA_VERSION}", 2),
        (marked(schema=99), "holds rows of schema version 99", 2),
        (marked(verb="decode"), "B must hold results of compare", 2),
        (marked(data_hash="e"), "A and B must be of the same data, got made (dddddddd) and made (e)", 2),
        (marked(split="random"), "must have tested the same queries, got --split honest and random", 2),
        (marked(max_queries=7), "must have tested the same queries, got --max-queries 80 and 7", 2),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(tmp_path, spoil, message, code, diff) -> None:
    a, b = (write(tmp_path / name, [made_row()]) for name in "ab")
    spoil(b)

    done = diff(a, b)

    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""


def test_no_folder_and_only_failures_are_refused(tmp_path, diff) -> None:
    a = write(tmp_path / "a", [made_row()])

    absent = diff(a, tmp_path / "nowhere")
    assert (absent.returncode, "B must be a result folder, no such folder" in absent.stderr) == (2, True)
    b = write(tmp_path / "b", [made_row(status="failed", reason="it broke")])
    failed = diff(a, b)
    assert failed.returncode == 1
    assert "nothing in common" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
