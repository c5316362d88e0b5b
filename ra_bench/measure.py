"""One unit of `compare`: builds one index on one prepared head and measures its whole effort sweep.

Runs in a process of its own. The index gets keys, values, learn queries and one block of test queries a
call; scores, masses and truth stay on this side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench import metrics
from ra_bench.attention import merge
from ra_bench.errors import RunError
from ra_bench.hardware import peak_bytes
from ra_bench.index import Found, Index, Partial
from ra_bench.index_cache import load_or_build
from ra_bench.prepare import Bundle
from ra_bench.registry import create, parse
from ra_bench.results import Row
from ra_bench.timing import SettingRun
from ra_bench.truth import scores_of
from ra_bench.wrapper import Wrapper

INSERT_BLOCK_TOKENS = 64
# A sweep ends once it finds practically everything, or costs this many exact scans: dearer settings cannot
# tell more, and the scan would serve anybody better.
ENOUGH_RECALL = 0.9995
TOO_MANY_SCANS = 3.0
NEVER_TOO_SLOW_US = 1000.0  # on few keys a call's fixed cost alone is many scans


@dataclass(frozen=True)
class Job:
    """What to measure: an index spec on the bundle in a folder; `cache` is the built index's entry, or ''."""

    spec: str
    bundle: str
    ks: tuple[int, ...]
    threads: int
    repeats: int
    seed: int
    cache: str = ""


def measure(job: Job, land: Callable[[Row], None]) -> Row:
    """Hands each setting's row to `land`, after its first pass and again after its last.

    Returns what holds for all rows of the unit.
    """
    bundle = Bundle(Path(job.bundle))
    spec = parse(job.spec)
    index = create(spec, job.threads, job.seed)
    learn, about = bundle.learn_inputs(index.learn_queries)
    exact_keys = bundle.keys.astype(np.float32)
    keys, values = np.array(bundle.keys), np.array(bundle.values)
    keys.flags.writeable = values.flags.writeable = False
    index.warm_up(keys.shape[1])
    entry = Path(job.cache) if job.cache else None
    build_s = load_or_build(index, entry, lambda: index.build(keys, values, learn, about))
    memory = index.nbytes
    unit_row = {
        "transform": spec.transform,
        "settings": json.dumps(settings_of_index(index)),
        "threads": job.threads,
        "seed": job.seed,
        "learn_queries": 0 if learn is None else len(learn),
        "build_s": build_s,
        "knn_s": bundle.facts["knn_s"].get(str(index.learn_queries)) if learn is not None else None,
        "host_bytes": memory.host,
        "device_bytes": memory.device,
        "static_mass": float(np.mean(bundle.static_mass)),
    }
    scan_us = _exact_scan_us(exact_keys, bundle.test_queries[: index.group])
    too_slow_us = max(TOO_MANY_SCANS * scan_us, NEVER_TOO_SLOW_US)
    for k in job.ks:
        efforts = _distinct([effort | spec.effort for effort in index.effort_sweep(len(keys), k)])
        for rank, row in _sweep(index, bundle, exact_keys, k, efforts, too_slow_us, job):
            land(unit_row | row | {"k": k, "effort": json.dumps(efforts[rank]), "effort_rank": rank})
    return {
        "insert_us_per_key": _insert_us_per_key(index, bundle) if index.can_insert else None,
        "peak_bytes": peak_bytes(),
    }


