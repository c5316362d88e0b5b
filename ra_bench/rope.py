"""Finds out how a model rotates its keys, by trying it: a short input, its keys before and after.

Frequencies and the attention factor are read from the model's rotary module. Which dimensions make a pair is
nowhere written in a model, so both layouts are applied to the unrotated keys, and the one that gives the keys
that reach attention is the model's. Where none does, the rotation is unknown, and the dump says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from ra_bench.head import Layout, Rope

PROBE_TOKENS = 13  # prime, so that no axis of a projection's output can be taken for another

# Where a key comes from in an attention module, the last one before the rotation first.
_KEY_MODULES = ("k_norm", "k_layernorm", "key_layernorm", "key_norm", "k_proj", "key_proj", "qkv_proj")


@dataclass(frozen=True)
class Rotation:
    """How one layer rotates: `layout` is None where it does not, or in a way not known, as `note` tells.

    `rotary` is the model's module that holds the frequencies, `kind` the layer kind that it keeps them for.
    """

    layout: Layout | None
    note: str
    rotary: torch.nn.Module | None = None
    kind: str = ""

    def read(self) -> Rope | None:
        """The rotation as it is now: some scalings set their frequencies by the length of the input."""
        if self.layout is None or self.rotary is None:
            return None
        return _read(self.rotary, self.kind, self.layout)

    def changes_within(self, first_tokens: int, last_tokens: int) -> bool:
        """Whether frequencies change as the input grows between these lengths: no one Rope is true then."""
        if self.rotary is None or first_tokens == last_tokens:
            return False
        scaling = _scaling(self.rotary, self.kind)
        if "dynamic" in scaling:
            return last_tokens >= getattr(self.rotary, "original_max_seq_len", 0)
        if scaling == "longrope":
            parameters = self.rotary.config.rope_parameters
            parameters = parameters.get(self.kind, parameters)
            return first_tokens <= parameters["original_max_position_embeddings"] < last_tokens
        return False


@contextmanager
def watch_unrotated_keys(model: Any) -> Iterator[dict[torch.nn.Module, dict[str, torch.Tensor]]]:
    """Collects, by attention module, what the modules that make its keys put out while it lasts."""
    outputs: dict[torch.nn.Module, dict[str, torch.Tensor]] = {}
    handles = []
    for attention in model.modules():
        if not hasattr(attention, "layer_idx"):
            continue
        for name in _KEY_MODULES:
            child = getattr(attention, name, None)
            if isinstance(child, torch.nn.Module):

                def keep(
                    _: Any, __: Any, out: Any, attention: torch.nn.Module = attention, name: str = name
                ) -> None:
                    outputs.setdefault(attention, {})[name] = out

                handles.append(child.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def find_rotation(
    model: Any, attention: torch.nn.Module, keys: torch.Tensor, unrotated: dict[str, torch.Tensor]
) -> Rotation:
    """How `attention` made `keys` (1, H, n, d), at positions from 0, of one of the `unrotated` outputs."""
    kind = _layer_kind(model, attention)
    rotaries = _rotaries(model, attention, kind)
    captured = keys[0].float().cpu().numpy()
    # A rotation in bfloat16 is as exact as its 8 bits; a wrong layout is off by the size of the keys.
    tolerance = 1e-3 if keys.dtype == torch.float32 else 3e-2
    sources = [name for name in _KEY_MODULES if name in unrotated]
    for name in sources:
        before = _per_head(unrotated[name], keys, attention)
        if before is None:
            continue
        if _distance(before, captured) < tolerance:
            return Rotation(None, f"keys are not rotated after {name}")
        for rotary in rotaries:
            for layout in get_args(Layout):
                rope = _read(rotary, kind, layout)
                if (
                    rope.rotary_dims <= before.shape[-1]
                    and _distance(_rotate(rope, before), captured) < tolerance
                ):
                    return Rotation(layout, "", rotary, kind)
    if not rotaries:
        return Rotation(None, "the model has no rotary module with inverse frequencies")
    if not sources:
        return Rotation(None, f"{type(attention).__name__} has none of {', '.join(_KEY_MODULES)}")
    return Rotation(None, f"no rotation of {' or '.join(sources)} gives the keys that reach attention")


def _rotate(rope: Rope, keys: np.ndarray) -> np.ndarray:
    """All heads of `keys` (H, n, d), rotated to positions from 0."""
    positions = np.arange(keys.shape[1])
    return np.stack([rope.apply(head, positions) for head in keys])


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, in units of the largest key."""
    return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))


def _per_head(out: torch.Tensor, keys: torch.Tensor, attention: torch.nn.Module) -> np.ndarray | None:
    """A key module's output as (H, n, d), or None where it has another shape."""
    _, heads, tokens, dim = keys.shape
    if out.ndim == 3 and out.shape[2] > heads * dim:  # fused: all queries, then keys, then values
        start = out.shape[2] - 2 * heads * dim
        out = out[..., start : start + heads * dim]
    if out.shape == (1, tokens, heads * dim):
        out = out.view(1, tokens, heads, dim)
    if out.shape == (1, tokens, heads, dim):
        out = out.transpose(1, 2)
    if out.shape != keys.shape:
        return None
    return out[0].float().cpu().numpy()


def _layer_kind(model: Any, attention: torch.nn.Module) -> str:
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
    return str(kinds[int(attention.layer_idx)]) if kinds else ""


def _rotaries(model: Any, attention: torch.nn.Module, kind: str) -> list[torch.nn.Module]:
    """The modules that hold inverse frequencies for layers of this kind, the attention's own first."""
    modules = [*attention.modules(), *model.modules()]
    found = [module for module in modules if _frequencies(module, kind) is not None]
    return list(dict.fromkeys(found))


def _frequencies(module: torch.nn.Module, kind: str) -> torch.Tensor | None:
    frequencies = getattr(module, f"{kind}_inv_freq", None)
    return getattr(module, "inv_freq", None) if frequencies is None else frequencies


def _scaling(module: torch.nn.Module, kind: str) -> str:
    scaling: Any = getattr(module, "rope_type", "default")
    return str(scaling.get(kind, "default") if isinstance(scaling, dict) else scaling)


def _read(module: torch.nn.Module, kind: str, layout: Layout) -> Rope:
    frequencies = _frequencies(module, kind)
    assert frequencies is not None
    factor: Any = getattr(module, f"{kind}_attention_scaling", getattr(module, "attention_scaling", 1.0))
    inverse = frequencies.detach().float().cpu().numpy().copy()
    return Rope(inverse, 2 * len(inverse), layout, _scaling(module, kind), float(factor))
