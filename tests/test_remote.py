"""Data sets at URLs: the same vectors, fetched file by file, and never half a file."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest

from ra_bench.errors import UsageError
from ra_bench.remote import local_folder
from ra_bench.vectors import DataSet


@pytest.fixture
def url(dump, tmp_path, monkeypatch) -> str:
    """A dump in fsspec's memory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(str(dump), "/bucket/made", recursive=True)
    yield "memory://bucket/made"
    memory.rm("/bucket", recursive=True)


def test_a_data_set_at_a_url_is_the_one_that_lies_there(url, dump) -> None:
    here, there = DataSet.open(dump), DataSet.open(url)

    assert there.hash == here.hash
    assert there.name == "made"
    np.testing.assert_array_equal(there.load(there.heads[0]).keys, here.load(here.heads[0]).keys)


def test_only_the_files_of_the_heads_that_are_read_are_fetched(url) -> None:
    data = DataSet.open(url)
    assert [file.name for file in local_folder(url).iterdir()] == ["dump.json"]

    data.load(data.heads[0])

    assert len(list(local_folder(url).glob("*.parquet"))) == 4


def test_a_file_that_another_run_left_torn_is_fetched_again(url) -> None:
    data = DataSet.open(url)
    data.load(data.heads[0])
    (local_folder(url) / "doc000_layer3_head0_keys.parquet").write_bytes(b"PAR1")

    assert len(data.load(data.heads[0]).keys)


def test_a_file_that_is_not_there_is_named(url) -> None:
    data = DataSet.open(url)
    fsspec.filesystem("memory").rm("/bucket/made/doc000_layer3_head0_values.parquet")

    with pytest.raises(UsageError, match=r"doc000_layer3_head0_values\.parquet is missing"):
        data.load(data.heads[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nosuch://bucket/x", "dump.json cannot be read: Protocol not known: nosuch"),
        ("memory://bucket/none", "is not a finished dump: it has no dump.json"),
    ],
)
def test_a_wrong_url_is_named(url, wrong, message) -> None:
    with pytest.raises(UsageError, match=message):
        DataSet.open(wrong)
