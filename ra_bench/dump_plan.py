"""What a dump is to hold, and whether it can be made: all that is known before the model is loaded."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_bench import models
from ra_bench.arguments import check_seed, check_tokens, parse_numbers
from ra_bench.capture import kept_tokens
from ra_bench.errors import UsageError
from ra_bench.vectors import MANIFEST, Kind
from ra_bench.writer import UNFINISHED, refuse_full_disk, row_bytes

_FREE_FILES = 256  # what Python, torch and the model keep open beside the dump's files
PREFILLED: tuple[Kind, ...] = ("keys", "values", "prefill_queries")
DECODED: tuple[Kind, ...] = ("decoded_keys", "decoded_values", "decode_queries")


@dataclass(frozen=True)
class DumpSettings:
    """What to dump. `layers` and `kv_heads` are "all", or numbers and ranges as "0,8,16-19".

    `model` is a hub name, a folder or a GGUF file; `prompts` are files or "-", a document each, none meaning
    Python's standard library; `context_tokens` of each are prefilled. `rope_scaling` is like "yarn:4".
    `query_stride` keeps the prefill queries of every so many tokens, `learn_share` those of so large a
    share of the tokens, evenly spaced; decode queries are all kept. `max_bytes` refuses a larger dump.
    `dtype` is what is stored. `random_weights` reads the config only; a folder without a tokenizer then
    gives the prompt's UTF-8 bytes as token ids, modulo the vocabulary.
    """

    model: str
    out: Path
    context_tokens: int = 4096
    prompts: tuple[str, ...] = ()
    revision: str | None = None
    rope_scaling: str | None = None
    layers: str = "all"
    kv_heads: str = "all"
    decode_steps: int = 0
    query_stride: int = 1
    learn_share: float = 1.0
    max_bytes: int | None = None
    dtype: str = "float16"
    device: str = "auto"
    random_weights: bool = False
    seed: int = 0
    trust_remote_code: bool = False
    force: bool = False


@dataclass(frozen=True)
class Plan:
    """What a dump will hold, as far as the config tells; `estimated_bytes` is before compression."""

    source: models.Source
    config: Any
    shape: models.Shape
    layers: tuple[int, ...]
    kv_heads: tuple[int, ...]
    device: str
    estimated_bytes: int


def make_plan(settings: DumpSettings) -> Plan:
    """Checks all that needs no weights; raises UsageError, or RunError where the hub gives no config."""
    _check_numbers(settings)
    _check_out(settings.out, settings.force)
    device = models.choose_device(settings.device)
    source = models.find(settings.model, settings.revision, settings.trust_remote_code)
    config = models.load_config(source, settings.rope_scaling)
    shape = models.shape(config)
    longest = settings.context_tokens + settings.decode_steps
    if shape.max_tokens is not None and longest > shape.max_tokens:
        raise UsageError(
            f"--context {settings.context_tokens} and --decode-steps {settings.decode_steps} must be at most "
            f"{shape.max_tokens} tokens for {source.name}, got {longest}; see --rope-scaling"
        )
    layers = _choose_layers(settings.layers, shape.layer_kinds)
    kv_heads = _choose("--kv-heads", settings.kv_heads, shape.num_kv_heads)
    kept = kept_tokens(0, settings.context_tokens, settings.query_stride, settings.learn_share)
    query_tokens = len(kept) + settings.decode_steps
    rows = 2 * longest + query_tokens * shape.group
    head_bytes = rows * row_bytes(shape.head_dim, np.dtype(settings.dtype))
    documents = max(1, len(settings.prompts))
    plan = Plan(
        source, config, shape, layers, kv_heads, device, documents * len(layers) * len(kv_heads) * head_bytes
    )
    if settings.max_bytes is not None and plan.estimated_bytes > settings.max_bytes:
        raise UsageError(
            f"--max-bytes must be at least the dump's {plan.estimated_bytes} bytes, got {settings.max_bytes};"
            " fewer --layers, --kv-heads or a smaller --learn-share need less"
        )
    _check_room(settings.out, plan)
    return plan


def _check_numbers(settings: DumpSettings) -> None:
    at_least = {
        "--context": (settings.context_tokens, 1),
        "--decode-steps": (settings.decode_steps, 0),
        "--query-stride": (settings.query_stride, 1),
    }
    for argument, (value, least) in at_least.items():
        if value < least:
            raise UsageError(f"{argument} must be at least {least}, got {value}")
    check_seed(settings.seed)
    check_tokens("--context", settings.context_tokens, settings.decode_steps)
    if not 0.0 < settings.learn_share <= 1.0:
        raise UsageError(f"--learn-share must be more than 0 and at most 1, got {settings.learn_share:g}")
    if settings.learn_share < 1.0 and settings.query_stride > 1:
        raise UsageError("--learn-share and --query-stride choose the same queries: give one of them")
    if settings.dtype not in ("float16", "float32"):
        raise UsageError(f"--dtype must be float16 or float32, got {settings.dtype!r}")


def _check_out(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} must be a folder, it is a file")
    if (out / UNFINISHED).exists() and not (out / MANIFEST).exists():
        return  # whether it is the same dump is known when its text has been read
    if out.is_dir() and any(out.iterdir()) and not force:
        what = "a finished dump" if (out / MANIFEST).exists() else "files"
        raise UsageError(f"--out {out} holds {what} already; --force replaces a dump's files in it")


def _check_room(out: Path, plan: Plan) -> None:
    """Room on the disk, and for files: those of decoded tokens stay open until decoding ends."""
    refuse_full_disk(out, plan.estimated_bytes)
    needed = len(plan.layers) * len(plan.kv_heads) * len(DECODED) + _FREE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(f"--layers and --kv-heads need {needed} open files, the system allows {hard}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _choose_layers(text: str, kinds: tuple[str, ...]) -> tuple[int, ...]:
    """The layers asked for; "all" leaves out those that have no attention (hybrid models)."""
    layers = _choose("--layers", text, len(kinds))
    if text == "all":
        layers = tuple(layer for layer in layers if kinds[layer] in models.ATTENTION_LAYERS)
    for layer in layers:
        if kinds[layer] not in models.ATTENTION_LAYERS:
            raise UsageError(
                f"--layers: layer {layer} is {kinds[layer]}, it has no keys and values to record"
            )
    if not layers:
        raise UsageError(f"--layers: the model has no attention layer, only {', '.join(sorted(set(kinds)))}")
    return layers


def _choose(argument: str, text: str, count: int) -> tuple[int, ...]:
    """The numbers below `count` in "all" or "0,8,16-19", in order."""
    if text == "all":
        return tuple(range(count))
    chosen = parse_numbers(argument, text)
    if chosen[-1] >= count:
        raise UsageError(f"{argument} {chosen[-1]} does not exist: the model has 0-{count - 1}")
    return tuple(chosen)
