"""A tiny model, prefilled, and caches of every kind to decode through: what the tests of `decode` share."""

from __future__ import annotations

from dataclasses import replace

import tiny_model
import torch

from ra_bench import dump
from ra_bench.decode.answer import answer
from ra_bench.decode.arms import CacheMaker
from ra_bench.decode.built import Built
from ra_bench.decode.graphs import make_track
from ra_bench.decode.harness import run_plan
from ra_bench.decode.indexed import IndexedLayer, Retrieval, insert_left
from ra_bench.decode.plan import Settings, make_plan
from ra_bench.decode.prefilled import prefill_sample
from ra_bench.decode.rows import COLUMNS
from ra_bench.decode.step import Stepper
from ra_bench.dump_plan import DumpSettings
from ra_bench.prompts import Document
from ra_bench.registry import parse
from ra_bench.results import ResultFolder

TOKENS = 1100  # a whole chunk, a rest, and 460 keys to index
CONTEXT = 1500  # of `random_settings`


class Decoding:
    """A prefilled tiny model; each `run` decodes the same forced tokens through another cache."""

    def __init__(
        self,
        folder,
        family="llama",
        steps=6,
        learn_sizes=None,
        dense_layers=(),
        dtype="float32",
        device="cpu",
        **changes,
    ):
        tiny_model.save_config(folder, family, **{"max_position_embeddings": 4096} | changes)
        settings = Settings(
            str(folder),
            ("flat",),
            context_tokens=TOKENS,
            limit=1,
            dtype=dtype,
            device=device,
            threads=1,
            random_weights=True,
            dense_layers=dense_layers,
        )
        self.plan = make_plan(settings)
        self.steps = steps
        self.dtype = getattr(torch, dtype)
        self.ids = tiny_model.token_ids(TOKENS + steps)[0].numpy()
        self.learn_sizes = learn_sizes or {}
        self.capture = "auto"  # of the caches that are made from here on
        asked = DumpSettings(str(folder), folder, TOKENS, random_weights=True, dtype=dtype, device=device)
        session = dump.start(self.plan.model, asked)
        self.session = replace(session, settings=replace(asked, decode_steps=steps))
        self.document = Document("doc000", "made", self.ids[:TOKENS])
        self.prefilled = self.prefill()

    def prefill(self, recorder=None):
        layers = self.plan.indexed_layers
        return prefill_sample(self.session, self.document, self.dtype, layers, self.learn_sizes, recorder)

    @property
    def maker(self):
        track = make_track(self.session.model, self.capture)
        return CacheMaker(self.prefilled, self.steps, track, self.plan.indexed_layers)

    def build(self, spec, threads=1):
        built = Built(parse(spec), self.plan.indexed_layers, threads, seed=0)
        built.build(self.prefilled, self.learn_sizes)
        return built

    def indexed(self, built, k, **effort):
        return self.maker.indexed(built, Retrieval(k, effort, 1, self.dtype))

    def run(self, cache, inserts=True, recorder=None, steps=None, before_step=lambda layers: None):
        """Logits (steps, vocab) of the forced tokens, and the answer."""
        layers = [layer for layer in cache.layers if isinstance(layer, IndexedLayer)]
        inserts = inserts and bool(layers) and all(index.can_insert for index in layers[0].indexes)
        forced = self.ids[TOKENS : TOKENS + (steps or self.steps)].tolist()

        def before(number):
            before_step(layers)
            if recorder is not None:
                recorder.start, recorder.step = TOKENS + number, number

        with torch.inference_mode(), cache.serving(self.session.model):
            cache.recorder = recorder
            stepper = Stepper(
                self.session.model, cache, (lambda: insert_left(layers)) if inserts else lambda: 0.0
            )
            stepper.prepare()
            made = answer(stepper, self.prefilled.logits, forced, 0, frozenset(), True, before)
        return made.logits, made

    def reference(self):
        """The logits of one plain forward over all tokens."""
        with torch.inference_mode():
            logits = self.session.model(torch.from_numpy(self.ids)[None]).logits[0]
        return logits[TOKENS : TOKENS + self.steps].numpy()


class Watching:
    """Keeps what a run tells its watcher."""

    def __init__(self):
        self.started = []

    def start(self, name):
        self.started.append(name)

    def end(self, name, status, reason):
        assert name in self.started, f"{name} ended and never started: its time is unknown"


def random_settings(folder, *indexes, **changes):
    defaults = {"context_tokens": CONTEXT, "limit": 1, "max_new_tokens": 4, "device": "cpu", "threads": 1}
    defaults |= {"random_weights": True, "ks": (20,)}
    return Settings(str(folder), indexes, **defaults | changes)


def run(settings, folder, force=False):
    plan = make_plan(settings)
    watching = Watching()
    rows = run_plan(plan, ResultFolder(folder, plan.identity, COLUMNS), watching, force)
    return {(row["index"], row["k"], row["sample"]): row for row in rows}, [
        name.partition(", ")[0] for name in watching.started
    ]
