"""The main path: a plan of units (data, head, index, settings), each measured in a worker process.

For each head, one call computes the bundle (truth, neighbours of learn queries), then one call a unit
measures an index on it; an engine runs them. Rows land as each unit ends; a plan that is run again measures
what is missing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench import hardware
from ra_bench.arguments import check_seed
from ra_bench.data import DataSource, open_data
from ra_bench.engine.local import LocalEngine
from ra_bench.engine.task import Call, Ended, Engine, Limits, Watcher, Work
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
# The modules of the harness that decide what a row says.
MEASURING = (
    *("attention", "budgets", "head", "index", "machine", "measure", "metrics", "prepare", "snapshot"),
    *("split", "timing", "transform", "truth", "vectors", "scoring", "encoding", "rerank", "choosing"),
    *("partition", "compressor", "wrapper", "head_file", "vector_set", "difficulty", "checked_rows"),
    "head_pool",
)
# What decides a method's answers in a folder of its own: code, and files like the heads of razor.
METHOD_FILES = frozenset({".py", ".cpp", ".hpp", ".h", ".inl", ".json"})
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
    memory_bytes: int | None = None  # None: the engine's share for a unit
    cache: Path | None = None  # folder of built indexes

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


def make_plan(settings: Settings, machine: str | None = None) -> Plan:
    """Checks everything that can be checked before anything runs; raises UsageError.

    `machine` is the class of the machines that will measure; None: of this one.
    """
    if min(settings.ks) < 1:
        raise UsageError(f"--k must be at least 1, got {min(settings.ks)}")
    for name, least in (("threads", 1), ("repeats", 1), ("max_queries", 1)):
        value = getattr(settings, name)
        if value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    check_seed(settings.seed)
    if not settings.timeout_s > 0:
        raise UsageError(f"--timeout must be more than 0 seconds, got {settings.timeout_s:g}")
    if settings.memory_bytes is not None and settings.memory_bytes < 1:
        raise UsageError(f"--memory-gb must be more than 0, got {settings.memory_bytes / 1e9:g}")
    specs = _with_company([parse(text) for text in settings.indexes])
    for spec in specs:
        create(spec)
    data = open_data(settings.data)
    heads = data.select(layers=settings.layers, kv_heads=settings.kv_heads)
    shared = settings.identity(data.hash) | {"machine": machine or machine_class()}
    units = [
        Unit(head, spec, content_address(shared | _unit_content(head, spec)))
        for head in heads
        for spec in specs
    ]
    return Plan(settings, data, specs, units)


def run_plan(
    plan: Plan, folder: ResultFolder, watcher: Watcher, force: bool = False, engine: Engine | None = None
) -> list[Row]:
    """Measures the units that have not ended well yet (all with `force`); returns all rows of the plan.

    A head that cannot serve (too short, damaged) is a failure of its units; UsageError where none can.
    """
    engine = engine or LocalEngine()
    units = {unit.address: unit for unit in plan.units}
    todo = [unit for unit in plan.units if force or not folder.has(unit.address)]
    if todo:
        folder.check_writable()
    refused: dict[HeadName, str] = {}
    for ended in engine.run(_works(plan, todo, folder, engine), watcher):
        unit = units[ended.unit.address]
        if ended.prepared.status != "ok" and ended.prepared.exit_code == 2:
            refused[unit.head] = ended.prepared.reason
        folder.write(unit.address, _rows(plan, unit, ended))
    if len(refused) == len({unit.head for unit in plan.units}):
        raise UsageError(next(iter(refused.values())))
    return folder.read(unit.address for unit in plan.units)


def prepare_task(arguments: dict[str, Any], _: Callable[[Row], None]) -> dict[str, Any]:
    """What prepares a head's bundle: why the head cannot serve, or the facts that all its rows share."""
    request = arguments["request"]
    request |= {"head": tuple(request["head"]), "learn": {int(n): k for n, k in request["learn"].items()}}
    folder = Path(arguments["bundle"])
    skipped = prepare(Request(**request), folder)
    return {"skipped": skipped, "facts": {} if skipped else bundle_facts(Bundle(folder))}


def measure_task(arguments: dict[str, Any], land: Callable[[Row], None]) -> Row:
    """What the worker of a unit runs."""
    rate = _read_gb_per_s(bundle_facts(Bundle(Path(arguments["bundle"]))))
    hardware.reset_peak()  # which the rate's working set has raised
    return measure(Job(**arguments | {"ks": tuple(arguments["ks"]), "read_gb_per_s": rate}), land)


