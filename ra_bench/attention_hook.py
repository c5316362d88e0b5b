"""An attention function of our own in a model's place, through transformers' attention interface.

No model file is patched: a model asks the interface for its attention function by name, and for the function
that makes its mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ra_bench.errors import UsageError

# What an attention layer passes beside q, k and v that would make q·k something other than the logit.
_REFUSED = {
    "softcap": "attention soft-cap",
    "s_aux": "learned attention sinks",
    "position_bias": "position bias",
}


def implementation(model: Any) -> str:
    """The name of the attention function that `model` uses now, as "sdpa"."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation)


@contextmanager
def attending(
    model: Any, name: str, attention: Callable[..., Any], mask: Callable[..., Any]
) -> Iterator[None]:
    """While it lasts, `model` attends by `attention`, with the masks that `mask` makes, both under `name`.

    Both take what transformers passes to such functions. The mask function must be registered with the
    attention function: without one transformers makes no mask at all and, for an attention that does not know
    `is_causal`, drops causality without a word.
    """
    original = implementation(model)
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(original)
        # The interface is global: what it holds would live on, with the keys and indexes behind it.
        AttentionInterface.register(name, _left)
        AttentionMaskInterface.register(name, _left)


def _left(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this attention was left")


def own_attention(module: torch.nn.Module, name: str) -> Callable[..., Any]:
    """The attention function that the interface has under `name` for `module`, "eager" included."""
    source = sys.modules[type(module).__module__]  # a model file may have an interface of its own
    functions = getattr(source, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    function: Callable[..., Any] = functions.get(name, getattr(source, "eager_attention_forward", None))
    return function


def check_logits(layer: int, arguments: dict[str, Any]) -> None:
    """Raises UsageError where the keyword arguments of an attention call make q·k not its logit."""
    for name, what in _REFUSED.items():
        if arguments.get(name) is not None:
            raise UsageError(f"--model: layer {layer} has {what}: not supported yet")
