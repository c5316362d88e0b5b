"""`ra-bench dump`: records Q, K and V of a model while it prefills documents and decodes a little after each.

    dump(DumpSettings(model="Qwen/Qwen3-8B", out=Path("dump"), context_tokens=32768))

The vectors are those that reach attention, after the rotary embedding. What comes out is `ra_bench.vectors`;
how they are caught is `ra_bench.prefill` and `ra_bench.capture`. Decoding is greedy and does not stop at an
end-of-text token.
"""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from ra_bench import models
from ra_bench.capture import BackgroundWriter, Block, LayerFacts, Recorder, observed, probe
from ra_bench.dump_plan import DECODED, PREFILLED, DumpSettings, Plan, make_plan
from ra_bench.errors import RunError
from ra_bench.head import Rope
from ra_bench.prefill import prefill
from ra_bench.prompts import Document, read_documents
from ra_bench.vectors import MANIFEST, DataSet, HeadMetadata, HeadName, Kind, is_dump_file
from ra_bench.writer import UNFINISHED, DumpWriter, HeadWriter

__all__ = ["DumpSettings", "Plan", "Progress", "dump", "make_plan", "versions"]


@dataclass(frozen=True)
class Progress:
    """Where a dump stands: `done` of `total` bytes ("estimate"), layers ("prefill") or steps ("decode").

    "load" and "finish" are announced when they begin, with nothing to count.
    """

    stage: Literal["estimate", "load", "prefill", "decode", "finish"]
    done: int = 0
    total: int = 0
    document: str = ""


def dump(settings: DumpSettings, progress: Callable[[Progress], None] = lambda _: None) -> DataSet:
    """Runs the model and writes the dump; gives the finished data set.

    Raises UsageError for what cannot be done and RunError for what failed. Whatever ends it early, a kill
    included, leaves no dump behind, but the files of layers that were whole: the same settings go on there.
    """
    plan = make_plan(settings)
    progress(Progress("estimate", total=plan.estimated_bytes))
    tokenize = models.load_tokenizer(plan.source, plan.shape.vocabulary, settings.random_weights)
    documents = read_documents(
        settings.prompts, settings.context_tokens, tokenize, plan.shape.vocabulary, settings.seed
    )

    identity = _record_of(settings, plan, documents, {"device": plan.device})
    if settings.force:
        _remove_old(settings.out)
    try:
        with DumpWriter(settings.out, settings.dtype, resume=identity) as writer:
            progress(Progress("load"))
            running = start(plan, settings)
            for document in documents:
                _record(running, document, writer, progress)
            progress(Progress("finish"))
            writer.finish(_record_of(settings, plan, documents, running.facts_of_run))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"--out {settings.out}: the disk is full; layers that are whole were kept, and the same "
                "command goes on from there"
            ) from error
        raise RunError(f"--out {settings.out}: {error}") from error
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a full host memory
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        raise RunError(f"out of memory on {plan.device} with --context {settings.context_tokens}") from error
    return DataSet.open(settings.out)


def versions() -> dict[str, str]:
    """Versions of what makes the vectors."""
    packages = ("ra-bench", "torch", "transformers")
    return {name.replace("-", "_"): importlib.metadata.version(name) for name in packages}


@dataclass(frozen=True)
class Session:
    """A loaded model, and what was learned of its layers."""

    plan: Plan
    settings: DumpSettings
    model: Any
    layers: dict[int, LayerFacts]

    @property
    def facts_of_run(self) -> dict[str, Any]:
        """How the vectors were computed, for the manifest."""
        on_gpu = self.model.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.model.device) if on_gpu else "CPU",
            "compute_dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "attention": self.model.config.get_text_config(decoder=True)._attn_implementation,
        }


