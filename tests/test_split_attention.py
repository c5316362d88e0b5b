"""The Triton kernel against plain attention: on a GPU, or with TRITON_INTERPRET=1 by Triton on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

from ra_bench.decode.device_attention import attention_over, masked_attention
from ra_bench.decode.tiling import Tiling

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


@pytest.fixture(scope="module")
def kernel():
    if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and Triton is not told to do without")
    pytest.importorskip("triton")
    from ra_bench.decode import split_attention

    return split_attention


def rows(*shape, seed=0, dtype=torch.float16):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(DEVICE, dtype)


def expected(queries, parts, scale):
    """In float32, over all keys that are seen, in one."""
    seen = [
        torch.ones(keys.shape[1], device=DEVICE) > 0 if hide is None else ~hide for keys, _, hide in parts
    ]
    keys = torch.cat([part[0][:, see] for part, see in zip(parts, seen, strict=True)], 1).float()
    values = torch.cat([part[1][:, see] for part, see in zip(parts, seen, strict=True)], 1).float()
    return masked_attention(queries.float(), keys, values, scale)


@pytest.mark.parametrize(("heads", "group", "d"), [(2, 4, 64), (3, 16, 128), (1, 1, 128), (2, 7, 256)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_is_attention_over_all_that_is_seen(kernel, heads, group, d, dtype):
    if not ON_GPU and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16 products")
    n, m = 1024, 300
    queries, scale = rows(heads, group, d, dtype=dtype), d**-0.5
    long_keys, long_values = (rows(heads, n + 50, d, seed=seed, dtype=dtype)[:, :n] for seed in (1, 2))
    keys, values = (rows(heads, m, d, seed=seed, dtype=dtype) for seed in (3, 4))
    hidden = torch.arange(m, device=DEVICE) >= m // 3  # whole tiles of it
    parts = [(keys, values, hidden), (long_keys, long_values, None)]
    atol = 2e-3 if dtype == torch.float16 else 2e-2
    for some in (parts, parts[:1], parts[1:]):
        found = kernel.split_attention(queries, some, scale)
        for got, want in zip(found, expected(queries, some, scale), strict=True):
            torch.testing.assert_close(got, want, atol=atol, rtol=1e-3)


@pytest.mark.parametrize(("tile", "programs_per_sm"), [(32, 1), (64, 4), (128, 8)])
def test_the_kernel_s_answer_does_not_depend_on_its_tiling(kernel, tile, programs_per_sm):
    queries, keys, values = rows(2, 4, 64), rows(2, 999, 64, seed=1) * 4, rows(2, 999, 64, seed=2)
    tiling = Tiling(tile, programs_per_sm)
    output, lse = kernel.split_attention(queries, [(keys, values, None)], 0.5, tiling)
    want = masked_attention(queries.float(), keys.float(), values.float(), 0.5)
    torch.testing.assert_close(output, want[0], atol=4e-3, rtol=1e-3)
    torch.testing.assert_close(lse, want[1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("keys", [1, 64, 65, 1100, 130_048])
@pytest.mark.parametrize("heads", [1, 8, 300])
def test_ranges_cover_the_keys_once_and_fill_the_gpu(keys, heads):
    sms = 132
    for tiling in (Tiling(64), Tiling(128, 4)):
        ranges, tiles = tiling.ranges(keys, heads, sms)
        assert (ranges - 1) * tiles * tiling.tile < keys <= ranges * tiles * tiling.tile
        if keys == 130_048 and heads == 8:
            assert ranges * heads >= 0.9 * tiling.programs_per_sm * sms


def test_without_the_kernel_parts_are_attended_and_merged():
    queries, scale = rows(2, 3, 16, dtype=torch.float32), 0.25
    keys, values = (rows(2, 90, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    long_keys, long_values = (rows(2, 1024, 16, seed=seed, dtype=torch.float32) for seed in (3, 4))
    parts = [(keys, values, torch.arange(90, device=DEVICE) > 40), (long_keys, long_values, None)]
    for got, want in zip(attention_over(queries, parts, scale), expected(queries, parts, scale), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
def test_on_a_gpu_the_kernel_is_what_attends(monkeypatch):
    queries, keys = rows(2, 4, 128), rows(2, 1024, 128, seed=1)
    monkeypatch.setattr("ra_bench.decode.device_attention.long_attention", None)
    output, _ = attention_over(queries, [(keys, keys, None)], 0.1)
    assert output.shape == (2, 4, 128)
