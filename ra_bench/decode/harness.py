"""The main path of `decode`: one prefill a sample, then every run of it, and a row for each as it ends.

A run that fails is a row with its reason, and the next one goes on. What has landed is not run again, except
dense of a `fidelity` sample that has other runs to do: they are compared with its logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ra_bench import dump
from ra_bench.capture import BackgroundWriter, Recorder
from ra_bench.decode.arms import DENSE, DENSE_HOST, Arm
from ra_bench.decode.built import Built
from ra_bench.decode.deaths import DEADLY, Deaths
from ra_bench.decode.measures import break_even
from ra_bench.decode.plan import Plan
from ra_bench.decode.prefilled import Prefilled, prefill_sample
from ra_bench.decode.rows import SCHEMA_VERSION
from ra_bench.decode.runner import Runner, failure
from ra_bench.decode.tasks import FIDELITY, Sample
from ra_bench.dump import DocumentFiles, Session
from ra_bench.dump_plan import DumpSettings
from ra_bench.environment import environment, machine_class
from ra_bench.prepare import wants
from ra_bench.prompts import Document
from ra_bench.registry import create
from ra_bench.results import ResultFolder, Row
from ra_bench.writer import DumpWriter


class Watcher(Protocol):
    """Is told how the run goes on; the command line shows it."""

    def start(self, name: str) -> None:
        """A piece of work starts."""

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""


@dataclass
class _Sample:
    """A sample under way: its prefill, its rows so far by run, and dense's log-probabilities."""

    sample: Sample
    prefilled: Prefilled
    peers: dict[str, Row]
    runner: Runner


def run_plan(plan: Plan, folder: ResultFolder, watcher: Watcher, force: bool = False) -> list[Row]:
    """Runs what has not ended well yet (all with `force`); returns all rows of the plan."""
    deaths = Deaths(folder.path)
    todo = {id(sample): _todo(plan, folder, sample, force) for sample in plan.samples}
    for sample in plan.samples:
        for arm in list(todo[id(sample)]):
            address = plan.address(sample, arm)
            if deaths.of(address) >= DEADLY:
                todo[id(sample)].remove(arm)
                killed = {"status": "failed", "reason": f"the process died in it {DEADLY} times"}
                folder.write(address, [_named(plan, sample, arm) | killed])
                deaths.forget(address)
    if any(todo.values()):
        watcher.start("loading the model")
        if plan.model.device == "cpu":
            torch.set_num_threads(plan.settings.threads)
        session = dump.start(plan.model, dump_settings(plan))
        watcher.end("loading the model", "ok", "")
        with _recording(plan, session) as writer:
            for number, sample in enumerate(plan.samples):
                if arms := todo[id(sample)]:
                    _run_sample(plan, session, folder, watcher, deaths, number, sample, arms, writer)
    return folder.read(plan.address(sample, arm) for sample in plan.samples for arm in plan.arms)


def _todo(plan: Plan, folder: ResultFolder, sample: Sample, force: bool) -> list[Arm]:
    if force or plan.settings.record is not None:  # a dump is whole or not at all
        return list(plan.arms)
    return [arm for arm in plan.arms if not folder.has(plan.address(sample, arm))]


def dump_settings(plan: Plan) -> DumpSettings:
    """What loading the model and describing its heads need to know of the plan."""
    asked = plan.settings
    return DumpSettings(
        model=asked.model,
        out=asked.record or Path(),
        context_tokens=asked.context_tokens,
        revision=asked.revision,
        rope_scaling=asked.rope_scaling,
        dtype=asked.dtype,
        device=asked.device,
        random_weights=asked.random_weights,
        seed=asked.seed,
        trust_remote_code=asked.trust_remote_code,
    )


@contextmanager
def _recording(plan: Plan, session: Session) -> Iterator[DumpWriter | None]:
    """The dump of `--record`, finished when all samples are through."""
    if plan.settings.record is None:
        yield None
        return
    with DumpWriter(plan.settings.record, plan.settings.dtype) as writer:
        yield writer
        writer.finish(
            {
                "verb": "decode",
                "model": plan.model.source.name,
                "protocol": plan.settings.protocol,
                "decoded_by": str(plan.recorded),
                "versions": dump.versions(),
                **session.facts_of_run,
            }
        )


def _run_sample(
    plan: Plan,
    session: Session,
    folder: ResultFolder,
    watcher: Watcher,
    deaths: Deaths,
    number: int,
    sample: Sample,
    arms: Sequence[Arm],
    writer: DumpWriter | None,
) -> None:
    dense_question = plan.settings.protocol == "question-dense" and sample.max_new_tokens > 0
    ids = [*sample.context_ids, *(sample.question_ids if dense_question else ())]
    document = Document(f"doc{number:03}", f"{sample.task} {sample.number}", np.array(ids, np.int64))
    settings = replace(session.settings, context_tokens=len(ids), decode_steps=plan.steps(sample))
    here = replace(session, settings=settings)
    what = f"prefill of {len(ids)} tokens, {sample.task} {sample.number}"
    with ExitStack() as stack:
        recorder, files = None, None
        if writer is not None:
            files = DocumentFiles(here, document, writer)
            background = stack.enter_context(BackgroundWriter(files.write))
            heads, group = plan.model.kv_heads, plan.model.shape.group
            recorder = Recorder(plan.indexed_layers, heads, group, 1, plan.settings.dtype, background)
        watcher.start(what)
        learn = _learn_sizes(arms)
        stored = getattr(torch, plan.settings.dtype)
        prefilled = prefill_sample(here, document, stored, plan.indexed_layers, learn, recorder)
        watcher.end(what, "ok", "")
        runner = Runner(plan, sample, prefilled, learn, recorder)
        landed = folder.read(filter(folder.has, _baselines(plan, sample)))  # a damaged one is run again
        peers = {row["index"]: row for row in landed if row["status"] == "ok"}
        current = _Sample(sample, prefilled, peers, runner)
        _run_arms(plan, current, folder, watcher, deaths, arms)
    if files is not None:
        files.close()


