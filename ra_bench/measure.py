"""One unit of `compare`: builds one index on one prepared head and measures its whole effort sweep.

Runs in a process of its own. The index gets keys, values, learn queries and one block of test queries a
call; scores, masses and truth stay on this side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench import metrics
from ra_bench.attention import merge
from ra_bench.budgets import ks_to_measure
from ra_bench.errors import RunError
from ra_bench.hardware import peak_bytes
from ra_bench.index import Found, Index, Partial
from ra_bench.index_cache import load_or_build
from ra_bench.prepare import Bundle
from ra_bench.registry import create, parse
from ra_bench.results import Row
from ra_bench.snapshot import Snapshot
from ra_bench.timing import SettingRun
from ra_bench.truth import scores_of
from ra_bench.wrapper import Wrapper

INSERT_BLOCK_TOKENS = 64
RESIDENT_BYTES = 1 << 28  # of keys, and of values: what is larger stays in its file
SCANNED_KEYS = 1 << 18  # an exact scan is timed over so many, and its time grows with their number
# A sweep ends once it finds practically everything and attends to no more for more effort, or costs this many
# exact scans, where the scan would serve anybody better. A method that is as slow at its cheapest goes on:
# more effort costs it little more, and tells of its quality.
ENOUGH_RECALL = 0.9995
TOO_MANY_SCANS, TIMES_CHEAPEST = 3.0, 2.0
NEVER_TOO_SLOW_US = 1000.0  # on few keys a call's fixed cost alone is many scans


@dataclass(frozen=True)
class Job:
    """What to measure: an index spec on the bundle in a folder.

    `read_gb_per_s` is what the machine reads at random from as many bytes as keys and values have; `cache` is
    where the built index is kept, or nothing.
    """

    spec: str
    bundle: str
    ks: tuple[int, ...]
    threads: int
    repeats: int
    seed: int
    read_gb_per_s: float
    cache: str = ""


def measure(job: Job, land: Callable[[Row], None]) -> Row:
    """Hands each setting's row to `land`, after its first pass and again after its last.

    Returns what holds for all rows of the unit.
    """
    bundle = Bundle(Path(job.bundle))
    spec = parse(job.spec)
    index = create(spec, job.threads, job.seed)
    learn, about = bundle.learn_inputs(index.learn_queries, index.learn_neighbors)
    keys = _in_memory(bundle.keys)
    values = keys if bundle.values is bundle.keys else _in_memory(bundle.values)
    exact_keys = _in_memory(bundle.keys, np.float32)
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
        "learn_source": None if learn is None else bundle.facts["learn_source"],
        "build_s": build_s,
        "knn_s": None if about.query_neighbors is None else bundle.facts["knn_s"][str(index.learn_queries)],
        "host_bytes": memory.host,
        "device_bytes": memory.device,
        "static_mass": float(np.mean(bundle.static_mass)),
        "read_gb_per_s": job.read_gb_per_s,
    }
    scan_us = _exact_scan_us(exact_keys, bundle.test_queries[: index.group])
    too_slow_us = max(TOO_MANY_SCANS * scan_us, NEVER_TOO_SLOW_US)
    with closing(Snapshot([index], lambda: index.build(keys, values, learn, about))) as built:
        if index.is_stateful:
            built.save()
        for k in ks_to_measure(index, job.ks, len(keys)):
            efforts = _distinct([effort | spec.effort for effort in index.effort_sweep(len(keys), k)])
            runs = [SettingRun(index, built, k, effort, job.threads) for effort in efforts]
            for rank, row in _sweep(runs, bundle, exact_keys, too_slow_us, job.repeats):
                setting = {
                    "k": k,
                    "for_budgets": k not in job.ks,
                    "effort": json.dumps(efforts[rank]),
                    "effort_rank": rank,
                }
                land(unit_row | row | _floor(row, job.read_gb_per_s) | setting)
    return {
        "insert_us_per_key": _insert_us_per_key(index, bundle) if index.can_insert else None,
        "peak_bytes": peak_bytes(),
    }


def _sweep(
    settings: Sequence[SettingRun], bundle: Bundle, exact_keys: np.ndarray, too_slow_us: float, repeats: int
) -> Iterator[tuple[int, Row]]:
    """The row of each setting, by rank: after the first pass of each, and again when all passes are done."""
    queries = np.array(bundle.test_queries)
    queries.flags.writeable = False  # they are scored after the index had them
    blocks = np.split(queries, len(queries) // settings[0].index.group)
    measured: list[tuple[SettingRun, Row]] = []
    for rank, run in enumerate(settings):
        run.add_pass(queries, blocks)
        quality = _work(run) | _attend_quality(bundle, run.parts[0])
        if run.index.has_search:
            ids = _checked_ids(run.found[0], len(queries), run.k, len(exact_keys))
            if run.k <= bundle.true_scores.shape[1]:
                quality |= _search_quality(bundle, exact_keys, queries, ids, run.k)
        before = measured[-1][1] if measured else None
        measured.append((run, quality))
        yield rank, quality | _costs(run)
        slow_us = max(too_slow_us, TIMES_CHEAPEST * float(np.median(measured[0][0].answer_us)))
        if np.median(run.answer_us) > slow_us or _tells_no_more(quality, before):
            break
    for _ in range(repeats - 1):
        for run, _quality in measured:
            if run.wants_more:
                run.add_pass(queries, blocks)
    for rank, (run, quality) in enumerate(measured):
        yield rank, quality | _costs(run)


def _tells_no_more(quality: Row, before: Row | None) -> bool:
    """Whether practically everything was found, and the setting before attended to as many keys."""
    if before is None or quality.get("recall", 0.0) < ENOUGH_RECALL:
        return False
    attended, less = quality["attended"], before["attended"]
    return attended is None or less is None or attended <= less


def _floor(row: Row, read_gb_per_s: float) -> Row:
    """The least time that the bytes of `attend` take, and how far above it the method's is."""
    if not row["attend_bytes"]:
        return {}
    floor_us = row["attend_bytes"] / read_gb_per_s / 1e3
    return {"floor_us": floor_us, "times_floor": row["attend_p50_us"] / floor_us}


