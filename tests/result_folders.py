"""Made result folders of `compare` and `decode`, written as a run writes it: what the report's tests read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from ra_bench import drift_rows
from ra_bench.decode import rows as decode_rows
from ra_bench.results import SCHEMA_VERSION, ResultFolder

ENVIRONMENT = {
    "ra_bench": "0.1.0",
    "commit": "0123456789abcdef",
    "python": "3.11.2",
    "platform": "Linux",
    "cpu": "Made CPU",
    "cores": 2,
    "memory_bytes": 8_000_000_000,
    "gpu": "",
    "kernels": "avx2",
    "versions": {"numpy": "2.4.6"},
}
MACHINE = "Made CPU, 2 cores"
INDEXES = ("ra", "hnsw", "hnsw@lift", "ivf")
ALWAYS = ("flat", "window", "random")


def compare_folder(path: Path, **options) -> Path:
    """A folder of `compare` with a row for each index, head, k and setting; quality grows with cost."""
    split = options.get("split", "honest")
    identity = {"verb": "compare", "data_hash": "d" * 64, "schema": SCHEMA_VERSION, "split": split}
    folder = ResultFolder(path, identity | options.get("identity", {}))
    folder.note_command(f"ra-bench compare --indexes ra --split {split}")
    for index in (*options.get("indexes", INDEXES), *ALWAYS):
        for layer in range(options.get("layers", 2)):
            for kv_head in range(options.get("kv_heads", 2)):
                rows = list(_sweep(index, layer, kv_head, options))
                folder.write(rows[0]["unit"], rows)
    return path


def _sweep(index, layer, kv_head, options):
    rng = np.random.default_rng([zlib.crc32(index.encode()), layer, kv_head])
    settings = 1 if index in ALWAYS else options.get("settings", 4)
    for k in options.get("ks", (10, 100)):
        for rank in range(settings):
            row = _row(index, layer, kv_head, k, rank, settings, rng, options)
            noise = options.get("noise", 0.0)  # so that nothing of it repeats, as in real rows
            yield {
                name: value * rng.uniform(1 - noise, 1) if isinstance(value, float) else value
                for name, value in row.items()
            }


def _row(index, layer, kv_head, k, rank, settings, rng, options):
    share = (rank + 1) / settings
    recall = {"flat": 1.0, "window": 0.05, "random": 0.01}.get(index, 0.6 + 0.399 * share)
    if index == "hnsw":
        recall *= 0.7
    cost_us = {"flat": 300.0}.get(index, 20.0 * (1 + 4 * share) * rng.uniform(0.8, 1.2))
    queries = np.clip(rng.normal(recall, 0.05, 12), 0, 1).astype(np.float32)
    times_us = cost_us * rng.uniform(0.9, 1.1, (3, 6)).ravel()
    split = options.get("split", "honest")
    return {
        "unit": f"{index}-{layer}-{kv_head}-{split}-{options.get('mark', '')}".replace("/", "_"),
        "status": "ok",
        "reason": "",
        "data": options.get("data", "made"),
        "data_hash": "d" * 64,
        "model": "made-model",
        "document": "doc000",
        "layer": layer,
        "kv_head": kv_head,
        "group": 2,
        "n": 5000,
        "d": 64,
        "key_type": "float16",
        "split": split,
        "test_queries": 12,
        "index": index,
        "transform": "lift" if index.endswith("@lift") else "none",
        "settings": json.dumps({"degree": 32}),
        "effort": json.dumps({"ef": 10 * (rank + 1)}),
        "effort_rank": rank,
        "k": k,
        "threads": 1,
        "seed": 0,
        "repeats": 3,
        "learn_queries": 1000 if index == "ra" else 0,
        "recall": recall + (0.02 if split == "random" and index == "ra" else 0.0),
        "recall_p05": recall * 0.9,
        "mass_of_indexed": recall * 0.6,
        "mass_total": 0.8 + 0.1 * recall,
        "static_mass": 0.8,
        "output_error": 0.2 - 0.1 * recall,
        "attended": float(k),
        "keys_read": None if index.startswith("hnsw") else 5000.0 if index == "flat" else 50 + 400 * share,
        "search_bytes": 1e5 * share,
        "attend_bytes": 2e5 * share,
        "search_p50_us": cost_us,
        "search_p95_us": cost_us * 1.3,
        "attend_p50_us": cost_us * 1.1,
        "queries_per_s": 1e6 / cost_us,
        "build_s": 0.5,
        "knn_s": 0.25 if index == "ra" else None,
        "insert_us_per_key": 3.0,
        "host_bytes": 500_000,
        "device_bytes": 0,
        "recall_by_query": queries.tolist(),
        "mass_total_by_query": (0.8 + 0.1 * queries).tolist(),
        "output_error_by_query": (0.2 - 0.1 * queries).tolist(),
        "search_us_samples": times_us.tolist(),
        "attend_us_samples": (1.1 * times_us).tolist(),
        "environment": json.dumps(ENVIRONMENT),
        "machine": options.get("machine", MACHINE),
        "schema": options.get("schema", SCHEMA_VERSION),
    }


def drift_folder(path: Path, heads: int = 2, data: str = "made") -> Path:
    """A folder of `drift`: three indexes on `heads` heads after three numbers of inserted tokens."""
    identity = {"verb": "drift", "data_hash": "d" * 64, "schema": drift_rows.SCHEMA_VERSION}
    folder = ResultFolder(path, identity, drift_rows.COLUMNS)
    folder.note_command("ra-bench drift --indexes ra,ivf,hnsw --tokens 100,400,1600")
    for place, index in enumerate(("ra", "ivf", "hnsw")):
        for kv_head in range(heads):
            unit = f"{index}-{kv_head}-{data}"
            rng = np.random.default_rng([place, kv_head])
            folder.write(
                unit, [_drifted(unit, index, place, kv_head, n, rng, data) for n in (100, 400, 1600)]
            )
    return path


def _drifted(unit, index, place, kv_head, inserted, rng, data):
    whole = np.clip(rng.normal(0.95, 0.02, 12), 0, 1)
    grown = np.clip(whole - 0.02 * place * inserted / 1600 + rng.normal(0, 0.004, 12), 0, 1)
    hidden = index == "hnsw"
    return {
        "unit": unit,
        "status": "ok",
        "data": data,
        "data_hash": "d" * 64,
        "model": "made-model",
        "document": "doc000",
        "layer": 0,
        "kv_head": kv_head,
        "group": 2,
        "n": 3000 + inserted,
        "d": 64,
        "index": index,
        "settings": json.dumps({"degree": 32}),
        "effort": json.dumps({"ef": 100 * (1 + kv_head)}),
        "k": 100,
        "target": 0.95,
        "inserted": inserted,
        "recall_whole": float(whole.mean()),
        "recall_grown": float(grown.mean()),
        "keys_read_whole": None if hidden else 200.0,
        "keys_read_grown": None if hidden else 200.0 + inserted * place / 10,
        "insert_us_per_token": 3.0 * (1 + place),
        "build_whole_s": 1.0,
        "build_grown_s": 0.9,
        "threads": 1,
        "recall_whole_by_query": whole.tolist(),
        "recall_grown_by_query": grown.tolist(),
        "environment": json.dumps(ENVIRONMENT),
        "machine": MACHINE,
        "schema": drift_rows.SCHEMA_VERSION,
    }


def decode_folder(path: Path, context: int = 4096, indexes=("ra", "ivf", "flat")) -> Path:
    """A folder of `decode`: dense, window and indexes at k=100 on two samples of a task."""
    identity = {"verb": "decode", "schema": decode_rows.SCHEMA_VERSION, "context_tokens": context}
    folder = ResultFolder(path, identity, decode_rows.COLUMNS)
    folder.note_command(f"ra-bench decode --model made-model --context {context}")
    for place, index in enumerate(("dense", "window", *indexes)):
        for sample in range(2):
            unit = f"{index}-{sample}-{context}"
            folder.write(unit, [_decoded(unit, index, place, sample, context)])
    return path


def _decoded(unit, index, place, sample, context):
    return {
        "unit": unit,
        "status": "ok",
        "reason": "",
        "model": "made-model",
        "random_weights": False,
        "task": "passkey",
        "sample": sample,
        "protocol": "question-sparse",
        "prefill_tokens": context - 40,
        "index": index,
        "k": None if index == "dense" else 100,
        "effort": json.dumps({"ef": 20}) if index == "ra" else None,
        "score": 0.0 if index == "window" else 1.0 - 0.1 * place * sample,
        "dense_score": 1.0,
        "kl": 0.01 * place,
        "tpot_ms": 20.0 + 5 * place,
        "tpot_p95_ms": 30.0 + 5 * place,
        "tokens_per_s": 40.0,
        **dict.fromkeys(("model_ms", "search_ms", "cpu_attention_ms", "merge_ms", "harness_ms"), 3.0 + place),
        "keys_read_share": 0.05 * place,
        "host_kv_bytes": 0 if index == "dense" else context * 1000,
        "device_kv_bytes": context * 1000 if index == "dense" else 640_000,
        "index_bytes": 0 if index in ("dense", "window") else context * 300,
        "capture": "eager",
        "threads": 2,
        "device": "CPU",
        "environment": json.dumps(ENVIRONMENT),
        "machine": MACHINE,
        "schema": decode_rows.SCHEMA_VERSION,
    }
