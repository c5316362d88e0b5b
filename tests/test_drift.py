"""`ra-bench drift`: an index built whole beside the same index grown by inserts."""

from __future__ import annotations

import pytest
from ra_bench.datasets.sample import sample_path

from ra_bench.drift import measure_drift, table
from ra_bench.errors import UsageError
from ra_bench.vectors import DataSet


@pytest.fixture(scope="module")
def sample():
    return DataSet.open(sample_path())


def test_an_exact_index_does_not_drift(sample):
    (row,) = measure_drift(sample, ["flat"], 1000, 0.95, 1)
    assert row.recall_whole == row.recall_grown == 1
    assert row.read_whole == row.read_grown == 1
    assert row.insert_us_per_token > 0
    assert len(list(table([row]))) == 2


@pytest.mark.parametrize(
    ("spec", "tokens", "problem"), [("nsg", 10, "cannot insert"), ("flat", 40000, "--tokens")]
)
def test_what_cannot_be_measured_is_refused(sample, spec, tokens, problem):
    with pytest.raises(UsageError, match=problem):
        list(measure_drift(sample, [spec], tokens, 0.95, 1))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["ra", "qivf"])
def test_an_eighth_of_the_keys_inserted_costs_at_most_a_point_of_recall(sample, spec):
    (row,) = measure_drift(sample, [spec], 3900, 0.95, 2)
    assert row.recall_grown >= row.recall_whole - 0.01
