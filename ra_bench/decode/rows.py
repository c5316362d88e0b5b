"""One row a sample and run of `decode`: what it answered, and what each of its tokens cost."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

_SAMPLES = pa.list_(pa.float32())
_TEXT, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

# Times of a step are those of single-token steps, of the question's tokens (where they are decoded) and of
# the answer's. The parts of a step are means; on CUDA, search and CPU attention run while GPU attention does.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "unit": (_TEXT, "content address of sample and run"),
    "status": (_TEXT, "ok, failed, oom or skipped"),
    "reason": (_TEXT, "why it is not ok, in one line"),
    "model": (_TEXT, "the model"),
    "random_weights": (_FLAG, "made from the config alone: latency and memory count, answers do not"),
    "task": (_TEXT, "task of the sample"),
    "sample": (_COUNT, "its number"),
    "protocol": (_TEXT, "question-sparse: the question is decoded too; question-dense: it is prefilled"),
    "prefill_tokens": (_COUNT, "tokens of the dense prefill"),
    "question_tokens": (_COUNT, "tokens decoded before the first of the answer"),
    "answer_tokens": (_COUNT, "tokens of the answer"),
    "index": (_TEXT, "dense, dense-host, window, or the spec string of an index"),
    "k": (_COUNT, "results a query; for window, tokens that lengthen it"),
    "effort": (_TEXT, "search settings, JSON"),
    "settings": (_TEXT, "build settings, JSON"),
    "dense_layers": (_TEXT, "layers that keep exact attention in every run"),
    "indexed_layers": (_COUNT, "layers served by an index"),
    "indexed_keys": (_COUNT, "keys in each index when decoding starts"),
    "learn_queries": (_COUNT, "learn query rows given to each index"),
    "tail": (_TEXT, "tokens that left the window: inserted, exact (the index cannot insert) or dropped"),
    "inserted_tokens": (_COUNT, "tokens inserted while decoding, into each index"),
    "score": (_REAL, "the task's score of the answer, 0 to 1"),
    "dense_score": (_REAL, "score of dense on the same sample"),
    "text": (_TEXT, "the answer"),
    "expected": (_TEXT, "what was to be answered, JSON"),
    "kl": (_REAL, "mean KL divergence of the next-token distribution from dense's, in nats (teacher-forced)"),
    "top1_agreement": (_REAL, "share of steps whose likeliest token is dense's (teacher-forced)"),
    "delta_nll": (_REAL, "mean negative log-likelihood of the text less dense's, in nats (teacher-forced)"),
    "prefill_s": (_REAL, "dense prefill, shared by all runs of the sample"),
    "knn_s": (_REAL, "exact neighbours of learn queries and keys"),
    "build_s": (_REAL, "building the indexes of all layers, shared by all k"),
    "ttft_s": (_REAL, "time to the first token of the answer: prefill and decoded question"),
    "ttft_build_s": (_REAL, "the same with neighbours and build, which overlap"),
    "tpot_ms": (_REAL, "time per output token, median over steps"),
    "tpot_p95_ms": (_REAL, "the same, 95th percentile"),
    "tokens_per_s": (_REAL, "steps over their summed time"),
    "model_ms": (_REAL, "of a step: everything of the model but attention"),
    "copy_ms": (_REAL, "of a step: queries to the host"),
    "search_ms": (_REAL, "of a step: search on the CPU"),
    "cpu_attention_ms": (_REAL, "of a step: attention on the CPU over what was found"),
    "gpu_attention_ms": (_REAL, "of a step: attention on the model's device"),
    "merge_ms": (_REAL, "of a step: results back to the device, and the merge"),
    "insert_ms": (_REAL, "of a step: insertion of tokens that left the window"),
    "harness_ms": (_REAL, "of a step: its time less its longest path through the others"),
    "break_even_tokens": (_REAL, "output length from which the run with its build beats dense; None: never"),
    "break_even_host_tokens": (_REAL, "the same against dense-host"),
    "keys_read": (_REAL, "keys touched in any form, per query"),
    "keys_read_share": (_REAL, "the same over the keys that were indexed then"),
    "min_keys_read": (_REAL, "the share that the effort was chosen to read at least, where it was"),
    "bytes_read": (_REAL, "bytes that attention reads beside the device's window, per step, all layers"),
    "attended": (_REAL, "indexed keys in the softmax, per query"),
    "prefill_device_bytes": (_COUNT, "peak device memory of the prefill"),
    "decode_device_bytes": (_COUNT, "peak device memory while decoding, weights included"),
    "device_kv_bytes": (_COUNT, "keys and values on the device"),
    "host_kv_bytes": (_COUNT, "keys and values in host memory"),
    "index_bytes": (_COUNT, "host memory of the indexes beyond keys and values"),
    "capture": (_TEXT, "compiled (graphs of a model whose small parts are fused), graphs or eager"),
    "note": (_TEXT, "why it is not what was asked for"),
    "capture_s": (_REAL, "rehearsal and capture, in no other time"),
    "threads": (_COUNT, "threads of build and search, and of a model on the CPU"),
    "seed": (_COUNT, "seed of samples, weights and indexes"),
    "dtype": (_TEXT, "type of the index's rows"),
    "compute_dtype": (_TEXT, "type of the model"),
    "device": (_TEXT, "where the model ran"),
    "step_ms_samples": (_SAMPLES, "every step's time"),
    "environment": (_TEXT, "machine and versions, JSON"),
    "machine": (_TEXT, "what decides latency: CPU, cores, GPU"),
    "schema": (_COUNT, "schema version of the row"),
}
LONG_COLUMNS = [name for name, (kind, _) in COLUMNS.items() if kind == _SAMPLES]
