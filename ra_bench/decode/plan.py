"""What `ra-bench decode` is asked for, and every refusal that needs no weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench import dump_plan, models
from ra_bench.arguments import check_seed, check_threads
from ra_bench.decode.arms import BASELINES, WINDOW, Arm, make_arms
from ra_bench.decode.fingerprint import harness_hash, method_hash, model_fingerprint
from ra_bench.decode.graphs import CAPTURES
from ra_bench.decode.indexed import STATIC_TOKENS
from ra_bench.decode.room import check_length, check_memory
from ra_bench.decode.rows import SCHEMA_VERSION
from ra_bench.decode.tasks import FIDELITY, TASKS, Sample, answer_tokens, make_samples
from ra_bench.environment import environment, machine_class
from ra_bench.errors import UsageError, unknown
from ra_bench.prompts import read_text
from ra_bench.registry import create, parse
from ra_bench.results import content_address
from ra_bench.vectors import MANIFEST

RANDOM_TASK = "random"  # of random weights: nothing is asked
RANDOM_STEPS = 32
SERVED_KINDS = ("full_attention", "sliding_attention")
PROTOCOLS = ("question-sparse", "question-dense")
MOST_SAMPLES = 100_000


@dataclass(frozen=True)
class Settings:
    """What to decode; the command line's arguments. `max_new_tokens` None: as the task has it.

    `part` (i, n): the i-th sample of every n, from 1 on.
    """

    model: str
    indexes: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    context_tokens: int = 4096
    limit: int = 5
    part: tuple[int, int] = (1, 1)
    ks: tuple[int, ...] = (100,)
    protocol: str = "question-sparse"
    baselines: tuple[str, ...] = BASELINES
    dense_layers: tuple[int, ...] = ()
    min_keys_read: float | None = None
    max_new_tokens: int | None = None
    dtype: str = "float16"
    device: str = "auto"
    capture: str = "auto"
    threads: int = field(default_factory=lambda: int(environment()["cores"]))
    seed: int = 0
    random_weights: bool = False
    revision: str | None = None
    rope_scaling: str | None = None
    text: Path | None = None
    record: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Plan:
    """Samples and the runs of each, on a model that can serve them."""

    settings: Settings
    model: dump_plan.Plan
    arms: list[Arm]
    samples: list[Sample]
    indexed_layers: tuple[int, ...]
    tokenizer: Any

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What all rows of one result folder share; tasks, indexes and k may differ between commands."""
        asked = self.settings
        shared = (
            *("context_tokens", "protocol", "min_keys_read", "max_new_tokens", "dtype", "capture"),
            *("threads", "seed", "random_weights", "revision", "rope_scaling"),
        )
        facts = {name: getattr(asked, name) for name in shared}
        facts["dense_layers"] = list(asked.dense_layers)
        fingerprint = model_fingerprint(self.model.source, self.model.config, asked.random_weights)
        model = {"model": self.model.source.name, "fingerprint": fingerprint, "device": self.model.device}
        return {"verb": "decode", "schema": SCHEMA_VERSION} | model | facts

    def address(self, sample: Sample, arm: Arm) -> str:
        """The content address of one run of one sample."""
        ids = np.array([*sample.context_ids, -1, *sample.question_ids], "<i8").tobytes()
        content = {
            "sample": [sample.task, sample.number, hashlib.sha256(ids).hexdigest(), sample.max_new_tokens],
            "arm": [arm.name, arm.k],
            "source": [] if arm.spec is None else [method_hash(name) for name in arm.spec.names],
            "harness": harness_hash(),
            "versions": {name: environment()["versions"][name] for name in ("torch", "transformers")},
            "machine": machine_class(),
        }
        return content_address(self.identity | content)

    @property
    def recorded(self) -> Arm | None:
        """The run that `--record` records: the first of the first index asked for."""
        if self.settings.record is None:
            return None
        first = str(parse(self.settings.indexes[0]))
        return next(arm for arm in self.arms if arm.name == first)

    def stop_tokens(self, model: Any) -> frozenset[int]:
        """The tokens that end an answer; none with random weights, whose tokens mean nothing."""
        if self.tokenizer is None:
            return frozenset()
        ends = [self.tokenizer.eos_token_id]
        configured = getattr(model.generation_config, "eos_token_id", None)
        ends += configured if isinstance(configured, list) else [configured]
        return frozenset(end for end in ends if end is not None)

    def steps(self, sample: Sample) -> int:
        """The most tokens that are decoded one by one."""
        return len(sample.question_ids) + self.new_tokens(sample)

    def new_tokens(self, sample: Sample) -> int:
        """The longest answer; none where the sample is teacher-forced."""
        if sample.task == FIDELITY:
            return 0
        asked = self.settings.max_new_tokens
        return sample.max_new_tokens if asked is None else asked


def make_plan(settings: Settings) -> Plan:
    """Checks everything that can be checked before the model is loaded; raises UsageError."""
    check_numbers(settings)
    specs = [parse(text) for text in settings.indexes]
    for spec in specs:
        create(spec)
    tasks = _tasks(settings)
    model, indexed = plan_model(settings)
    for task in tasks:
        check_length(model, task, settings.context_tokens, _longest(settings, task))
    check_memory(model, len(indexed), settings.dtype, settings.context_tokens)
    arms = make_arms(specs, settings.ks, settings.baselines)
    tokenizer = None if settings.random_weights else models.load_chat_tokenizer(model.source)
    samples = _samples(settings, tasks, model.shape.vocabulary, tokenizer)
    plan = Plan(settings, model, arms, samples, indexed, tokenizer)
    _check_contexts(plan)
    _check_record(plan)
    return plan


