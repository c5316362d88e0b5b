"""Attention of one token over many keys in Triton, split over the keys (Flash-Decoding, Dao et al. 2023).

A program takes one KV head's G query heads, filled up to the rows of a matrix product, over one range of its
keys, so that a key is read once and one token's attention fills the GPU. A second kernel merges the ranges by
their log-sum-exps. Needs Triton: `ra_bench.decode.device_attention` imports it where a GPU is used.
"""

# ruff: noqa: N803 - Triton's constants are upper case, and its kernels take what Python has no types for
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ra_bench.decode.device_attention import Part
from ra_bench.decode.tiling import TILINGS, Tiling

QUERY_ROWS = 16  # the least that a matrix product of the tensor cores takes
MERGED_RANGES = 16  # of the second kernel, at a time
LN_2 = tl.constexpr(0.6931471805599453)
INTERPRETER_SMS = 4  # where Triton's interpreter runs the kernels on a CPU, in tests


def split_attention(
    queries: torch.Tensor, parts: Sequence[Part], scale: float, tiling: Tiling | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `queries` (H, G, d) over the keys of all `parts` that are not hidden.

    float16 or bfloat16, G up to 16, d of `TILINGS`; rows of keys and values are contiguous. At least one key
    must be seen. Returns output (H, G, d) and log-sum-exp (H, G), float32.
    """
    heads, group, d = queries.shape
    tiling = tiling or TILINGS[d]
    sms = INTERPRETER_SMS
    if queries.is_cuda:
        sms = torch.cuda.get_device_properties(queries.device).multi_processor_count
    plans = [tiling.ranges(keys.shape[1], heads, sms) for keys, _, _ in parts]
    total = sum(ranges for ranges, _ in plans)
    outputs = torch.empty(heads, group, total, d, dtype=torch.float32, device=queries.device)
    lses = torch.empty(heads, group, total, dtype=torch.float32, device=queries.device)
    first = 0
    for (keys, values, hidden), (ranges, tiles) in zip(parts, plans, strict=True):
        _attend_range[(ranges, heads)](
            queries,
            keys,
            values,
            keys if hidden is None else hidden.view(torch.uint8),
            outputs,
            lses,
            scale / LN_2.value,
            keys.shape[1],
            tiles,
            first,
            total,
            group,
            *queries.stride()[:2],
            *keys.stride()[:2],
            *values.stride()[:2],
            D=d,
            TILE=tiling.tile,
            ROWS=QUERY_ROWS,
            SOME_HIDDEN=hidden is not None,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
        first += ranges
    output, lse = torch.empty_like(outputs[:, :, 0]), torch.empty_like(lses[:, :, 0])
    _merge_ranges[(heads * group,)](
        outputs,
        lses,
        output,
        lse,
        total,
        D=d,
        ALL=triton.next_power_of_2(total),
        BLOCK=MERGED_RANGES,
        num_warps=4,
    )
    return output, lse


@triton.jit
def _attend_range(
    queries,
    keys,
    values,
    hidden,
    outputs,
    lses,
    scale_log2,
    n,
    tiles,
    first,
    total,
    group,
    query_head_stride,
    query_stride,
    key_head_stride,
    key_stride,
    value_head_stride,
    value_stride,
    D: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    SOME_HIDDEN: tl.constexpr,
):
    """One range of keys of one head into its place among `total` in `outputs` (H, G, total, D) and `lses`."""
    place = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, D)
    numbers = tl.arange(0, TILE)
    is_query = rows < group
    query = tl.load(
        queries + head * query_head_stride + rows[:, None] * query_stride + columns[None, :],
        mask=is_query[:, None],
        other=0.0,
    )
    keys += head * key_head_stride
    values += head * value_head_stride
    largest = tl.full([ROWS], float("-inf"), tl.float32)  # all in powers of two
    mass = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, D], tl.float32)
    begin = place * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, n)
    for start in range(begin, end, TILE):
        number = start + numbers
        seen = number < end
        at = number.to(tl.int64)
        key = tl.load(keys + at[None, :] * key_stride + columns[:, None], mask=seen[None, :], other=0.0)
        value = tl.load(values + at[:, None] * value_stride + columns[None, :], mask=seen[:, None], other=0.0)
        if SOME_HIDDEN:
            seen = seen & (tl.load(hidden + number, mask=seen, other=1) == 0)
        scores = tl.where(seen[None, :], tl.dot(query, key) * scale_log2, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # nothing seen yet
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(largest - shift)
        mass = mass * shrink + tl.sum(weights, 1)
        output = output * shrink[:, None] + tl.dot(weights.to(value.dtype), value)
        largest = new_largest
    seen_any = mass > 0
    output = output / tl.where(seen_any, mass, 1.0)[:, None]
    lse = tl.where(seen_any, largest * LN_2 + tl.log(tl.where(seen_any, mass, 1.0)), float("-inf"))
    to = (head * group + rows) * total + first + place
    tl.store(outputs + to[:, None] * D + columns[None, :], output, mask=is_query[:, None])
    tl.store(lses + to, lse, mask=is_query)


@triton.jit
def _merge_ranges(outputs, lses, output, lse, total, D: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr):
    """The `total` ranges of one query in `outputs` (H, G, total, D) and `lses` into one."""
    query = tl.program_id(0)
    columns = tl.arange(0, D)
    numbers = tl.arange(0, ALL)
    all_lses = tl.load(lses + query * total + numbers, mask=numbers < total, other=float("-inf"))
    largest = tl.max(all_lses, 0)
    mass = tl.sum(tl.exp(all_lses - largest), 0)
    merged = tl.zeros([D], tl.float32)
    for start in range(0, total, BLOCK):
        number = start + tl.arange(0, BLOCK)
        there = number < total
        part_lses = tl.load(lses + query * total + number, mask=there, other=float("-inf"))
        at = (query * total + number)[:, None] * D + columns[None, :]
        part = tl.load(outputs + at, mask=there[:, None], other=0.0)
        merged += tl.sum(part * tl.exp(part_lses - largest)[:, None], 0)
    tl.store(output + query * D + columns, merged / mass)
    tl.store(lse + query, largest + tl.log(mass))
