"""Attention of one decoded token on the model's device, with its log-sum-exp, and the merge of two parts.

Every shape is fixed and nothing waits for the host, so that all of it can be captured in CUDA graphs: tokens
to come have their slots from the start, hidden by a mask until they are there.
"""

from __future__ import annotations

import torch

CHUNK_TOKENS = 1024
FLASH_TYPES = (torch.float16, torch.bfloat16)
FLASH_DIM_MULTIPLE, FLASH_DIM_MAX = 8, 256


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


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The batched product in float32, whatever the type of the factors: logits need its digits."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
