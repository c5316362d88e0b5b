"""Every data set behind one door: `open_data` finds the family of what `--data` names, and opens it.

A family is a file of datasets/ with a `FAMILY`. A name is a path, or that of a known data set (`ra-bench data
list`), which lies in the data folder: RA_BENCH_DATA, or ~/.cache/ra-bench/data.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from ra_bench.errors import UsageError
from ra_bench.remote import is_url
from ra_bench.vector_set import cache_folder
from ra_bench.vectors import Allocate, DataSet, HeadName, HeadVectors


class DataSource(Protocol):
    """An opened data set: `vectors.DataSet`, or `vector_set.VectorSet` of those that others publish."""

    @property
    def path(self) -> Path:
        """Its folder or file."""

    @property
    def name(self) -> str:
        """The last part of its path, for rows and folders."""

    @property
    def source(self) -> str:
        """Where it can be opened again from any folder: its whole path, or its URL."""

    @property
    def heads(self) -> list[HeadName]:
        """The heads that it holds, in order."""

    @property
    def hash(self) -> str:
        """Names the content."""

    @property
    def has_layers(self) -> bool:
        """Whether the names of heads tell their layer and KV head."""

    def select(
        self,
        documents: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        kv_heads: Sequence[int] | None = None,
    ) -> list[HeadName]:
        """Some of the heads; UsageError for one that is absent."""

    def load(self, name: HeadName | tuple[str, int, int], allocate: Allocate = np.empty) -> HeadVectors:
        """All vectors of one head, checked."""

    def verify(self, progress: Callable[[str], None] = ...) -> list[str]:
        """Checks everything; what was checked, a line each. UsageError for what is wrong."""


@dataclass(frozen=True)
class Known:
    """A published data set: `source` tells where to get it, `file` its place in the data folder."""

    name: str
    file: str
    source: str
    about: str

    @property
    def path(self) -> Path:
        """Where it is, or is to be put."""
        return data_folder() / self.file


@dataclass(frozen=True)
class Family:
    """A kind of data set: how it is recognised and opened, and which are known by name."""

    name: str
    layout: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path], DataSource]
    known: tuple[Known, ...] = field(default=())


def data_folder() -> Path:
    """Where data sets that are known by name lie."""
    return Path(os.environ.get("RA_BENCH_DATA") or cache_folder() / "data")


@cache
def families() -> list[Family]:
    """The families of datasets/, in the order in which they are asked; our own dumps first."""
    package = importlib.import_module("ra_bench.datasets")
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        family = getattr(importlib.import_module(f"ra_bench.datasets.{module.name}"), "FAMILY", None)
        if family is not None:
            found.append(family)
    first = ("dump", "vibe")  # VIBE's files have the layout of ann-benchmarks', and are more than that
    return sorted(found, key=lambda family: (family.name not in first, family.name))


def known() -> dict[str, Known]:
    """The data sets that have a name."""
    return {one.name: one for family in families() for one in family.known}


def open_data(text: str | Path) -> DataSource:
    """The data set at a path or URL, or of a known name; UsageError where it is absent or damaged.

    An absent one that is known tells where to get it and where to put it. A URL is that of a dump.
    """
    if is_url(str(text)):
        return DataSet.open(text)
    path = Path(text)
    if not path.exists() and str(text) in known():
        named = known()[str(text)]
        path = named.path
        if not path.exists():
            raise UsageError(
                f"data set '{named.name}' is not here: get it from {named.source} and put it at {named.path}"
                " (RA_BENCH_DATA names another folder)"
            )
    every = families()
    if not path.exists():
        raise UsageError(
            f"data set '{text}' must be a folder that `ra-bench dump` wrote, another data set's file or "
            f"folder, or one of {', '.join(known())}: no such folder or file"
        )
    for family in every:
        if family.recognises(path):
            return family.open(path)
    if path.is_dir():
        return every[0].open(path)  # which says what a dump lacks
    layouts = "; ".join(f"{family.name}: {family.layout}" for family in every)
    raise UsageError(f"data set '{text}' is of no family that ra-bench reads. {layouts}")
