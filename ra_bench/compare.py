"""The main path: a plan of units (data, head, index, settings), each measured in a process of its own.

For each head, one child computes the bundle (truth, neighbours of learn queries), then one child a unit
measures an index on it. Rows land as each unit ends; a plan that is run again measures what is missing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ra_bench.data import DataSource, open_data
from ra_bench.engine.local import Limits, Outcome, run_unit
from ra_bench.environment import environment, machine_class
from ra_bench.errors import UsageError
from ra_bench.index import Index
from ra_bench.machine import random_read_gb_per_s
from ra_bench.measure import Job, measure
from ra_bench.prepare import Bundle, Request, prepare, wants
from ra_bench.registry import Spec, create, index_class, parse
from ra_bench.results import SCHEMA_VERSION, ResultFolder, Row, content_address
from ra_bench.split import SplitName
from ra_bench.vectors import HeadName

# On every chart: the oracle and the floors.
ALWAYS = ("flat", "window", "random")
MEMORY_SHARE = 0.8  # of the machine's memory a unit may use, unless told otherwise
# The modules of the harness that decide what a row says.
MEASURING = (
    *("attention", "budgets", "head", "index", "machine", "measure", "metrics", "prepare", "snapshot"),
    *("split", "timing", "transform", "truth", "vectors", "scoring", "encoding", "rerank", "choosing"),
    *("partition", "compressor", "wrapper", "head_file", "vector_set", "difficulty"),
)
UNDEFINED = "undefined"  # of a head's facts: the columns that its data set does not define
# The truth of a head may take this long whatever the limit of a unit, which is meant for indexes.
TRUTH_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Settings:
    """What to compare; the command line's arguments, checked."""

    indexes: tuple[str, ...]
    data: str
    ks: tuple[int, ...] = (100, 1000)
    layers: tuple[int, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    split: SplitName = "honest"
    max_queries: int = 1024
    causal_learn: bool = False
    threads: int = 1
    repeats: int = 3
    seed: int = 0
    timeout_s: float = 1800.0
    memory_bytes: int = field(default_factory=lambda: int(environment()["memory_bytes"] * MEMORY_SHARE))

    def identity(self, data_hash: str) -> dict[str, Any]:
        """What all rows of one result folder share; index and head may differ from command to command."""
        shared = ("ks", "split", "max_queries", "causal_learn", "threads", "repeats", "seed")
        facts = {name: getattr(self, name) for name in shared}
        facts["ks"] = list(self.ks)
        return {"verb": "compare", "data_hash": data_hash, "schema": SCHEMA_VERSION} | facts


@dataclass(frozen=True)
class Unit:
    """One index on one head: what a child process measures, addressed by its content."""

    head: HeadName
    spec: Spec
    address: str

    @property
    def name(self) -> str:
        """The unit as a person reads it."""
        return f"{self.spec} on {self.head}"


@dataclass(frozen=True)
class Plan:
    """All units of a comparison, head by head."""

    settings: Settings
    data: DataSource
    specs: list[Spec]
    units: list[Unit]

    @property
    def identity(self) -> dict[str, Any]:
        """What a result folder of this plan holds."""
        return self.settings.identity(self.data.hash)


class Watcher(Protocol):
    """Is told how the run goes on; the command line shows it."""

    def start(self, name: str) -> None:
        """A child process starts."""

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""


def make_plan(settings: Settings) -> Plan:
    """Checks everything that can be checked before anything runs; raises UsageError."""
    if min(settings.ks) < 1:
        raise UsageError(f"--k must be at least 1, got {min(settings.ks)}")
    for name, least in (("threads", 1), ("repeats", 1), ("max_queries", 1), ("seed", 0)):
        value = getattr(settings, name)
        if value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not settings.timeout_s > 0:
        raise UsageError(f"--timeout must be more than 0 seconds, got {settings.timeout_s:g}")
    if settings.memory_bytes < 1:
        raise UsageError(f"--memory-gb must be more than 0, got {settings.memory_bytes / 1e9:g}")
    specs = _with_company([parse(text) for text in settings.indexes])
    for spec in specs:
        create(spec)
    data = open_data(settings.data)
    heads = data.select(layers=settings.layers, kv_heads=settings.kv_heads)
    shared = settings.identity(data.hash) | {"machine": machine_class()}
    units = [
        Unit(head, spec, content_address(shared | _unit_content(head, spec)))
        for head in heads
        for spec in specs
    ]
    return Plan(settings, data, specs, units)


def run_plan(plan: Plan, folder: ResultFolder, watcher: Watcher, force: bool = False) -> list[Row]:
    """Measures the units that have not ended well yet (all with `force`); returns all rows of the plan.

    A head that cannot serve (too short, damaged) is a failure of its units; UsageError where none can.
    """
    refused: list[str] = []
    heads = list(dict.fromkeys(unit.head for unit in plan.units))
    for head in heads:
        todo = [u for u in plan.units if u.head == head and (force or not folder.has(u.address))]
        if todo:
            refused += _run_head(plan, head, todo, folder, watcher)
    if len(refused) == len(heads):
        raise UsageError(refused[0])
    return folder.read(unit.address for unit in plan.units)


def prepare_task(arguments: dict[str, Any], _: Callable[[Row], None]) -> str:
    """What the child of a head's bundle runs."""
    request = arguments["request"]
    request |= {"head": tuple(request["head"]), "learn": {int(n): k for n, k in request["learn"].items()}}
    return prepare(Request(**request), Path(arguments["folder"]))


def measure_task(arguments: dict[str, Any], land: Callable[[Row], None]) -> Row:
    """What the child of a unit runs."""
    return measure(Job(**arguments | {"ks": tuple(arguments["ks"])}), land)


def _run_head(
    plan: Plan, head: HeadName, todo: list[Unit], folder: ResultFolder, watcher: Watcher
) -> list[str]:
    """Measures the units of one head; returns why the head cannot serve, or nothing."""
    settings = plan.settings
    with tempfile.TemporaryDirectory(prefix="ra-bench-head-") as scratch:
        bundle = Path(scratch, "bundle")
        outcome = _prepare(plan, head, bundle, folder, watcher)
        skipped = outcome.result if outcome.status == "ok" else ""
        serves = outcome.status == "ok" and not skipped
        facts = _head_facts(plan, head, bundle if serves else None)
        read_gb_per_s = _read_gb_per_s(facts) if serves else 0.0
        for unit in todo:
            if serves:
                job = Job(
                    str(unit.spec),
                    str(bundle),
                    settings.ks,
                    settings.threads,
                    settings.repeats,
                    settings.seed,
                    read_gb_per_s,
                )
                limits = Limits(settings.timeout_s, settings.memory_bytes, settings.threads)
                watcher.start(unit.name)
                log = folder.log_file(unit.address)
                ended = run_unit("ra_bench.compare:measure_task", asdict(job), limits, log)
            elif skipped:
                ended = Outcome("skipped", skipped)
            else:
                ended = Outcome(outcome.status, f"preparing the head: {outcome.reason}", outcome.exit_code)
            folder.write(unit.address, _rows(plan, unit, facts, ended))
            watcher.end(unit.name, ended.status, ended.reason)
    return [outcome.reason] if outcome.status != "ok" and outcome.exit_code == 2 else []


def _read_gb_per_s(facts: Row) -> float:
    """What one thread reads at random from a head's keys and values; once for all heads of a shape."""
    row_bytes = facts["d"] * np.dtype(facts["key_type"]).itemsize
    whole_lines = -(-row_bytes // 64) * 64
    # As short as a call of an index, whose median time knows no interruption either.
    return random_read_gb_per_s(1, whole_lines, 2 * facts["n"] * row_bytes, tries=40, slice_s=0.001)


def _prepare(plan: Plan, head: HeadName, bundle: Path, folder: ResultFolder, watcher: Watcher) -> Outcome:
    settings = plan.settings
    wished = [create(spec) for spec in plan.specs]
    request = Request(
        data=str(plan.data.path),
        head=(head.document, head.layer, head.kv_head),
        split=settings.split,
        max_queries=settings.max_queries,
        k_max=max(settings.ks),
        causal_learn=settings.causal_learn,
        learn=wants([(index.learn_queries, index.learn_neighbors) for index in wished]),
        seed=settings.seed,
    )
    name = f"truth of {head}"
    watcher.start(name)
    timeout_s = max(settings.timeout_s, TRUTH_TIMEOUT_S)
    limits = Limits(timeout_s, settings.memory_bytes, environment()["cores"])
    log = folder.log_file(f"truth-{head.document}-{head.layer}-{head.kv_head}")
    arguments = {"request": asdict(request), "folder": str(bundle)}
    outcome = run_unit("ra_bench.compare:prepare_task", arguments, limits, log)
    watcher.end(name, outcome.status, outcome.reason)
    return outcome


def _head_facts(plan: Plan, head: HeadName, bundle: Path | None) -> Row:
    facts: Row = {
        "data": plan.data.path.resolve().name,
        "data_hash": plan.data.hash,
        "document": head.document,
        "layer": head.layer,
        "kv_head": head.kv_head,
        "split": plan.settings.split,
        "machine": machine_class(),
        "environment": json.dumps(environment()),
        "schema": SCHEMA_VERSION,
    }
    if bundle is None:
        return facts
    opened = Bundle(bundle)
    return facts | {
        "model": opened.facts["about"]["model"],
        "group": opened.facts["about"]["group"],
        "n": len(opened.keys),
        "d": opened.keys.shape[1],
        "key_type": opened.facts["dtype"],
        "test_queries": len(opened.test_queries),
        **opened.facts["difficulty"],
        UNDEFINED: opened.facts["undefined"],
    }


def _rows(plan: Plan, unit: Unit, head_facts: Row, ended: Outcome) -> Iterable[Row]:
    """A row for each setting measured; one more that tells why, where the unit did not end well."""
    empty = dict.fromkeys(head_facts.get(UNDEFINED, ()))
    same = head_facts | {"unit": unit.address, "index": str(unit.spec), "transform": unit.spec.transform}
    same |= {"threads": plan.settings.threads, "seed": plan.settings.seed}
    latest = {(row["k"], row["effort_rank"]): row for row in ended.rows}
    for row in latest.values():
        yield same | row | (ended.result or {}) | {"status": "ok"} | empty
    if ended.status != "ok":
        yield same | empty | {"status": ended.status, "reason": ended.reason}


def _with_company(specs: list[Spec]) -> list[Spec]:
    """The specs, the lifted twin of each graph on raw inner product, then the oracle and the floors."""
    company: list[Spec] = []
    for spec in specs:
        company.append(spec)
        if index_class(spec.name).needs_lift and spec.transform == "none":
            company.append(spec.with_transform("lift"))
    company += [Spec(name) for name in ALWAYS]
    return list({str(spec): spec for spec in company}.values())


def _unit_content(head: HeadName, spec: Spec) -> dict[str, Any]:
    return {
        "head": list(head),
        "index": str(spec),
        "source": [source_hash(index_class(name)) for name in spec.names],
    }


def source_hash(cls: type[Index]) -> str:
    """Content hash of all code that decides a row: changed code and other versions are measured anew.

    The method's file, what methods share (files of indexes/ that begin with an underscore), compiled parts,
    the modules of the harness that measure, and the versions of the libraries.
    """
    indexes = Path(inspect.getfile(index_class("flat"))).parent
    files = [Path(inspect.getfile(cls)), *sorted(indexes.glob("_*.py"))]
    native = [module for module in cls.requires if module.startswith("ra_bench.")]
    measuring = [f"ra_bench.{name}" for name in MEASURING]
    for module in [*native, "ra_bench.indexes._native._native", *measuring]:
        found = importlib.util.find_spec(module)
        if found is not None and found.origin:
            files.append(Path(found.origin))
    digest = hashlib.sha256(json.dumps(environment()["versions"], sort_keys=True).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