def _costs(run: SettingRun) -> Row:
    row = {
        "repeats": len(run.attend_us),
        "repeatable": run.is_repeatable,
        "queries_per_s": float(np.median(run.queries_per_s)),
    }
    times = {"search": run.search_us, "attend": run.attend_us, "observe": run.observe_us}
    for name, samples_us in times.items():
        if samples_us:
            row |= _latency(name, samples_us)
    return row


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


def _work(run: SettingRun) -> Row:
    """What the first pass read: keys by its searches, or by attention where there is no search."""
    attends = [part.work for part in run.parts[0]]
    searches = [found.work for found in run.found[0]] if run.index.has_search else []
    reads = searches or attends
    return {
        "keys_read": _mean([work.keys_read for work in reads]),
        "exact": _mean([work.exact for work in reads]),
        "search_bytes": _mean([work.bytes_read for work in searches]) if searches else None,
        "attend_bytes": _mean([work.bytes_read for work in attends]),
        "attended": _mean([work.attended for work in attends]),
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
    some = np.asarray(keys[:SCANNED_KEYS], np.float32)
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        block @ some.T
        seconds.append(time.perf_counter() - started)
    return min(seconds) * 1e6 / len(block) * len(keys) / len(some)


def _in_memory(rows: np.ndarray, dtype: type | None = None) -> np.ndarray:
    """A read-only copy of `rows` (a memory map) as `dtype`; the map itself where a copy would be large.

    Index and harness then read the file, and a unit's own memory is the index and less than 1 GB.
    """
    wanted = np.dtype(dtype or rows.dtype)
    if rows.size * wanted.itemsize > RESIDENT_BYTES:
        return rows.view(np.ndarray)
    copy = np.array(rows, wanted)
    copy.flags.writeable = False
    return copy


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
