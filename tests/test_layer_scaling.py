"""A layer's call on several threads: what it measures, and what it refuses."""

from __future__ import annotations

import pytest
from ra_bench.datasets.sample import sample_path

from ra_bench.errors import UsageError
from ra_bench.layer_scaling import Layer, lines, main
from ra_bench.vectors import DataSet


def test_a_line_for_each_number_of_threads_and_the_effort_of_the_spec(monkeypatch):
    monkeypatch.setattr("ra_bench.layer_scaling.PASS_S", 0.0)
    data = DataSet.open(sample_path())
    layer = Layer("ivf:nprobe=7", [data.load(data.heads[0])], heads=2, threads=1)
    layer.tokens = layer.tokens[:4]
    heading, _, one, two = lines("ivf:nprobe=7", layer, k=10, recall=1.0, cores=2)
    assert "2 heads x 7 queries, 31,104 keys a head" in heading
    assert "'nprobe': 7" in heading
    assert [int(line.split()[0]) for line in (one, two)] == [1, 2]
    assert float(one.split()[2]) == 1.0


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"k": 0}, {"threads": -1}, {"recall": 2.0}])
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))} must be"):
        main(**wrong)
