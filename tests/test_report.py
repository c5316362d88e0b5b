"""The report: what becomes of rows, what it refuses, and what it writes."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from result_folders import ENVIRONMENT, compare_folder, decode_folder, drift_folder

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

import numpy as np
import pyarrow.parquet as pq
from altair.utils.schemapi import debug_mode

from ra_bench.errors import UsageError
from ra_bench.report.about import environment_text
from ra_bench.report.charts.building import break_even_rows
from ra_bench.report.charts.heads import OF_DATA, OF_ORACLE, budget_rows
from ra_bench.report.charts.queries import DISTANCES, gain_rows, leakage_rows
from ra_bench.report.compared import points_over_heads
from ra_bench.report.export import drawings
from ra_bench.report.page import columnar
from ra_bench.report.rows import read_runs
from ra_bench.report.writing import FAMILIES, Material, make_page, write_report
from ra_bench.results import COLUMNS, ResultFolder
from ra_bench.statistics import paired_by_query


def ra_bench(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ra_bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def unpacked(html: str) -> dict:
    packed = re.search(r'id="data">([^<]*)<', html)
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def rows_of(dataset: dict) -> list[dict]:
    columns = {
        name: [column["words"][place] for place in column["places"]] if isinstance(column, dict) else column
        for name, column in dataset["columns"].items()
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    here = tmp_path_factory.mktemp("results")
    return [
        compare_folder(here / "honest"),
        compare_folder(here / "random", split="random"),
        decode_folder(here / "short", 4096),
        decode_folder(here / "long", 8192),
        drift_folder(here / "drift"),
    ]


@pytest.fixture(scope="module")
def page(folders):
    return make_page(folders)


def test_every_figure_that_the_rows_allow_is_drawn_and_the_rest_say_why(page) -> None:
    names = [figure.name for figure in page.figures]

    assert names == [
        *("quality-cost", "equal-recall", "against-reference", "head-maps", "difficulty", "tokens-per-mass"),
        *("query-aware-gain", "leakage", "geometry", "build-time", "memory", "break-even", "insert-drift"),
        *("drift-tokens", "accuracy-latency", "latency-parts", "memory-parts", "memory-context"),
        "offline-online",
    ]
    assert [one.title for one in page.left_out] == ["How far queries lie from the keys"]
    assert "mahalanobis_queries" in page.left_out[0].why


def test_what_is_shown_of_a_head_is_what_rows_hold():
    assert {*DISTANCES, *(field for field, _ in (*OF_ORACLE, *OF_DATA))} <= COLUMNS.keys()


def test_a_chart_without_its_columns_is_left_out_and_names_them(tmp_path) -> None:
    alone = make_page([compare_folder(tmp_path / "one", layers=1, kv_heads=1, ks=(10,), indexes=("ivf",))])
    reasons = {one.title: one.why for one in alone.left_out}

    assert "two heads" in reasons["Each head at a fixed budget"]
    assert "--split random" in reasons["What a random split flatters"]
    assert "learn_queries" in reasons["What learning from queries gains"]
    assert "no rows of ra-bench decode" in reasons["Offline against online"]
    assert "quality-cost" in [figure.name for figure in alone.figures]


def test_every_specification_is_valid_vega_lite(folders) -> None:
    material = Material(read_runs(folders))
    with debug_mode(True):
        for family in FAMILIES:
            for figure in family.figures(material):
                for chart in getattr(figure, "charts", {}).values():
                    chart.to_dict(validate=True)


def test_a_point_over_heads_is_the_mean_of_its_heads(page) -> None:
    rows = [
        row
        for row in page.material.compare
        if (row["index"], row["k"], row["split"]) == ("ivf", 10, "honest")
    ]
    points = points_over_heads(rows)

    assert [point["heads"] for point in points] == ["4 of 4"] * 4
    second = [row["search_p50_us"] for row in rows if row["effort_rank"] == 1]
    assert points[1]["search_p50_us"] == pytest.approx(sum(second) / 4)
    assert points[1]["effort"] == "ef=20"


def test_an_index_measured_in_two_folders_keeps_both_apart(tmp_path) -> None:
    before = compare_folder(tmp_path / "before", mark="a")
    after = compare_folder(tmp_path / "after", mark="b")
    shutil.copytree(before, tmp_path / "copy")

    labels = {row["index"] for row in Material(read_runs([before, after, tmp_path / "copy"])).compare}

    assert {"ra · before", "ra · after"} <= labels
    assert not any("copy" in label for label in labels)


def test_a_budget_keeps_the_best_setting_within_it(page) -> None:
    rows = budget_rows(page.material.compare)
    within = [row for row in rows if row["budget"] == "at most 5% of the keys read"]

    assert within
    assert all(row["keys_share"] <= 0.05 for row in within)
    assert {row["index"] for row in within} == {"ra", "ivf"}  # hnswlib hides what it reads
    assert {row["effort"] for row in within} == {"ef=20"}


def test_gain_compares_the_cheapest_of_both_kinds(page) -> None:
    rows = list(gain_rows(page.material.compare))

    assert {row["learning"] for row in rows} == {"ra"}
    assert {row["other"] for row in rows} <= {"ivf", "hnsw@lift"}
    assert all(row["ratio"] > 0 for row in rows)


def test_leakage_is_what_a_random_split_adds_at_the_same_settings(page) -> None:
    rows = {row["index"]: row for row in leakage_rows(page.material.compare) if row["k"] == 10}

    assert rows["ra"]["flattered"] == pytest.approx(0.02)
    assert rows["ivf"]["flattered"] == pytest.approx(0.0)
    assert rows["ra"]["settings"] == "16"


def test_drift_is_grown_less_whole_on_the_same_queries(page) -> None:
    figure = next(figure for figure in page.figures if figure.name == "drift-tokens")
    rows = [row for row in page.material.drift if row["index"] == "ivf" and row["inserted"] == 1600]
    points = {row["head"]: row for row in figure.rows if row["index"] == "ivf" and row["inserted"] == 1600}
    stored = [pq.read_table(row["row_file"]).slice(row["row_place"], 1).to_pylist()[0] for row in rows]

    recalls = [[np.array(row[f"recall_{side}_by_query"]) for row in stored] for side in ("whole", "grown")]
    assert set(points) == {"", "layer 0, KV head 0", "layer 0, KV head 1"}
    assert tuple(points[""][f"change{end}"] for end in ("", "_low", "_high")) == pytest.approx(
        paired_by_query(*recalls, block=2)
    )
    assert points[""]["effort"] == "differs by head"
    assert points["layer 0, KV head 0"]["effort"] == "ef=100"
    assert points[""]["more_read"] == pytest.approx(160 / 200)
    assert not any("by_query" in name for name in points[""])


def test_break_even_is_the_build_over_what_a_token_saves(page) -> None:
    rows = [row for row in break_even_rows(page.material.compare) if row["index"] == "ra" and row["k"] == 10]

    for row in rows:
        assert row["spent_s"] == pytest.approx(0.75)
        assert row["tokens"] == pytest.approx(0.75 / (row["saved_us"] * 1e-6 * 2))


def test_offline_joins_online_at_the_same_effort(page) -> None:
    figure = next(figure for figure in page.figures if figure.name == "offline-online")
    joined = {row["index"]: row for row in figure.rows if row["context"] == "4,096 tokens"}

    assert joined["ra"]["offline_effort"] == "ef=20"
    assert joined["ra"]["matched"] == "same search settings"
    assert joined["ra"]["mass_total"] == pytest.approx(0.8 + 0.1 * (0.6 + 0.399 * 0.5))
    assert re.fullmatch(r"ρ = [+-][\d.]+ \(4 indexes\)", joined["ra"]["rank_mass_total_score"])


def test_the_page_holds_the_rows_and_needs_nothing_from_elsewhere(folders, tmp_path) -> None:
    out = tmp_path / "new" / "report.html"
    write_report(folders, out)
    html = out.read_text()
    content = unpacked(html)
    quality = next(figure for figure in content["figures"] if figure["name"] == "quality-cost")
    rows = rows_of(content["datasets"][quality["dataset"]])

    assert {row["index"] for row in rows} >= {"ra", "hnsw@lift", "flat", "window", "random"}
    assert not any("by_query" in name or "samples" in name for name in rows[0] if name != "samples")
    markup = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL)
    assert set(re.findall(r'(?:src|href)="([^#"]*)', markup)) == {"data:,", ""}
    assert "<script src" not in html
    assert "default-src 'none'" in html
    assert "ra-bench compare --indexes ra --split honest" in html


def test_text_from_rows_is_shown_as_text(tmp_path) -> None:
    evil = "<script>alert(1)</script>"
    folder = compare_folder(tmp_path / "run", indexes=("ivf",), data=evil)
    identity = json.loads((folder / "run.json").read_text())
    ResultFolder(folder, identity).write(
        "bad",
        [
            {
                "unit": "bad",
                "status": "failed",
                "reason": evil,
                "index": evil,
                "data_hash": "d" * 64,
                "data": evil,
                "schema": identity["schema"],
            }
        ],
    )
    write_report([folder], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()

    assert evil not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_failures_with_the_same_reason_are_one_line(tmp_path) -> None:
    folder = compare_folder(tmp_path / "run")
    results = ResultFolder(folder, json.loads((folder / "run.json").read_text()))
    for kv_head in range(5):
        row = {
            "unit": f"f{kv_head}",
            "status": "oom",
            "reason": "used more than 1.0 GB",
            "index": "nsg",
            "schema": 1,
        }
        row |= {"document": "doc000", "layer": 0, "kv_head": kv_head, "data": "made", "data_hash": "d" * 64}
        results.write(
            f"f{kv_head}", [row | {"schema": json.loads((folder / "run.json").read_text())["schema"]}]
        )

    failures = make_page([folder]).failures

    assert len(failures) == 1
    assert failures[0]["reason"] == "used more than 1.0 GB"
    assert failures[0]["where"].endswith("and 2 more")


def test_columns_survive_packing() -> None:
    rows = [
        {"index": "ra", "recall": 0.123456, "k": 10, "none": None},
        {"index": "ivf", "recall": None, "k": 100, "none": None},
    ]

    back = rows_of(columnar(rows, ["index", "recall", "k", "none"]))

    assert back == [rows[0] | {"recall": 0.1235}, rows[1]]


def test_a_machine_is_told_with_its_versions_and_the_variables_that_decide_speed() -> None:
    facts = ENVIRONMENT | {"variables": {"OMP_WAIT_POLICY": "passive"}}

    told = environment_text(json.dumps(facts))

    assert told.startswith("Made CPU; 2 cores; 8 GB; no GPU; kernels avx2; Linux; Python 3.11.2;")
    assert told.endswith("numpy 2.4.6; OMP_WAIT_POLICY=passive")


def test_latencies_of_two_machines_are_a_choice_that_begins_with_one(tmp_path) -> None:
    here = compare_folder(tmp_path / "here")
    there = compare_folder(tmp_path / "there", machine="Other CPU, 8 cores", mark="other")
    page = make_page([here, there])
    options = next(one["options"] for one in page.filters if one["name"] == "machine")

    assert [label for _, label in options][-1] == "all machines (mixes latencies)"
    assert len(options) == 3
    assert any("rows of 2 machines" in note for note in page.notes)
    assert {scope["machine"] for scope in page.scopes["compare"]} == {
        "Made CPU, 2 cores",
        "Other CPU, 8 cores",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such folder"),
        (lambda path: path.mkdir() or path, "it has no run.json"),
        (lambda path: ResultFolder(path, {"verb": "compare", "schema": 99}) and path, "schema version 99"),
        (
            lambda path: ResultFolder(path, {"verb": "dance", "schema": 1}) and path,
            "holds results of 'dance'",
        ),
        (lambda path: compare_folder(path, schema=99), "schema version 99"),
        (
            lambda path: ResultFolder(path, {"verb": "compare", "schema": read_schema()}) and path,
            "there are no rows yet",
        ),
    ],
)
def test_a_folder_without_results_is_refused_in_a_line(make, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_runs([make(tmp_path / "run")])

    assert "\n" not in str(caught.value)


def read_schema() -> int:
    from ra_bench.results import SCHEMA_VERSION

    return SCHEMA_VERSION


def test_a_half_written_folder_shows_what_is_whole(tmp_path) -> None:
    folder = compare_folder(tmp_path / "run")
    files = sorted((folder / "rows").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:100])
    (folder / "rows" / ".x.parquet.1.partial").write_bytes(b"")

    (run,) = read_runs([folder])

    assert run.ok
    assert any(files[0].name in note and "damaged" in note for note in run.notes)
    assert any("half-written" in note for note in run.notes)


def test_figures_are_files_of_the_same_specifications(tmp_path) -> None:
    folder = compare_folder(tmp_path / "run", layers=1, kv_heads=1, ks=(10,), indexes=("ra",))
    page = make_page([folder])
    names = [name for name, _ in drawings(page)]

    written = write_report([folder], tmp_path / "report.html", tmp_path / "figures")

    assert len(written.figures) == 2 * len(names)
    assert "quality-cost-recall-search_p50_us" in names
    svg = (tmp_path / "figures" / "quality-cost-recall-search_p50_us.svg").read_text()
    assert "ef=10" in svg
    png = (tmp_path / "figures" / "quality-cost-recall-search_p50_us.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") > 1000


def test_the_command_writes_a_page_and_says_what_is_mixed(folders, tmp_path) -> None:
    done = ra_bench("report", *folders, "--out", tmp_path / "report.html")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"report in {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").stat().st_size > 500_000


def test_the_command_without_results_is_one_line_and_exit_code_2(tmp_path) -> None:
    done = ra_bench("report", tmp_path / "nothing")

    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == f"ra-bench: RESULTS must be result folders, no such folder '{tmp_path / 'nothing'}'"
    )


def test_compare_ends_with_a_page_unless_told_not_to(dump, tmp_path) -> None:
    arguments = ["compare", "--indexes", "flat", "--data", dump, "--k", "10", "--out", tmp_path / "out"]

    without = ra_bench(*arguments, "--no-report")

    assert without.returncode == 0, without.stderr
    assert not (tmp_path / "out" / "report.html").exists()
    done = ra_bench(*arguments)
    assert f"report in {tmp_path / 'out' / 'report.html'}" in done.stderr
    html = (tmp_path / "out" / "report.html").read_text()
    assert "ra-bench compare --indexes flat" in html
    assert html.count("--no-report") == 1  # both commands are told, and not twice