def _read_gb_per_s(facts: Row) -> float:
    """What one thread reads at random from a head's keys and values; once a worker for heads of a shape."""
    row_bytes = facts["d"] * np.dtype(facts["key_type"]).itemsize
    whole_lines = -(-row_bytes // 64) * 64
    # As short as a call of an index, whose median time knows no interruption either.
    return random_read_gb_per_s(1, whole_lines, 2 * facts["n"] * row_bytes, tries=40, slice_s=0.001)


def bundle_facts(bundle: Bundle) -> Row:
    """What all rows of a head say of it."""
    return {
        "model": bundle.facts["about"]["model"],
        "group": bundle.facts["about"]["group"],
        "n": len(bundle.keys),
        "d": bundle.keys.shape[1],
        "key_type": bundle.facts["dtype"],
        "test_queries": len(bundle.test_queries),
        **bundle.facts["difficulty"],
        UNDEFINED: bundle.facts["undefined"],
    }


def _works(plan: Plan, todo: Sequence[Unit], folder: ResultFolder, engine: Engine) -> Iterator[Work]:
    """The heads of the units that are left, each with what its units need."""
    wished = [create(spec) for spec in plan.specs]
    learn = wants([(index.learn_queries, index.learn_neighbors) for index in wished])
    on_device = {str(spec) for spec, index in zip(plan.specs, wished, strict=True) if index.where != "host"}
    settings = plan.settings
    memory_bytes = settings.memory_bytes or engine.memory_bytes(settings.threads)
    for head in dict.fromkeys(unit.head for unit in todo):
        request = Request(
            data=plan.data.source,
            head=(head.document, head.layer, head.kv_head),
            split=settings.split,
            max_queries=settings.max_queries,
            k_max=max(settings.ks),
            causal_learn=settings.causal_learn,
            learn=learn,
            seed=settings.seed,
        )
        prepare_call = Call(
            f"truth of {head}",
            "ra_bench.compare:prepare_task",
            {"request": asdict(request)},
            Limits(max(settings.timeout_s, TRUTH_TIMEOUT_S), memory_bytes, environment()["cores"]),
            folder.log_file(f"truth-{head.document}-{head.layer}-{head.kv_head}"),
            content_address({"data": plan.data.hash, "request": asdict(request)}),
        )
        calls = []
        for unit in todo:
            if unit.head != head:
                continue
            job = {
                "spec": str(unit.spec),
                "ks": settings.ks,
                "threads": settings.threads,
                "repeats": settings.repeats,
                "seed": settings.seed,
                "cache": _cache_entry(plan, unit, learn),
            }
            gpus = int(str(unit.spec) in on_device)
            limits = Limits(settings.timeout_s, memory_bytes, settings.threads, gpus)
            log = folder.log_file(unit.address)
            calls.append(Call(unit.name, "ra_bench.compare:measure_task", job, limits, log, unit.address))
        yield Work(prepare_call, calls)


def _cache_entry(plan: Plan, unit: Unit, learn: Mapping[int, int]) -> str:
    """Where the unit's built index is kept: a name made of all that its build depends on, effort apart."""
    settings = plan.settings
    if settings.cache is None:
        return ""
    content = {
        "data_hash": plan.data.hash,
        "split": [settings.split, settings.max_queries, settings.causal_learn],
        "learn": learn,
        "threads": settings.threads,
        "seed": settings.seed,
        "machine": machine_class(),
    }
    spec = replace(unit.spec, effort={})
    return str(settings.cache.resolve() / content_address(content | _unit_content(unit.head, spec)))


def _rows(plan: Plan, unit: Unit, ended: Ended) -> Iterable[Row]:
    """A row for each setting measured; one more that tells why, where the unit did not end well."""
    outcome, prepared = ended.outcome, ended.prepared
    same: Row = {
        "data": plan.data.name,
        "data_hash": plan.data.hash,
        "document": unit.head.document,
        "layer": unit.head.layer,
        "kv_head": unit.head.kv_head,
        "split": plan.settings.split,
        "machine": machine_class(),
        "environment": json.dumps(environment()),
        "schema": SCHEMA_VERSION,
        "unit": unit.address,
        "index": str(unit.spec),
        "transform": unit.spec.transform,
        "threads": plan.settings.threads,
        "seed": plan.settings.seed,
    }
    facts = outcome.facts | (prepared.result["facts"] if prepared.status == "ok" else {})
    empty = dict.fromkeys(facts.pop(UNDEFINED, ()))
    same |= facts
    latest = {(row["k"], row["effort_rank"]): row for row in outcome.rows}
    for row in latest.values():
        yield same | row | (outcome.result or {}) | {"status": "ok"} | empty
    if outcome.status != "ok":
        yield same | empty | {"status": outcome.status, "reason": outcome.reason}


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


@cache
def source_hash(cls: type[Index]) -> str:
    """Content hash of all code that decides a row: changed code and other versions are measured anew.

    The method's file or folder, what methods share (files of indexes/ that begin with an underscore), the
    compiled parts, the modules of the harness that measure, and the versions of the libraries.
    """
    indexes = Path(inspect.getfile(index_class("flat"))).parent
    files = [*_method_files(Path(inspect.getfile(cls))), *sorted(indexes.glob("_*.py"))]
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


def _method_files(file: Path) -> list[Path]:
    """The file of a method's class; all of its folder where that is a package."""
    if file.name != "__init__.py":
        return [file]
    return sorted(path for path in file.parent.rglob("*") if path.suffix in METHOD_FILES)
