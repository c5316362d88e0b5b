"""`ra-bench dump`: records Q, K and V of a model while it prefills documents and decodes a little after each.

    dump(DumpSettings(model="Qwen/Qwen3-8B", out=Path("dump"), context_tokens=32768))

The vectors are those that reach attention, after the rotary embedding. What comes out is `ra_bench.vectors`;
how they are caught is `ra_bench.prefill` and `ra_bench.capture`. Decoding is greedy and does not stop at an
end-of-text token.
"""

from __future__ import annotations

import errno
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import DynamicCache

from ra_bench import models
from ra_bench.capture import BackgroundWriter, Block, LayerFacts, Recorder, observed, probe
from ra_bench.dump_plan import DumpSettings, Plan, make_plan
from ra_bench.errors import RunError
from ra_bench.head import Rope
from ra_bench.prefill import prefill
from ra_bench.prompts import Document, read_documents
from ra_bench.vectors import MANIFEST, DataSet, HeadMetadata, HeadName, Kind, is_dump_file
from ra_bench.writer import DumpWriter, HeadWriter

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

    Raises UsageError for what cannot be done and RunError for what failed. Whatever ends it early, an
    interruption included, leaves no dump behind.
    """
    plan = make_plan(settings)
    progress(Progress("estimate", total=plan.estimated_bytes))
    tokenize = models.load_tokenizer(plan.source, plan.shape.vocabulary, settings.random_weights)
    documents = read_documents(
        settings.prompts, settings.context_tokens, tokenize, plan.shape.vocabulary, settings.seed
    )

    try:
        progress(Progress("load"))
        running = start(plan, settings)
        _remove_old(settings.out)
        with DumpWriter(settings.out, settings.dtype) as writer:
            for document in documents:
                _record(running, document, writer, progress)
            progress(Progress("finish"))
            writer.finish(_record_of(settings, plan, documents, running.facts_of_run))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"--out {settings.out}: the disk is full; nothing was kept") from error
        raise RunError(f"--out {settings.out}: {error}") from error
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a full host memory
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        raise RunError(
            f"out of memory on {plan.device} with --context {settings.context_tokens}; nothing was kept"
        ) from error
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
    """Prefills `document`, decodes after it, and writes what the layers asked for made."""
    files = DocumentFiles(session, document, dump)
    plan, settings = session.plan, session.settings
    with BackgroundWriter(files.write) as writer:
        recorder = Recorder(
            plan.layers, plan.kv_heads, plan.shape.group, settings.query_stride, settings.dtype, writer
        )
        _run(session, document, recorder, progress)
    files.close()


@torch.inference_mode()
def _run(
    session: Session, document: Document, recorder: Recorder, progress: Callable[[Progress], None]
) -> None:
    """A prefill of the prompt, then one forward a token, each fed what the last one found likeliest."""
    model, decode_steps = session.model, session.settings.decode_steps
    num_layers = len(session.plan.shape.layer_kinds)
    cache = DynamicCache(config=model.config) if decode_steps else None

    def receive(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        recorder.prefill_keys(layer, keys, values)
        progress(Progress("prefill", layer + 1, num_layers, document.name))

    ids = torch.from_numpy(document.token_ids)[None].to(model.device)
    logits = prefill(model, ids, receive, recorder.prefill_queries, cache=cache)
    with observed(model, recorder.decoded):
        for step in range(decode_steps):
            recorder.start, recorder.step = ids.shape[1] + step, step
            token = logits.argmax(-1, keepdim=True)
            logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
            progress(Progress("decode", step + 1, decode_steps, document.name))


class DocumentFiles:
    """The files of one document, opened as their first rows come."""

    def __init__(self, session: Session, document: Document, dump: DumpWriter) -> None:
        self._session = session
        self._document = document
        self._dump = dump
        self._files: dict[tuple[HeadName, Kind], HeadWriter] = {}
        self._metadata: dict[int, HeadMetadata] = {}

    def write(self, block: Block) -> None:
        """Writes one layer of one forward, head by head."""
        tokens = block.start + np.arange(block.keys.shape[1], dtype=np.int32)
        count, group = block.queries.shape[1:3]
        positions = np.repeat(block.query_positions, group)
        steps = None if block.step is None else np.full(len(positions), block.step, np.int32)
        kind: Kind = "prefill_queries" if block.step is None else "decode_queries"
        for row, kv_head in enumerate(self._session.plan.kv_heads):
            name = HeadName(self._document.name, block.layer, kv_head)
            self._file(name, "keys").append(block.keys[row], tokens)
            self._file(name, "values").append(block.values[row], tokens)
            heads = np.tile(np.arange(kv_head * group, (kv_head + 1) * group, dtype=np.int16), count)
            queries = self._file(name, kind)
            queries.append(block.queries[row].reshape(count * group, -1), positions, heads, steps)
            if block.step is None:
                queries.close()

    def close(self) -> None:
        """Finishes the document's files, so that the next one's find room."""
        for file in self._files.values():
            file.close()

    def _file(self, name: HeadName, kind: Kind) -> HeadWriter:
        if (name, kind) not in self._files:
            if name.layer not in self._metadata:
                self._metadata[name.layer] = describe(self._session, self._document, name.layer)
            metadata = self._metadata[name.layer]
            dim = self._session.layers[name.layer].head_dim
            self._files[name, kind] = self._dump.open(name, kind, dim, metadata)
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
    for path in out.iterdir() if out.is_dir() else ():
        if is_dump_file(path.name.removesuffix(".partial")):
            path.unlink()


def _record_of(
    settings: DumpSettings, plan: Plan, documents: list[Document], facts: dict[str, Any]
) -> dict[str, Any]:
    """The manifest's account of the run; it names no folder of this machine."""
    asked = asdict(settings)
    for local in ("out", "force", "device", "prompts"):
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
