"""One run of one sample: makes the cache, decodes through it, and gives the row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ra_bench.capture import Recorder
from ra_bench.decode.answer import Answer, answer
from ra_bench.decode.arms import DENSE, DENSE_HOST, Arm, CacheMaker
from ra_bench.decode.built import Built
from ra_bench.decode.cache import DecodeCache
from ra_bench.decode.graphs import make_track
from ra_bench.decode.indexed import IndexedLayer, Retrieval, insert_left
from ra_bench.decode.measures import costs, search_share, work_of
from ra_bench.decode.plan import Plan
from ra_bench.decode.prefilled import Prefilled
from ra_bench.decode.step import Stepper
from ra_bench.decode.tasks import FIDELITY, Sample, compare_logits, score
from ra_bench.errors import UsageError
from ra_bench.measure import settings_of_index
from ra_bench.results import Row

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class Runner:
    """All runs of one sample on one prefill. `recorder` is shown what the run to be recorded decodes."""

    def __init__(
        self,
        plan: Plan,
        sample: Sample,
        prefilled: Prefilled,
        learn_sizes: Mapping[int, int],
        recorder: Recorder | None,
    ) -> None:
        self.learn_sizes = learn_sizes
        self._plan = plan
        self._sample = sample
        self._prefilled = prefilled
        self._recorder = recorder
        self._model = prefilled.session.model
        self._on_gpu = self._model.device.type == "cuda"
        self._dense_logits: np.ndarray | None = None
        self._dense_failure = "dense has not run"

    def run(self, arm: Arm, built: Built | None = None, more: bool = False) -> Row:
        """The row of a run, on `built` where it has an index; `more` tells whether further runs follow on it.

        A run that fails gives a row with the reason, and so does one that is to be compared with dense where
        dense has not run before or failed. Raises UsageError for a model that cannot be served.
        """
        if arm.name == DENSE_HOST and not self._on_gpu:
            return {"status": "skipped", "reason": "no GPU: the model's cache is in host memory already"}
        if self._teacher_forced and self._dense_logits is None and arm.name != DENSE:
            return {"status": "failed", "reason": f"nothing to compare with: {self._dense_failure}"}
        try:
            if built is None:
                return self._baseline(arm)
            return self._indexed(arm, built, more)
        except UsageError:
            raise
        except Exception as error:  # an index may raise anything
            failed = failure(error, "decoding")
            if arm.name == DENSE:
                self._dense_failure = f"dense: {failed['reason']}"
            return failed

    def _baseline(self, arm: Arm) -> Row:
        maker = self._maker()
        if arm.name == DENSE:
            cache = maker.dense()
        elif arm.name == DENSE_HOST:
            cache = maker.dense_host()
        else:
            cache = maker.window(arm.k or 0)
        row, made = self._decode(cache)
        is_dense = arm.name in (DENSE, DENSE_HOST)
        if arm.name == DENSE:
            self._dense_logits = made.logits
        on_device = sum(layer.device_bytes for layer in cache.layers)
        on_host = self._kv_bytes(stored=False) if arm.name == DENSE_HOST else 0
        return (
            row
            | self._quality(made)
            | costs(made.steps, None)
            | {
                "tail": "exact" if is_dense else "dropped",
                "keys_read": self._prefilled.tokens if is_dense else None,
                "bytes_read": on_device + on_host,
                "device_kv_bytes": on_device,
                "host_kv_bytes": on_host,
                "index_bytes": 0,
            }
        )

    def _indexed(self, arm: Arm, built: Built, more: bool) -> Row:
        assert arm.spec is not None
        assert arm.k is not None
        asked = self._plan.settings
        before_step = built.lend(more)
        effort = dict(arm.spec.effort)
        if asked.min_keys_read is not None:
            effort = built.choose_effort(self._prefilled, arm.k, asked.min_keys_read, effort)
        keys, index_bytes = built.tokens, built.host_bytes
        retrieval = Retrieval(arm.k, effort, asked.threads, getattr(torch, asked.dtype))
        recorder = self._recorder if arm == self._plan.recorded else None
        cache = self._maker(eager=recorder is not None).indexed(built, retrieval)
        layers = [layer for layer in cache.layers if isinstance(layer, IndexedLayer)]
        inserts = built.can_insert
        row, made = self._decode(cache, layers, inserts, lambda: before_step(layers), recorder)
        row |= self._quality(made) | work_of(layers, keys) | costs(made.steps, search_share(layers))
        return row | {
            "effort": json.dumps(effort),
            "settings": json.dumps(settings_of_index(layers[0].indexes[0])),
            "indexed_layers": len(layers),
            "indexed_keys": keys,
            "learn_queries": built.learn_queries,
            "tail": "inserted" if inserts else "exact",
            "inserted_tokens": layers[0].inserted_tokens,
            "build_s": built.build_s,
            "knn_s": built.knn_s,
            "ttft_build_s": row["ttft_s"] + built.ready_s,
            "device_kv_bytes": sum(layer.device_bytes for layer in cache.layers),
            "host_kv_bytes": self._kv_bytes(stored=True),
            "index_bytes": index_bytes,
        }

    def _decode(
        self,
        cache: DecodeCache,
        layers: Sequence[IndexedLayer] = (),
        inserts: bool = False,
        before: Callable[[], None] = lambda: None,
        recorder: Recorder | None = None,
    ) -> tuple[Row, Answer]:
        def insert() -> float:
            return insert_left(layers) if inserts else 0.0

        def before_step(number: int) -> None:
            before()
            if recorder is not None:
                recorder.start, recorder.step = self._prefilled.tokens + number, number

        forced, new_tokens = self._given()
        assert self._prefilled.logits is not None
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode(), cache.serving(self._model):
            cache.recorder = recorder
            stepper = Stepper(self._model, cache, insert)
            capture_s = stepper.prepare()
            made = answer(
                stepper,
                self._prefilled.logits,
                forced,
                new_tokens,
                self._plan.stop_tokens(self._model),
                self._teacher_forced,
                before_step,
            )
        ttft_s = self._prefilled.seconds + made.question_s
        row: Row = {
            "status": "ok",
            "reason": "",
            "question_tokens": made.forced,
            "answer_tokens": len(made.tokens),
            "ttft_s": ttft_s,
            "ttft_build_s": ttft_s,
            "capture": cache.track.capture,
            "note": cache.track.note,
            "capture_s": capture_s,
            "decode_device_bytes": torch.cuda.max_memory_allocated() if self._on_gpu else 0,
        }
        return row, made

    def _quality(self, made: Answer) -> Row:
        if self._teacher_forced:
            if self._dense_logits is None or made.logits is None:
                return {}
            found = compare_logits(self._dense_logits, made.logits, self._sample.question_ids[1:])
            return {
                "kl": float(found.kl.mean()),
                "top1_agreement": float(found.agrees.mean()),
                "delta_nll": float(found.delta_nll.mean()),
            }
        if self._plan.tokenizer is None:
            return {}
        text = self._plan.tokenizer.decode(made.tokens, skip_special_tokens=True)
        return {"text": text, "score": score(self._sample.task, self._sample, text)}

    @property
    def _teacher_forced(self) -> bool:
        return self._sample.task == FIDELITY

    def _given(self) -> tuple[Sequence[int], int]:
        """The tokens that are fed one by one, and the most that are then made."""
        question = self._sample.question_ids
        if self._teacher_forced:
            return question[:-1], 0
        forced = question if self._plan.settings.protocol == "question-sparse" else ()
        return forced, self._plan.new_tokens(self._sample)

    def _maker(self, eager: bool = False) -> CacheMaker:
        track = make_track(self._model, "eager" if eager else self._plan.settings.capture)
        steps = self._plan.steps(self._sample)
        return CacheMaker(self._prefilled, steps, track, self._plan.indexed_layers)

    def _kv_bytes(self, stored: bool) -> int:
        """Keys and values on the host of the layers that an index serves, in its type or the model's."""
        total = 0
        for layer in self._plan.indexed_layers:
            rows = self._prefilled.layers[layer]
            held = rows.stored_keys if stored else rows.keys
            assert held is not None
            total += 2 * held.nbytes
        return total


def failure(error: Exception, doing: str) -> Row:
    """The row of a run that failed."""
    message = " ".join(str(error).split())
    reason = f"{doing}: {type(error).__name__}: {message}"[:500]
    full = isinstance(error, OUT_OF_MEMORY)
    return {"status": "oom" if full else "failed", "reason": reason}
