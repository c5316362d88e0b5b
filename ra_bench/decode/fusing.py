"""Compiles the small parts of a model while a step is captured, so that a graph has fewer and larger kernels.

A norm, an activation or a rotary embedding is up to ten small kernels as a model file has it, and at a token
a step each costs more to start than to run. Compiled in place by `torch.compile`, each is one kernel or two.
Nothing else that calls the model meets them, the prefill above all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

FUSED_MODULES = ("RMSNorm", "LayerNorm", "MLP")  # ends of class names, the same in all families
ROTARY = "apply_rotary_pos_emb"  # a function in the model's file


@contextmanager
def fused(model: torch.nn.Module, backend: str = "inductor") -> Iterator[None]:
    """While it lasts, the norms, MLPs and rotary embeddings of `model` are compiled for the shapes they see.

    Values between fused operations are not rounded to the model's type. What the compiler raises comes with
    the first forward.
    """
    with ExitStack() as undo:
        modules = list(model.modules())
        for module in modules:
            if type(module).__name__.endswith(FUSED_MODULES):
                module.compile(backend=backend, dynamic=False)
                undo.callback(setattr, module, "_compiled_call_impl", None)
        for source in {type(module).__module__ for module in modules}:
            function: Any = getattr(sys.modules[source], ROTARY, None)
            if function is not None:
                undo.callback(setattr, sys.modules[source], ROTARY, function)
                setattr(sys.modules[source], ROTARY, torch.compile(function, backend=backend, dynamic=False))
        yield
