"""Causal language models that `dump` runs: finding, checking and loading them, and what their config says.

A model is a name on the hub, a folder, or a GGUF file. transformers reads all three.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ra_bench.errors import RunError, UsageError, one_line
from ra_bench.prompts import Tokenize, tokenize_bytes

ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
ROPE_SCALINGS = ("linear", "yarn")


@dataclass(frozen=True)
class Source:
    """Where a model is. `name` is what the dump says of it: no folders of this machine."""

    path: str
    name: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `from_pretrained`, beside `path`."""
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.revision is not None:
            arguments["revision"] = self.revision
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments

    def sha256(self) -> str | None:
        """The SHA-256 of a GGUF file; None for the others, whose revision names them."""
        if self.gguf_file is None:
            return None
        with (Path(self.path) / self.gguf_file).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Shape:
    """The attention of a model, as far as its config tells. `layer_kinds` has one name a layer."""

    layer_kinds: tuple[str, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    max_tokens: int | None

    @property
    def group(self) -> int:
        """G: query heads a KV head."""
        return self.num_heads // self.num_kv_heads


def find(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Source:
    """The model that `model` names; raises UsageError where it means a path that holds no model."""
    path = Path(model)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UsageError(f"--model {model} must be a hub name, a folder or a GGUF file")
        return Source(str(path.parent), path.name, revision, path.name, trust_remote_code)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"--model {model} is a folder without config.json")
        return Source(model, path.resolve().name, revision, None, trust_remote_code)
    looks_local = model.endswith(".gguf") or model.startswith((".", "~", os.sep)) or model.count("/") > 1
    if looks_local or not model.strip():
        raise UsageError(f"--model {model} does not exist")
    return Source(model, model, revision, None, trust_remote_code)


def load_config(source: Source, rope_scaling: str | None = None) -> Any:
    """The model's config with the RoPE scaling asked for; UsageError for a model that `dump` refuses."""
    from transformers import AutoConfig

    _quiet()
    try:
        config = AutoConfig.from_pretrained(source.path, **source.arguments)
    except Exception as error:  # whatever a reader of foreign files may raise
        raise _not_loaded(source, error) from error
    text = config.get_text_config(decoder=True)
    if getattr(text, "attn_logit_softcapping", None) is not None:
        raise UsageError(f"--model {source.name} caps its attention logits (soft-cap): not supported yet")
    if text.model_type == "gpt_oss":
        raise UsageError(f"--model {source.name} has learned attention sinks: not supported yet")
    if getattr(text, "kv_lora_rank", None):
        raise UsageError(f"--model {source.name} has latent attention (MLA): not supported yet")
    if rope_scaling is not None:
        _scale_rope(text, rope_scaling, source.name)
    return config


def shape(config: Any) -> Shape:
    """What the config says of the attention layers; raises UsageError where it says too little."""
    text = config.get_text_config(decoder=True)
    try:
        num_layers, num_heads = int(text.num_hidden_layers), int(text.num_attention_heads)
        num_kv_heads = int(getattr(text, "num_key_value_heads", None) or num_heads)
        head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // num_heads)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--model: a {text.model_type} config has no attention heads: {error}") from error
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        sliding = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
        kinds = ["sliding_attention" if sliding else "full_attention"] * num_layers
    return Shape(
        layer_kinds=tuple(kinds),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocabulary=int(text.vocab_size),
        max_tokens=getattr(text, "max_position_embeddings", None),
    )


def choose_device(device: str) -> str:
    """The torch device for "auto", "cpu" or "cuda"; raises UsageError where it is not there."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu or cuda, got {device!r}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device")
    return device


def load_tokenizer(source: Source, vocabulary: int, random_weights: bool) -> Tokenize:
    """The model's own tokenizer. A random model without one gets the prompt's bytes as token ids."""
    from transformers import AutoTokenizer

    local = source.gguf_file is None and Path(source.path).is_dir()
    if random_weights and local and not list(Path(source.path).glob("*token*")):
        return tokenize_bytes(vocabulary)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.arguments)
    except Exception as error:
        raise _not_loaded(source, error, "the tokenizer of ") from error

    def tokenize(text: str) -> list[int]:
        return tokenizer(text, verbose=False)["input_ids"]  # verbose warns of texts longer than the model's

    return tokenize


def load_chat_tokenizer(source: Source) -> Any:
    """The model's tokenizer as transformers has it, with its chat template."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, **source.arguments)
    except Exception as error:
        raise _not_loaded(source, error, "the tokenizer of ") from error


def compute_type(config: Any, device: str) -> Any:
    """The torch type that the model computes in: float32 on the CPU, the type of its config on CUDA."""
    import torch

    return torch.float32 if device == "cpu" else getattr(config, "dtype", None) or torch.bfloat16


def parameters(config: Any) -> int:
    """How many weights a model of this config has; none is made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


def load_model(source: Source, config: Any, device: str, random_weights: bool, seed: int) -> Any:
    """The model, ready to run: float32 on the CPU, the type of its config on CUDA."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = compute_type(config, device)
    try:
        if random_weights:
            torch.manual_seed(seed)
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=source.trust_remote_code
                )
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source.path, config=config, dtype=dtype, **source.arguments
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise _not_loaded(source, error) from error
    return model.to(device).eval()


def _scale_rope(config: Any, scaling: str, name: str) -> None:
    """Sets "yarn:4" or "linear:2" in the config; the model's longest context grows by the factor."""
    kind, _, number = scaling.partition(":")
    if kind not in ROPE_SCALINGS:
        raise UsageError(
            f"--rope-scaling must be one of {', '.join(ROPE_SCALINGS)} and a factor, got {scaling!r}"
        )
    try:
        factor = float(number)
    except ValueError:
        factor = 0.0
    if not 1.0 < factor < float("inf"):
        raise UsageError(f"--rope-scaling must be like {kind}:4, a factor above 1, got {scaling!r}")
    rope = getattr(config, "rope_parameters", None)
    if not rope or "rope_theta" not in rope:
        raise UsageError(f"--rope-scaling: {name} has no rotary embedding, or several: not supported")
    if rope.get("rope_type", "default") != "default":
        raise UsageError(f"--rope-scaling: {name} comes with {rope['rope_type']} scaling already")
    original = config.max_position_embeddings
    scaled = dict(rope) | {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaled["original_max_position_embeddings"] = original
    config.rope_parameters = scaled
    config.max_position_embeddings = int(original * factor)


def _not_loaded(source: Source, error: Exception, what: str = "") -> RunError:
    hint = ""
    if source.gguf_file is not None and isinstance(error, ImportError):
        hint = " (GGUF files need `pip install ra-bench[gguf]`)"
    return RunError(f"{what}model {source.name} could not be loaded: {one_line(error)[:400]}{hint}")


def _quiet() -> None:
    """Keeps the bars and notes of transformers and of the hub off the terminal: `dump` reports by itself."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # or five retries are a line each, where the hub cannot be reached
    logging.set_verbosity_error()
    logging.disable_progress_bar()
