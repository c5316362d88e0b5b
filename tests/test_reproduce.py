"""What VIBE published is checked on its files: levels and order; where they are absent it says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ra_bench import reproduce
from ra_bench.cli import main
from ra_bench.errors import UsageError


def row(index, k, recall, status="ok"):
    return {"index": index, "k": k, "recall": recall, "status": status}


def rows(ra=0.99, hnsw=0.2, lifted=0.95):
    graphs = [row(graph, 100, hnsw) for graph in reproduce.RAW_GRAPHS]
    return [
        row(reproduce.ROARGRAPH, 100, 0.5),
        row(reproduce.ROARGRAPH, 100, ra),
        row(reproduce.LIFTED, 10, lifted),
        *graphs,
    ]


def test_levels_and_order_as_published_hold():
    found = reproduce.verdicts("llama-128-ip", rows())
    assert all(verdict.holds for verdict in found)
    assert len(found) >= 4


@pytest.mark.parametrize("measured", [{"ra": 0.97}, {"hnsw": 0.995}, {"lifted": 0.9}])
def test_each_statement_can_fail(measured):
    assert not all(verdict.holds for verdict in reproduce.verdicts("yi-128-ip", rows(**measured)))


def test_an_index_that_failed_is_not_measured_and_fails_its_statement():
    found = reproduce.verdicts("yi-128-ip", [row(reproduce.ROARGRAPH, None, None, "failed")])
    assert [verdict.holds for verdict in found] == [False] * len(found)
    assert "not measured" in found[0].line


def test_absent_files_are_told_with_their_source_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("RA_BENCH_DATA", str(tmp_path))
    with pytest.raises(
        UsageError, match=r"get https://.*llama-128-ip.hdf5 and put it at .*; get .*yi-128-ip.hdf5"
    ):
        reproduce.present("vibe")


def test_the_whole_reproduction_runs_on_a_small_file_of_the_same_layout(tmp_path, monkeypatch, capsys):
    sys.path.append(str(Path(__file__).parent))
    from test_data_sets import write_hdf5

    monkeypatch.setenv("RA_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reproduce, "indexes", lambda: (reproduce.ROARGRAPH, reproduce.LIFTED))
    monkeypatch.setattr(reproduce, "RAW_GRAPHS", ())
    write_hdf5(tmp_path / "vibe" / "llama-128-ip.hdf5")
    arguments = [
        "ra-bench",
        "compare",
        "--reproduce",
        "vibe",
        "--out",
        str(tmp_path / "out"),
        "--repeats",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*arguments, "--max-queries", "20"])

    with pytest.raises(SystemExit) as ended:
        main()

    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    assert "holds  llama-128-ip: RoarGraph's settings reach recall@100 0.98" in printed
    assert "holds  llama-128-ip: lifted HNSW reaches recall@10 0.94" in printed