def start(plan: Plan, settings: DumpSettings) -> Session:
    """Loads the model and tries its layers; raises UsageError for a model that cannot be recorded rightly."""
    model = models.load_model(plan.source, plan.config, plan.device, settings.random_weights, settings.seed)
    layers = probe(model, plan.layers, plan.shape.vocabulary)
    for layer, facts in layers.items():
        found = (facts.num_kv_heads, facts.group, facts.head_dim)
        expected = (plan.shape.num_kv_heads, plan.shape.group, plan.shape.head_dim)
        if found != expected:
            raise RunError(
                f"{plan.source.name}: layer {layer} has (KV heads, group, head dimension) {found}, "
                f"its config says {expected}"
            )
    return Session(plan, settings, model, layers)


def _record(
    session: Session, document: Document, dump: DumpWriter, progress: Callable[[Progress], None]
) -> None:
    """Prefills `document`, decodes after it, and writes what is not there yet of the layers asked for."""
    files = DocumentFiles(session, document, dump)
    plan, settings = session.plan, session.settings
    prefilled, decoded = files.missing_layers(PREFILLED), files.missing_layers(DECODED)
    steps = settings.decode_steps if decoded else 0
    if not prefilled and not steps:
        return
    with BackgroundWriter(files.write) as writer:
        recorder = Recorder(
            prefilled,
            plan.kv_heads,
            plan.shape.group,
            settings.query_stride,
            settings.dtype,
            writer,
            settings.learn_share,
        )
        _run(session, document, recorder, steps, decoded, progress)
    files.close()


