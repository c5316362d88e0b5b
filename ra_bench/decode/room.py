"""Whether a context fits: into the model, into the host's memory and into the GPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ra_bench import dump_plan, models
from ra_bench.errors import UsageError


def check_length(model: dump_plan.Plan, task: str, context: int, longest: int) -> None:
    """Raises UsageError where the model cannot hold the `longest` sample of a task, with its answer."""
    allowed = model.shape.max_tokens
    if allowed is not None and longest > allowed:
        raise UsageError(
            f"--context {context}: {task} needs {longest} tokens with its answer,"
            f" {model.source.name} can hold {allowed}; see --rope-scaling"
        )


def check_memory(model: dump_plan.Plan, indexed_layers: int, dtype: str, context: int) -> None:
    """Raises UsageError where memory cannot hold `context` tokens; `dtype` is that of the indexes' rows."""
    needed, available = _needed_bytes(model, indexed_layers, dtype, context), _available_bytes()
    if available is not None and needed > available:
        raise UsageError(
            f"--context {context}: weights, keys and values of {context} tokens need"
            f" {needed / 1e9:.1f} GB of host memory without the indexes, {available / 1e9:.1f} GB are free"
        )
    if model.device == "cuda":
        _check_gpu(model, context)


def _needed_bytes(model: dump_plan.Plan, indexed_layers: int, dtype: str, tokens: int) -> int:
    """Host memory of weights (on the CPU) and of keys and values in the model's and the index's type."""
    shape = model.shape
    row_elements = 2 * shape.num_kv_heads * shape.head_dim
    model_size = models.compute_type(model.config, model.device).itemsize
    stored_size = np.dtype(dtype).itemsize
    own = tokens * row_elements * len(shape.layer_kinds) * model_size
    stored = tokens * row_elements * indexed_layers * stored_size
    weights = 0 if model.device == "cuda" else models.parameters(model.config) * model_size
    return own + weights + (0 if model_size == stored_size == 4 else stored)


def _available_bytes() -> int | None:
    """Memory that a new process may take, where the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _check_gpu(model: dump_plan.Plan, tokens: int) -> None:
    import torch

    text = model.config.get_text_config(decoder=True)
    shape = model.shape
    size = models.compute_type(model.config, "cuda").itemsize
    weights = models.parameters(model.config) * size
    # The hidden states twice, one layer's keys and values, and a chunk's MLP, small beside them.
    prefill = tokens * size * (2 * text.hidden_size + 2 * shape.num_kv_heads * shape.head_dim)
    free, _ = torch.cuda.mem_get_info()
    if weights + prefill > free:
        raise UsageError(
            f"--context {tokens}: weights need {weights / 1e9:.1f} GB of GPU memory and"
            f" the prefill {prefill / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )
