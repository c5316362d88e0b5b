"""Content hashes of what decides a row beside the arguments: the model, the method and the harness."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from ra_bench.compare import source_hash
from ra_bench.models import Source
from ra_bench.registry import index_class

# Modules beside ra_bench/decode/ that decide what a row says.
MEASURING = (
    *("attention", "attention_hook", "capture", "checked_rows", "dump", "head", "head_pool", "index"),
    *("measure", "models", "prefill", "prepare", "prompts", "registry", "rope", "saved_folder", "snapshot"),
    *("split", "transform", "truth", "vectors", "wrapper"),
)
WEIGHTS = ("*.safetensors", "*.bin")
VOLATILE = frozenset({"_name_or_path", "transformers_version"})
BLOCK_BYTES = 64 * 1024
BLOCKS = 16


def model_fingerprint(source: Source, config: Any, random_weights: bool) -> str:
    """A short hash of the model's config and weights: two models of one name are told apart.

    Of local weight files count their names, sizes and 16 blocks of 64 KiB each, evenly spaced: to read all
    would take minutes. A change of single tensors between the blocks is not seen. A hub model's commit, from
    which its config was just loaded, stands for its weights. Random weights follow from config and seed.
    """
    digest = hashlib.sha256(json.dumps(_lasting(json.loads(config.to_json_string()))).encode())
    folder = Path(source.path)
    if source.gguf_file is not None:
        files = [folder / source.gguf_file]
    else:
        files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not random_weights:
        for file in files:
            digest.update(json.dumps([file.name, file.stat().st_size]).encode())
            _add_blocks(digest, file)
        if not folder.is_dir():
            digest.update(_commit(source).encode())
    return digest.hexdigest()[:16]


@cache
def method_hash(name: str) -> str:
    """Content hash of the code of a method, as it was when the run began."""
    return source_hash(index_class(name))


@cache
def harness_hash() -> str:
    """Content hash of the code that decodes and measures: changed code is measured anew."""
    package = Path(__file__).parent
    files = [*sorted(package.rglob("*.py")), *(package.parent / f"{name}.py" for name in MEASURING)]
    digest = hashlib.sha256()
    for file in files:
        if file.name not in ("table.py", "rows.py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _commit(source: Source) -> str:
    """The commit of a hub model's config in the local cache, or else the revision asked for."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(cached).parent.name if isinstance(cached, str) else source.revision or ""


def _lasting(value: Any) -> Any:
    """A config, or a part of one, without what does not belong to the model."""
    if isinstance(value, dict):
        return {name: _lasting(part) for name, part in sorted(value.items()) if name not in VOLATILE}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def _add_blocks(digest: Any, file: Path) -> None:
    last = max(0, file.stat().st_size - BLOCK_BYTES)
    with file.open("rb") as weights:
        for start in sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)}):
            weights.seek(start)
            digest.update(weights.read(BLOCK_BYTES))
