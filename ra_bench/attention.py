"""Partial attention with its log-sum-exp, and the exact merge of parts.

RetrievalAttention, arXiv 2409.10516, appendix B, equations 4 and 5: with the log-sum-exp of each part, the
outputs of disjoint sets of keys add up to the attention over their union without any approximation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ra_bench.index import Partial

if TYPE_CHECKING:
    import torch

Rows = TypeVar("Rows", np.ndarray, "torch.Tensor")

# Scores of one block of queries stay below this many elements (256 MiB of float32).
BLOCK_ELEMENTS = 1 << 26
# Keys of one block of exact work: on the CPU 64 MiB of float32, so that it needs little memory beside the
# keys, which may lie in a file larger than memory.
KEY_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 30}


def partial_attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, limits: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact attention of `queries` (m, d) over `keys` and `values` (n, d), on the GPU if there is one.

    Queries are already multiplied by the softmax scale. `limits` (m,) lets query i see only the first
    `limits[i]` keys. Returns output (m, d) and log-sum-exp (m,), float32; a query that sees no key gets
    output 0 and log-sum-exp -inf.
    """
    device = best_device()
    n, m = len(keys), len(queries)
    output = np.zeros((m, values.shape[1]), np.float32)
    lse = np.full(m, -np.inf, np.float32)
    if n == 0 or m == 0:
        return output, lse
    step = key_rows(keys, device)
    for first in range(0, n, step):
        of_step = slice(first, first + step)
        limit = None if limits is None else limits - first
        part = _attention_of_keys(queries, keys[of_step], values[of_step], limit, device)
        output, lse = part if first == 0 else merge([(output, lse), part])
    return output, lse


def _attention_of_keys(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, limits: np.ndarray | None, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """`partial_attention` over one block of keys."""
    import torch

    output = np.zeros((len(queries), values.shape[1]), np.float32)
    lse = np.full(len(queries), -np.inf, np.float32)
    keys_t, values_t = on_device(keys, device), on_device(values, device)
    # Scores, and their exponentials beside them: on the CPU both stay small.
    rows = max(1, BLOCK_ELEMENTS // (len(keys) * (1 if device == "cuda" else 4)))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        seen = None if limits is None else torch.tensor(limits[block], device=device)
        part = tensor_attention(on_device(queries[block], device), keys_t, values_t, seen)
        output[block], lse[block] = (tensor.cpu().numpy() for tensor in part)
    return output, lse


def tensor_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, limits: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`partial_attention` for tensors of any float type, on their device and in one block of scores (m, n).

    Computed in float32, also of bfloat16 rows; returns output (m, d) and log-sum-exp (m,), float32.
    """
    import torch

    scores = queries.float() @ keys.float().T  # (m, n)
    if limits is not None:
        columns = torch.arange(len(keys), device=keys.device)
        scores.masked_fill_(columns[None, :] >= limits[:, None], -torch.inf)
    lse = torch.logsumexp(scores, dim=1)
    weights = torch.exp(scores - torch.where(torch.isfinite(lse), lse, 0.0)[:, None])
    return weights @ values.float(), lse


def merge(parts: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    """Merges parts (output (m, d), log-sum-exp (m,)) over disjoint keys into attention over their union.

    Any number of parts, arrays or tensors; tensors stay on their device. Exact up to rounding, computed in
    float64; safe for log-sum-exps of any size, and for empty parts (-inf). Returns float32.
    """
    if isinstance(parts[0][1], np.ndarray):
        return _merge_arrays(parts)
    import torch

    tensors: Any = parts
    lses = torch.stack([lse for _, lse in tensors]).double()  # (parts, m)
    total_lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - torch.where(torch.isfinite(total_lse), total_lse, 0.0))
    merged = torch.zeros_like(tensors[0][0], dtype=torch.float64)
    for weight, (output, _) in zip(weights, tensors, strict=True):
        merged += weight[:, None] * output
    return merged.float(), total_lse.float()


def _merge_arrays(parts: Sequence[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """`merge` in NumPy: for the few rows of a token, torch's calls alone would cost more than the work."""
    lses = np.stack([lse for _, lse in parts]).astype(np.float64)  # (parts, m)
    total_lse = np.logaddexp.reduce(lses, axis=0)
    weights = np.exp(lses - np.where(np.isfinite(total_lse), total_lse, 0.0))
    merged = np.zeros(parts[0][0].shape)
    for weight, (output, _) in zip(weights, parts, strict=True):
        merged += weight[:, None] * output
    return merged.astype(np.float32), total_lse.astype(np.float32)


def key_rows(keys: np.ndarray, device: str) -> int:
    """How many of `keys` (n, d) make a block of exact work on `device`."""
    return max(1, KEY_ELEMENTS[device] // keys.shape[1])


def best_device() -> str:
    """Where exact work is fastest: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Makes torch compute on `threads` of the CPU meanwhile: their number is the whole process's."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_device(rows: np.ndarray, device: str) -> torch.Tensor:
    """A float32 copy of `rows` on `device`; always a copy, since torch must not alias a read-only map."""
    import torch

    return torch.tensor(np.asarray(rows, np.float32), device=device)


def with_mean_value(part: Partial, share: np.ndarray, mean: np.ndarray) -> Partial:
    """`part` over chosen keys that hold `share` (m,) of all mass, with the `mean` value (d,) for the rest.

    SparQ, arXiv 2312.04985, section 4. The log-sum-exp is that of the chosen keys less ln(share): what all
    keys have if the share is right.
    """
    share = np.clip(share, 1e-6, 1.0)[:, None]
    return Partial(share * part.output + (1 - share) * mean, part.lse - np.log(share[:, 0]), part.work)
