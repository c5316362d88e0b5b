"""One row an index, head and number of inserted tokens of `drift`: the schema, and the run that lands it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ra_bench import drift
from ra_bench.arguments import check_seed, check_threads
from ra_bench.compare import source_hash
from ra_bench.data import DataSource
from ra_bench.environment import environment, machine_class
from ra_bench.errors import UsageError
from ra_bench.registry import index_class, parse
from ra_bench.results import HEAD_COLUMNS, ResultFolder, Row, content_address
from ra_bench.vectors import HeadName

SCHEMA_VERSION = 1

_SAMPLES = pa.list_(pa.float32())
_TEXT, _COUNT, _REAL = pa.string(), pa.int64(), pa.float64()

# Whole: built on all `n` keys. Grown: built on `n - inserted` of them, the rest inserted. Both at one effort.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "unit": (_TEXT, "content address of the unit: an index on a head"),
    "status": (_TEXT, "ok or failed"),
    "reason": (_TEXT, "why it is not ok, in one line"),
    **HEAD_COLUMNS,
    "n": (_COUNT, "keys in both indexes"),
    "d": (_COUNT, "head dimension"),
    "key_type": (_TEXT, "type of the stored keys"),
    "test_queries": (_COUNT, "test query rows"),
    "index": (_TEXT, "spec string"),
    "settings": (_TEXT, "build settings, JSON"),
    "effort": (_TEXT, "search settings of both, JSON: the cheapest with which the whole one is good enough"),
    "k": (_COUNT, "results asked for"),
    "target": (_REAL, "recall that the index built whole on all keys had to reach"),
    "inserted": (_COUNT, "keys that the grown index took after its build"),
    "recall_whole": (_REAL, "share of the exact top-k found by the index built whole"),
    "recall_grown": (_REAL, "the same of the grown one"),
    "keys_read_whole": (_REAL, "keys touched by a query of the whole index; None where it is hidden"),
    "keys_read_grown": (_REAL, "the same of the grown one"),
    "insert_us_per_token": (_REAL, "time per inserted token since the row before, one thread, blocks of 64"),
    "build_whole_s": (_REAL, "build time of the whole index"),
    "build_grown_s": (_REAL, "build time of the grown one, without its inserts"),
    "learn_queries": (_COUNT, "learn query rows given to both"),
    "threads": (_COUNT, "threads of builds"),
    "seed": (_COUNT, "seed of split and index"),
    "recall_whole_by_query": (_SAMPLES, "recall of each test query, whole"),
    "recall_grown_by_query": (_SAMPLES, "the same, grown"),
    "environment": (_TEXT, "machine and versions, JSON"),
    "machine": (_TEXT, "what decides latency: CPU, cores, GPU"),
    "schema": (_COUNT, "schema version of the row"),
}
LONG_COLUMNS = [name for name, (kind, _) in COLUMNS.items() if kind == _SAMPLES]


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    data: DataSource
    specs: tuple[str, ...]
    tokens: tuple[int, ...]
    recall: float
    threads: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.specs:
            raise UsageError("--indexes must name at least one index")
        if not self.tokens or min(self.tokens) < 1:
            raise UsageError(f"--tokens must be numbers from 1, got {','.join(map(str, self.tokens)) or '-'}")
        if not 0 < self.recall <= 1:
            raise UsageError(f"--recall must be above 0 and at most 1, got {self.recall:g}")
        check_threads(self.threads)
        check_seed(self.seed)
        drift.refuse_unfit(self.specs)

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows of one folder share."""
        return {
            "verb": "drift",
            "data_hash": self.data.hash,
            "schema": SCHEMA_VERSION,
            "tokens": sorted(set(self.tokens)),
            "recall": self.recall,
            "threads": self.threads,
            "seed": self.seed,
        }

    @property
    def folder(self) -> Path:
        """Where the rows land unless told."""
        return Path("results") / f"drift-{self.data.name}-{content_address(self.identity)[:8]}"

    def check(self) -> None:
        """Raises UsageError where the first head is not fit for it: before a folder is made for its rows."""
        drift.HeadDrift(self.data.load(self.data.heads[0]), self.tokens, self.seed)

    def unit(self, head: HeadName, spec: str) -> str:
        """The content address of one index on one head, its code included."""
        source = [source_hash(index_class(name)) for name in parse(spec).names]
        code = Path(drift.__file__).read_text()
        return content_address(
            self.identity | {"head": list(head), "index": spec, "source": source, "code": code}
        )


