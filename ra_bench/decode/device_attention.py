"""Attention of one decoded token on the model's device, with its log-sum-exp, and the merge of two parts.

Every shape is fixed and nothing waits for the host, so that all of it can be captured in CUDA graphs: tokens
to come have their slots from the start, hidden by a mask until they are there.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch

from ra_bench.decode.tiling import TILINGS

CHUNK_TOKENS = 1024
FLASH_TYPES = (torch.float16, torch.bfloat16)
FLASH_DIM_MULTIPLE, FLASH_DIM_MAX = 8, 256
SPLIT_GROUP_MAX = 16  # query heads a KV head

# Keys and values (H, n, d) of one part of a layer's tokens, and which of them are hidden (n,). A part where
# none is hidden has a multiple of `CHUNK_TOKENS` tokens.
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def attention_over(
    queries: torch.Tensor, parts: Sequence[Part], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `queries` (H, G, d) over all `parts`, of which the first must have a key that is seen.

    By the Triton kernel where it runs. Returns output (H, G, d) and log-sum-exp (H, G), float32.
    """
    if (split := _split_attention(queries)) is not None:
        return split(queries, parts, scale)
    done = [
        long_attention(queries, keys, values, scale)
        if hidden is None
        else masked_attention(queries, keys, values, scale, hidden)
        for keys, values, hidden in parts
    ]
    output, lse = done[0]
    for other_output, other_lse in done[1:]:
        output = merge_two(output, lse, other_output, other_lse)
        lse = torch.logaddexp(lse, other_lse)
    return output, lse


def masked_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `queries` (H, G, d) over `keys` and `values` (H, n, d) that `hidden` (n,) does not mark.

    Returns output (H, G, d) and log-sum-exp (H, G), float32. At least one key must be seen.
    """
    scores = _product(queries, keys.transpose(1, 2)) * scale
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse[..., None])
    return _product(weights.to(values.dtype), values), lse


def long_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`masked_attention` over many keys that are all seen, a multiple of `CHUNK_TOKENS`.

    On CUDA by torch's FlashAttention, with the G query heads in the place of query tokens, so that a key is
    read once, and each chunk of keys as a head of its own, so that one token's attention fills the GPU; the
    chunks are merged by their log-sum-exps (Flash-Decoding, Dao et al. 2023).
    """
    d = queries.shape[-1]
    usable = queries.dtype in FLASH_TYPES and d % FLASH_DIM_MULTIPLE == 0 and d <= FLASH_DIM_MAX
    if not (queries.is_cuda and usable):
        return masked_attention(queries, keys, values, scale)
    chunks = (-1, CHUNK_TOKENS)
    chunked_keys, chunked_values = keys.unflatten(1, chunks), values.unflatten(1, chunks)  # (H, C, L, d)
    many = queries[:, None].expand(-1, chunked_keys.shape[1], -1, -1)
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    outputs, lses = flash(many, chunked_keys, chunked_values, 0.0, False, False, scale=scale)[:2]
    lses = lses[:, :, : queries.shape[1]]  # (H, C, G)
    output = (torch.softmax(lses, 1)[..., None] * outputs).sum(1)
    return output, torch.logsumexp(lses, 1)


def whole_chunks(tokens: int) -> int:
    """How many of `tokens` tokens `long_attention` can take; the rest goes where new tokens come."""
    return tokens - tokens % CHUNK_TOKENS


def merge_two(
    output: torch.Tensor, lse: torch.Tensor, other_output: torch.Tensor, other_lse: torch.Tensor
) -> torch.Tensor:
    """The merged output (H, G, d) of two parts; `ra_bench.attention.merge` for two, on the device.

    The other's share is exp(b) / (exp(a) + exp(b)) = sigmoid(b - a), which no log-sum-exp can overflow. Only
    the other part may be empty (-inf).
    """
    share = torch.sigmoid(other_lse - lse)[..., None]
    return torch.lerp(output, other_output, share)


def _split_attention(queries: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """The kernel that splits the keys, where it can take `queries`."""
    if not queries.is_cuda or queries.dtype not in FLASH_TYPES or queries.shape[1] > SPLIT_GROUP_MAX:
        return None
    return _tried_kernel(queries.device, queries.dtype, queries.shape[2])


@functools.cache
def _tried_kernel(
    device: torch.device, dtype: torch.dtype, d: int
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """The kernel if it compiles and runs for such rows on `device`; asked before anything is captured."""
    if d not in TILINGS:
        return None
    try:
        from ra_bench.decode.split_attention import split_attention

        rows = torch.ones(1, CHUNK_TOKENS, d, dtype=dtype, device=device)
        hidden = torch.zeros(CHUNK_TOKENS, dtype=torch.bool, device=device)
        output, _ = split_attention(rows[:, :1], [(rows, rows, hidden), (rows, rows, None)], 1.0)
        if not torch.allclose(output, torch.ones_like(output), atol=1e-2):
            raise RuntimeError("its mean of ones is not one")
    except Exception as error:  # no Triton, no compiler, too little shared memory
        message = " ".join(str(error).split())[:200]
        warnings.warn(f"attention on the GPU goes without its Triton kernel: {message}", stacklevel=2)
        return None
    return split_attention


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The batched product in float32, whatever the type of the factors: logits need its digits."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