def _baselines(plan: Plan, sample: Sample) -> list[str]:
    return [plan.address(sample, arm) for arm in plan.arms if arm.name in (DENSE, DENSE_HOST)]


def _learn_sizes(arms: Sequence[Arm]) -> dict[int, int]:
    """Exact neighbours wanted per number of learn queries, over all indexes."""
    wishes = [create(arm.spec) for arm in arms if arm.spec is not None]
    return wants([(index.learn_queries, index.learn_neighbors) for index in wishes])


def _run_arms(
    plan: Plan,
    current: _Sample,
    folder: ResultFolder,
    watcher: Watcher,
    deaths: Deaths,
    arms: Sequence[Arm],
) -> None:
    def land(arm: Arm, row: Row) -> None:
        address = plan.address(current.sample, arm)
        row = _named(plan, current.sample, arm) | _common(plan, current) | row
        if row["status"] == "ok":
            dense = current.peers.get(DENSE)
            row["dense_score"] = row.get("score") if arm.name == DENSE else dense and dense.get("score")
            if arm.name not in (DENSE, DENSE_HOST):
                row["break_even_tokens"] = break_even(row, dense)
                row["break_even_host_tokens"] = break_even(row, current.peers.get(DENSE_HOST))
            current.peers[arm.name] = row
        folder.write(address, [row])
        watcher.end(named(arm), row["status"], row["reason"])

    def named(arm: Arm) -> str:
        return f"{arm}, {current.sample.task} {current.sample.number}"

    runner = current.runner
    if current.sample.task == FIDELITY and all(arm.name != DENSE for arm in arms):
        _run_reference(current, watcher)
    for arm in (arm for arm in arms if arm.spec is None):
        watcher.start(named(arm))
        land(arm, runner.run(arm))
    groups: dict[Any, list[Arm]] = {}
    for arm in arms:
        if arm.spec is not None:
            groups.setdefault(arm.build_key, []).append(arm)
    for group in groups.values():
        spec = group[0].spec
        assert spec is not None
        built = Built(spec, plan.indexed_layers, plan.settings.threads, plan.settings.seed)
        watcher.start(f"building {built.spec}")
        try:
            with deaths.watched(plan.address(current.sample, group[0])):
                built.build(current.prefilled, runner.learn_sizes)
        except Exception as error:  # an index may raise anything
            failed = failure(error, "build")
            watcher.end(f"building {built.spec}", failed["status"], failed["reason"])
            for arm in group:
                watcher.start(named(arm))
                land(arm, failed)
            continue
        watcher.end(f"building {built.spec}", "ok", "")
        for place, arm in enumerate(group):
            watcher.start(named(arm))
            with deaths.watched(plan.address(current.sample, arm)):
                row = runner.run(arm, built, more=place < len(group) - 1)
            land(arm, row)
        built.close()
    current.prefilled.forget_neighbors()


def _run_reference(current: _Sample, watcher: Watcher) -> None:
    """Runs dense for its logits, which no row keeps: its own has landed, or was not asked for.

    Without them the task measures nothing, and a refusal would only make the user ask for dense.
    """
    name = f"truth of {current.sample.task} {current.sample.number} by {DENSE}"
    watcher.start(name)
    row = current.runner.run(Arm(DENSE))
    watcher.end(name, row["status"], row["reason"])


def _named(plan: Plan, sample: Sample, arm: Arm) -> Row:
    """What is known of a run before it begins."""
    return {
        "unit": plan.address(sample, arm),
        "reason": "",
        "model": plan.model.source.name,
        "random_weights": plan.settings.random_weights,
        "task": sample.task,
        "sample": sample.number,
        "protocol": plan.settings.protocol,
        "index": arm.name,
        "k": arm.k,
        "machine": machine_class(),
        "schema": SCHEMA_VERSION,
    }


def _common(plan: Plan, current: _Sample) -> Row:
    asked, sample = plan.settings, current.sample
    model = current.prefilled.session.model
    return {
        "prefill_tokens": current.prefilled.tokens,
        "expected": json.dumps(list(sample.answers)),
        "min_keys_read": asked.min_keys_read,
        "dense_layers": ",".join(map(str, asked.dense_layers)),
        "prefill_s": current.prefilled.seconds,
        "prefill_device_bytes": current.prefilled.peak_device_bytes,
        "threads": asked.threads,
        "seed": asked.seed,
        "dtype": asked.dtype,
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "device": current.prefilled.session.facts_of_run["device"],
        "environment": json.dumps(environment()),
    }