def run(plan: Plan, folder: ResultFolder, force: bool = False) -> Iterator[list[Row]]:
    """The rows of each unit as they land, or as they lie there already. What fails is a row, with its reason.

    Raises UsageError for a head that is not fit for it.
    """
    folder.check_writable()
    for head in plan.data.heads:
        measuring: drift.HeadDrift | None = None
        for spec in plan.specs:
            unit = plan.unit(head, spec)
            if force or not folder.has(unit):
                if measuring is None:
                    measuring = drift.HeadDrift(plan.data.load(head), plan.tokens, plan.seed)
                folder.write(unit, list(_rows(plan, head, spec, unit, measuring)))
            yield folder.read([unit])


def _rows(plan: Plan, head: HeadName, spec: str, unit: str, measuring: drift.HeadDrift) -> Iterable[Row]:
    same: Row = {
        "unit": unit,
        "data": plan.data.name,
        "data_hash": plan.data.hash,
        "model": measuring.about.model,
        "document": head.document,
        "layer": head.layer,
        "kv_head": head.kv_head,
        "group": measuring.about.group,
        "d": measuring.d,
        "key_type": measuring.key_type,
        "test_queries": measuring.test_queries,
        "index": spec,
        "k": drift.K,
        "target": plan.recall,
        "threads": plan.threads,
        "seed": plan.seed,
        "environment": json.dumps(environment()),
        "machine": machine_class(),
        "schema": SCHEMA_VERSION,
    }
    try:
        found = measuring.measure(spec, plan.recall, plan.threads)
    except UsageError:
        raise
    except Exception as error:  # of one index; the others go on
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [same | {"status": "failed", "reason": reason}]
    return [same | {"status": "ok", "reason": ""} | _measured(one) for one in found]


def _measured(one: drift.Drift) -> Row:
    return {
        "n": one.n,
        "settings": json.dumps(one.settings),
        "effort": json.dumps(one.effort),
        "inserted": one.inserted,
        "recall_whole": one.whole.recall,
        "recall_grown": one.grown.recall,
        "keys_read_whole": one.whole.keys_read,
        "keys_read_grown": one.grown.keys_read,
        "insert_us_per_token": one.insert_us_per_token,
        "build_whole_s": one.build_whole_s,
        "build_grown_s": one.build_grown_s,
        "learn_queries": one.learn_queries,
        "recall_whole_by_query": one.whole.recalls.tolist(),
        "recall_grown_by_query": one.grown.recalls.tolist(),
    }


def heading() -> str:
    """The heading of the lines."""
    return (
        f"{'head':24} {'index':12} {'inserted':>8}  recall: whole  grown   keys read: whole  grown"
        "   insert µs/token  effort"
    )


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of the table."""
    head = f"{row['document']}/layer{row['layer']}/head{row['kv_head']}"
    if row["status"] != "ok":
        return f"{head:24} {row['index']:12} {row['status']}: {row['reason']}"
    whole, grown = (_share(row[f"keys_read_{how}"], row["n"]) for how in ("whole", "grown"))
    effort = " ".join(f"{name}={value}" for name, value in json.loads(row["effort"]).items())
    return (
        f"{head:24} {row['index']:12} {row['inserted']:8} {row['recall_whole']:14.4f}"
        f" {row['recall_grown']:6.4f} {whole:>18} {grown:>6} {row['insert_us_per_token']:17.1f}  {effort}"
    )


def failures(rows: Sequence[Row]) -> list[Row]:
    """The rows of what failed."""
    return [row for row in rows if row["status"] != "ok"]


def _share(read: float | None, n: int) -> str:
    return "–" if read is None else f"{read / n:.2%}"