@torch.inference_mode()
def _run(
    session: Session,
    document: Document,
    recorder: Recorder,
    decode_steps: int,
    decoded_layers: tuple[int, ...],
    progress: Callable[[Progress], None],
) -> None:
    """A prefill of the prompt, then one forward a token, each fed what the last one found likeliest."""
    model = session.model
    num_layers = len(session.plan.shape.layer_kinds)
    cache = DynamicCache(config=model.config) if decode_steps else None

    def receive(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        recorder.prefill_keys(layer, keys, values)
        progress(Progress("prefill", layer + 1, num_layers, document.name))

    ids = torch.from_numpy(document.token_ids)[None].to(model.device)
    logits = prefill(model, ids, receive, recorder.prefill_queries, cache=cache)
    recorder.record_layers(decoded_layers)
    with observed(model, recorder.decoded):
        for step in range(decode_steps):
            recorder.start, recorder.step = ids.shape[1] + step, step
            token = logits.argmax(-1, keepdim=True)
            logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
            progress(Progress("decode", step + 1, decode_steps, document.name))


# Writing a head's file is one thread's work, most of it without Python's lock.
WRITING_THREADS = min(12, os.cpu_count() or 1)


class DocumentFiles:
    """The files of one document, opened as their first rows come; those that are whole are left alone."""

    def __init__(self, session: Session, document: Document, dump: DumpWriter) -> None:
        self._session = session
        self._document = document
        self._dump = dump
        self._files: dict[tuple[HeadName, Kind], HeadWriter] = {}
        self._metadata: dict[int, HeadMetadata] = {}

    def missing_layers(self, kinds: tuple[Kind, ...]) -> tuple[int, ...]:
        """The layers to record of which a file of these kinds is not whole yet."""
        plan, document = self._session.plan, self._document.name
        return tuple(
            layer
            for layer in plan.layers
            if not all(
                self._dump.has(HeadName(document, layer, kv_head), kind)
                for kv_head in plan.kv_heads
                for kind in kinds
            )
        )

    def write(self, block: Block) -> None:
        """Writes one layer of one forward; a prefill's files are then whole."""
        parts = list(itertools.product(range(len(self._session.plan.kv_heads)), range(3)))
        if block.layer not in self._metadata:
            self._metadata[block.layer] = describe(self._session, self._document, block.layer)
        if block.step is not None:
            for row, part in parts:
                self._write_part(block, row, part)
            return
        with ThreadPoolExecutor(WRITING_THREADS, thread_name_prefix="dump-head") as pool:
            list(pool.map(lambda at: self._write_part(block, *at), parts))

    def close(self) -> None:
        """Finishes the document's files, so that the next one's find room."""
        for file in self._files.values():
            self._dump.close(file)

    def _write_part(self, block: Block, row: int, part: int) -> None:
        """Writes the keys, values or queries (0, 1, 2) of one head of `block`."""
        kv_head = self._session.plan.kv_heads[row]
        name = HeadName(self._document.name, block.layer, kv_head)
        kind = (PREFILLED if block.step is None else DECODED)[part]
        if self._dump.has(name, kind):
            return
        file = self._file(name, kind)
        if part < 2:
            vectors = (block.keys, block.values)[part][row]
            file.append(vectors, block.start + np.arange(len(vectors), dtype=np.int32))
        else:
            count, group = block.queries.shape[1:3]
            positions = np.repeat(block.query_positions, group)
            steps = None if block.step is None else np.full(len(positions), block.step, np.int32)
            heads = np.tile(np.arange(kv_head * group, (kv_head + 1) * group, dtype=np.int16), count)
            file.append(block.queries[row].reshape(count * group, -1), positions, heads, steps)
        if block.step is None:
            self._dump.close(file)

    def _file(self, name: HeadName, kind: Kind) -> HeadWriter:
        if (name, kind) not in self._files:
            dim = self._session.layers[name.layer].head_dim
            self._files[name, kind] = self._dump.open(name, kind, dim, self._metadata[name.layer])
        return self._files[name, kind]


def describe(session: Session, document: Document, layer: int) -> HeadMetadata:
    """What a dump says of a layer, once its first tokens are there: the frequencies are then theirs."""
    settings, facts = session.settings, session.layers[layer]
    rope, note = _rope_of(session, facts)
    kind = session.plan.shape.layer_kinds[layer]
    return HeadMetadata(
        model=session.plan.source.name,
        revision=settings.revision or getattr(session.plan.config, "_commit_hash", None) or "",
        group=facts.group,
        softmax_scale=facts.softmax_scale,
        layer_kind="sliding_attention" if facts.window else kind,
        window=facts.window,
        rope=rope,
        rope_note=note,
        context_tokens=settings.context_tokens,
        token_hash=document.token_hash,
        prompt=document.origin,
        random_weights=settings.random_weights,
        versions=versions(),
    )


def _rope_of(session: Session, facts: LayerFacts) -> tuple[Rope | None, str]:
    first = session.settings.context_tokens
    if facts.rotation.changes_within(first, first + session.settings.decode_steps):
        return None, "the frequencies change while it decodes"
    return facts.rotation.read(), facts.rotation.note


def _remove_old(out: Path) -> None:
    """Removes an earlier dump's files and no others, the manifest first: what is left is never a dump."""
    (out / MANIFEST).unlink(missing_ok=True)
    (out / UNFINISHED).unlink(missing_ok=True)
    for path in out.iterdir() if out.is_dir() else ():
        if is_dump_file(path.name.removesuffix(".partial")):
            path.unlink()


def _record_of(
    settings: DumpSettings, plan: Plan, documents: list[Document], facts: dict[str, Any]
) -> dict[str, Any]:
    """The manifest's account of the run; it names no folder of this machine."""
    asked = asdict(settings)
    for local in ("out", "force", "device", "prompts", "max_bytes"):
        del asked[local]
    return asked | {
        "model": plan.source.name,
        "model_sha256": plan.source.sha256(),
        "revision": settings.revision or getattr(plan.config, "_commit_hash", None),
        "layers": list(plan.layers),
        "kv_heads": list(plan.kv_heads),
        "documents": [
            {"name": document.name, "prompt": document.origin, "token_hash": document.token_hash}
            for document in documents
        ],
        "versions": versions() | {"python": platform.python_version()},
        **facts,
    }