def _sweep(
    index: Index,
    bundle: Bundle,
    exact_keys: np.ndarray,
    k: int,
    efforts: Sequence[dict[str, Any]],
    too_slow_us: float,
    job: Job,
) -> Iterator[tuple[int, Row]]:
    """The row of each setting, by rank: after the first pass of each, and again when all passes are done."""
    queries = np.array(bundle.test_queries)
    queries.flags.writeable = False  # they are scored after the index had them
    blocks = np.split(queries, len(queries) // index.group)
    runs: list[SettingRun] = []
    qualities: list[Row] = []
    for rank, effort in enumerate(efforts):
        run = SettingRun(index, k, effort, job.threads)
        run.add_pass(queries, blocks)
        ids = _checked_ids(run.found[0], len(queries), k, len(exact_keys))
        quality = _search_quality(bundle, exact_keys, queries, ids, k) | _attend_quality(bundle, run.parts)
        runs.append(run)
        qualities.append(quality | _work(run.found[0], run.parts))
        yield rank, qualities[rank] | _costs(run)
        if quality["recall"] >= ENOUGH_RECALL or np.median(run.search_us) > too_slow_us:
            break
    for _ in range(job.repeats - 1):
        for run in runs:
            if run.wants_more:
                run.add_pass(queries, blocks)
    for rank, run in enumerate(runs):
        yield rank, qualities[rank] | _costs(run)


def _costs(run: SettingRun) -> Row:
    ids = [np.concatenate([found.ids for found in one_pass]) for one_pass in run.found]
    return {
        "repeats": len(ids),
        "repeatable": all(np.array_equal(ids[0], again) for again in ids[1:]) if len(ids) > 1 else None,
        "queries_per_s": float(np.median(run.queries_per_s)),
        **_latency("search", run.search_us),
        **_latency("attend", run.attend_us),
    }


def _checked_ids(found: Sequence[Found], rows: int, k: int, n: int) -> np.ndarray:
    ids = np.concatenate([block.ids for block in found])
    if ids.shape != (rows, k) or ids.dtype != np.int32:
        raise RunError(f"search must give ids ({rows}, {k}) int32, got {ids.shape} {ids.dtype}")
    for wrong in ids[(ids < -1) | (ids >= n)][:1]:
        raise RunError(f"search must give ids from -1 to {n - 1}, got {wrong}")
    return ids


def _search_quality(
    bundle: Bundle, exact_keys: np.ndarray, queries: np.ndarray, ids: np.ndarray, k: int
) -> Row:
    true = bundle.true_scores[:, :k]
    found = metrics.distinct_scores(ids, scores_of(queries, exact_keys, ids))
    recall = metrics.recall(found, true)
    mass = metrics.mass(found, bundle.index_lse)
    in_total = mass * metrics.share_of(bundle.index_lse, bundle.total_lse) + bundle.static_mass
    return {
        "recall": float(recall.mean()),
        "recall_p05": float(np.percentile(recall, 5)),
        "no_hit_share": float((recall == 0).mean()),
        "mass_of_indexed": float(mass.mean()),
        "mass_total": float(in_total.mean()),
        "recall_by_query": recall.tolist(),
        "mass_total_by_query": in_total.tolist(),
    }


def _attend_quality(bundle: Bundle, parts: Sequence[Partial]) -> Row:
    output = np.concatenate([part.output for part in parts])
    lse = np.concatenate([part.lse for part in parts])
    merged, _ = merge([(output, lse), (bundle.static_output, bundle.static_lse)])
    error = metrics.output_error(merged, bundle.total_output)
    return {
        "output_error": float(error.mean()),
        "output_error_p95": float(np.percentile(error, 95)),
        "output_error_index": float(metrics.output_error(output, bundle.index_output).mean()),
        "output_error_by_query": error.tolist(),
    }


def _work(searches: Sequence[Found], attends: Sequence[Partial]) -> Row:
    return {
        "keys_read": _mean([found.work.keys_read for found in searches]),
        "exact": _mean([found.work.exact for found in searches]),
        "search_bytes": _mean([found.work.bytes_read for found in searches]),
        "attend_bytes": _mean([part.work.bytes_read for part in attends]),
        "attended": _mean([part.work.attended for part in attends]),
    }


def _mean(counts: Sequence[np.ndarray | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return float(np.concatenate(known).mean()) if len(known) == len(counts) else None


def _latency(name: str, samples_us: Sequence[Sequence[float]]) -> Row:
    p50, p95, p99 = np.percentile(samples_us, [50, 95, 99]).tolist()
    return {
        f"{name}_p50_us": p50,
        f"{name}_p95_us": p95,
        f"{name}_p99_us": p99,
        f"{name}_us_samples": [sample for one_pass in samples_us for sample in one_pass],
    }


def _exact_scan_us(keys: np.ndarray, block: np.ndarray, passes: int = 5) -> float:
    """Time per query of all inner products of one block, without selecting the largest; best of `passes`."""
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        block @ keys.T
        seconds.append(time.perf_counter() - started)
    return min(seconds) * 1e6 / len(block)


def _insert_us_per_key(index: Index, bundle: Bundle) -> float | None:
    """Time per key of inserting the recent window, as decoding would: in blocks, after all searches."""
    keys, values = np.array(bundle.recent_keys), np.array(bundle.recent_values)
    starts = range(0, len(keys) - INSERT_BLOCK_TOKENS + 1, INSERT_BLOCK_TOKENS)
    if not starts:
        return None
    started = time.perf_counter()
    for start in starts:
        block = slice(start, start + INSERT_BLOCK_TOKENS)
        index.insert(keys[block], values[block])
    return (time.perf_counter() - started) * 1e6 / (len(starts) * INSERT_BLOCK_TOKENS)


def settings_of_index(index: Index) -> dict[str, Any]:
    """The build settings of an index: those of the method behind a transform, a wrapper's and its inner's."""
    own: dict[str, Any] = asdict(index) if is_dataclass(index) and not isinstance(index, type) else {}
    inner = getattr(index, "inner", None)  # of a transform, which has no settings, or of a wrapper
    if inner is None:
        return own
    return (
        own | {"inner": settings_of_index(inner)} if isinstance(index, Wrapper) else settings_of_index(inner)
    )


def _distinct(efforts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, Any]] = {}
    for effort in efforts:
        seen.setdefault(json.dumps(effort, sort_keys=True), effort)
    return list(seen.values())