def plan_model(settings: Settings) -> tuple[dump_plan.Plan, tuple[int, ...]]:
    """The model, and the layers that an index serves; UsageError for one that cannot be served."""
    device = models.choose_device(settings.device)
    source = models.find(settings.model, settings.revision, settings.trust_remote_code)
    config = models.load_config(source, settings.rope_scaling)
    shape = models.shape(config)
    for layer, kind in enumerate(shape.layer_kinds):
        if kind not in SERVED_KINDS:
            raise UsageError(f"--model: layer {layer} is {kind}: not supported in live decoding")
    served = [layer for layer, kind in enumerate(shape.layer_kinds) if kind == "full_attention"]
    for layer in settings.dense_layers:
        if layer >= len(shape.layer_kinds):
            raise UsageError(f"--dense-layers {layer} does not exist: the model has {len(shape.layer_kinds)}")
    indexed = tuple(layer for layer in served if layer not in settings.dense_layers)
    if not indexed:
        raise UsageError("--model has no layer left for an index: all are sliding or in --dense-layers")
    every_head = tuple(range(shape.num_kv_heads))
    every_layer = tuple(range(len(shape.layer_kinds)))
    return dump_plan.Plan(source, config, shape, every_layer, every_head, device, 0), indexed


def check_numbers(settings: Settings) -> None:
    """Raises UsageError for a number or a choice that is not allowed."""
    at_least = {
        "--context": settings.context_tokens,
        "--limit": settings.limit,
    }
    at_least |= {"--k": min(settings.ks)}
    if settings.max_new_tokens is not None:
        at_least["--max-new-tokens"] = settings.max_new_tokens
    for argument, value in at_least.items():
        if value < 1:
            raise UsageError(f"{argument} must be at least 1, got {value}")
    if settings.limit > MOST_SAMPLES:
        raise UsageError(f"--limit must be at most {MOST_SAMPLES}, got {settings.limit}")
    check_threads(settings.threads)
    check_seed(settings.seed)
    part, parts = settings.part
    if not 1 <= part <= parts <= settings.limit:
        raise UsageError(
            f"--part must be I/N with I from 1 to N and N at most --limit {settings.limit},"
            f" got {part}/{parts}"
        )
    if settings.min_keys_read is not None and not 0 < settings.min_keys_read <= 1:
        raise UsageError(
            f"--min-keys-read must be a share above 0, at most 1, got {settings.min_keys_read:g}"
        )
    for argument, choice, known in (
        ("--protocol", settings.protocol, PROTOCOLS),
        ("--capture", settings.capture, CAPTURES),
        ("--dtype", settings.dtype, ("float16", "float32")),
    ):
        if choice not in known:
            raise UsageError(f"{argument} must be one of {', '.join(known)}, got '{choice}'")
    for name in settings.baselines:
        if name not in BASELINES:
            raise unknown("baseline", name, BASELINES)


def _tasks(settings: Settings) -> tuple[str, ...]:
    if settings.random_weights:
        if settings.tasks:
            raise UsageError("--tasks: a model with --random-weights cannot answer; leave --tasks out")
        tasks: tuple[str, ...] = (RANDOM_TASK,)
    else:
        tasks = settings.tasks or ("passkey",)
        for task in tasks:
            if task not in TASKS:
                raise unknown("task", task, TASKS)
    if settings.text is not None and FIDELITY not in tasks:
        raise UsageError(f"--text is for the task {FIDELITY}, here the tasks are {', '.join(tasks)}")
    return tasks


def _longest(settings: Settings, task: str) -> int:
    """The most tokens that a sample of `task` has, with its answer."""
    asked = settings.max_new_tokens
    if task == FIDELITY:
        return settings.context_tokens
    if task == RANDOM_TASK:  # its answer comes on top
        return settings.context_tokens + (RANDOM_STEPS if asked is None else asked)
    return settings.context_tokens + (0 if asked is None else asked - answer_tokens(task))


def _samples(settings: Settings, tasks: tuple[str, ...], vocabulary: int, tokenizer: Any) -> list[Sample]:
    count, tokens, seed = settings.limit, settings.context_tokens, settings.seed
    part, parts = settings.part
    numbers = range(part - 1, count, parts)
    if settings.random_weights:
        return [_random_sample(number, tokens, seed, vocabulary) for number in numbers]
    text = None if settings.text is None else read_text("--text", settings.text)
    made = (make_samples(task, tokens, count, tokenizer, seed, text, numbers) for task in tasks)
    return [sample for samples in made for sample in samples]


def _random_sample(number: int, tokens: int, seed: int, vocabulary: int) -> Sample:
    ids = np.random.default_rng([seed, number]).integers(0, vocabulary, tokens).tolist()
    return Sample(RANDOM_TASK, number, tuple(ids[:-1]), tuple(ids[-1:]), (), RANDOM_STEPS)


def _check_contexts(plan: Plan) -> None:
    """An index needs something between the sinks and the recent window."""
    for sample in plan.samples:
        if len(sample.context_ids) <= STATIC_TOKENS:
            raise UsageError(
                f"--context {plan.settings.context_tokens}: {sample.task} has a context of"
                f" {len(sample.context_ids)} tokens, and an index needs more than the {STATIC_TOKENS} of"
                " sinks and window"
            )


def _check_record(plan: Plan) -> None:
    record = plan.settings.record
    if record is None:
        return
    if record.exists() and (not record.is_dir() or any(record.iterdir())):
        what = "a finished dump" if (record / MANIFEST).exists() else "something else"
        raise UsageError(f"--record {record} must be a new folder, it holds {what}")
    if not plan.settings.indexes or str(parse(plan.settings.indexes[0])) == WINDOW:
        raise UsageError("--record needs an index in --indexes: it records what the first one decoded")
