"""The asv suite: its pins, its directions, its made head, and the smoke run that must not pass on nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ra_bench.asv_suite import heads
from ra_bench.asv_suite.smoke import KINDS, judge, main, measured, write_config
from ra_bench.registry import create

ROOT = Path(__file__).parent.parent
SUITE = ROOT / "ra_bench" / "asv_suite"
SUMS = [170969.6, 99279.2, 456057.3]  # of absolute keys, values and queries, every seventh row


def config(tmp_path: Path) -> dict:
    return json.loads(write_config(ROOT, tmp_path).read_text())


def test_asv_pins_what_the_constraints_pin(tmp_path) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())

    for name, versions in config(tmp_path)["matrix"]["req"].items():
        assert versions == [pins[name]], name


def test_a_smoke_run_writes_nothing_into_the_checkout(tmp_path) -> None:
    for name in ("env_dir", "results_dir", "html_dir"):
        assert Path(config(tmp_path)[name]).is_relative_to(tmp_path)


def test_nothing_is_tracked_that_is_better_when_higher() -> None:
    tracked = {
        name for file in SUITE.glob("*.py") for name in re.findall(r"def track_(\w+)", file.read_text())
    }

    assert {"miss", "output_error", "keys_read", "bytes_per_key"} <= tracked
    assert not [name for name in tracked if re.search("recall|mass|per_s|throughput", name)]


def test_every_kind_that_the_smoke_run_wants_is_a_benchmark() -> None:
    code = "".join(file.read_text() for file in SUITE.glob("*.py"))

    for kind in KINDS:
        assert f"def {kind}(" in code


def results(tmp_path: Path, content: dict) -> Path:
    folder = tmp_path / "results" / "machine"
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(json.dumps({"machine": "machine"}))
    columns = {"result_columns": ["result", "params"]}
    (folder / "abc-env.json").write_text(json.dumps(columns | {"results": content}))
    return tmp_path / "results"


def test_numbers_are_counted_and_failures_and_skips_are_not(tmp_path) -> None:
    folder = results(
        tmp_path, {"search.Search.time_search": [[0.5, None, float("nan"), 2], []], "x.time_y": [None]}
    )

    assert measured(folder.glob("*/*.json")) == {"time_search": 2, "time_y": 0}


def test_a_run_that_measured_all_kinds_passes(tmp_path) -> None:
    folder = results(tmp_path, {f"some.Class.{kind}": [[0.5]] for kind in KINDS})

    assert main(["--results", str(folder)]) == 0


@pytest.mark.parametrize("left_out", [*KINDS, "all"])
def test_a_run_that_measured_nothing_of_a_kind_fails(left_out, capsys) -> None:
    counts = {kind: 1 for kind in KINDS if left_out not in (kind, "all")}

    assert judge(counts) == 1
    assert "asv measured nothing of " in capsys.readouterr().err


def test_the_watched_indexes_are_registered() -> None:
    for spec in heads.INDEXES:
        create(spec)


def test_the_made_head_is_the_same_at_every_commit() -> None:
    keys, values, queries = heads.synthetic_vectors()

    tokens = heads.SYNTHETIC_TOKENS + heads.SYNTHETIC_STEPS
    assert keys.shape == values.shape == (tokens, heads.SYNTHETIC_DIM)
    assert queries.shape == (tokens * heads.SYNTHETIC_GROUP, heads.SYNTHETIC_DIM)
    sums = [np.abs(rows[::7].astype(np.float64)).sum() for rows in (keys, values, queries)]
    np.testing.assert_allclose(sums, SUMS, rtol=1e-4)


def test_rotation_keeps_lengths_and_turns_with_the_distance() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 8))
    at = np.arange(6)[:, None] * np.array([1.0, 0.5, 0.2, 0.1])

    one, other = heads.rotate(np.repeat(a, 6, 0), at), heads.rotate(np.repeat(b, 6, 0), at)

    np.testing.assert_allclose(np.linalg.norm(one, axis=1), np.linalg.norm(a))
    products = one @ other.T
    for step in range(5):  # products depend on the distance of positions alone
        np.testing.assert_allclose(np.diag(products, step), products[0, step])


def test_an_index_that_is_not_there_is_skipped_and_one_that_broke_fails() -> None:
    states = {
        ("sample", "a"): heads.State(absent="unknown index"),
        ("sample", "b"): heads.State(error="it broke"),
    }

    with pytest.raises(NotImplementedError, match="unknown index"):
        heads.state_of(states, "sample", "a")
    with pytest.raises(RuntimeError, match="it broke"):
        heads.state_of(states, "sample", "b")
    assert heads.missing_here("no_such_index")
    assert not heads.missing_here("flat")
