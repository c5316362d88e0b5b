"""Our own dumps: folders of Parquet that `ra-bench dump`, `data gen` and `data import` write."""

from __future__ import annotations

from pathlib import Path

from ra_bench.data import Family
from ra_bench.vectors import MANIFEST, DataSet


def recognises(path: Path) -> bool:
    """A folder with a dump's manifest."""
    return (path / MANIFEST).is_file()


FAMILY = Family(
    name="dump",
    layout=f"a folder with {MANIFEST} and Parquet files",
    recognises=recognises,
    open=DataSet.open,
)
