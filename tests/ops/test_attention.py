"""Attention over the tiled cache against softmax written out, and what the cache stores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exl2_tui.core import ops
from exl2_tui.core.errors import ShapeError, UnsupportedError
from exl2_tui.core.ops import Isa, NativeCache, reference

# heads, kv heads, head_dim, cached tokens before, query tokens, window
CASES = [
    (1, 1, 1, 0, 1, None),
    (4, 4, 64, 0, 1, None),
    (6, 2, 64, 37, 1, None),
    (8, 1, 16, 300, 1, None),
    (7, 1, 80, 129, 1, None),
    (12, 4, 128, 511, 1, None),
    (3, 3, 40, 16, 5, None),
    (4, 2, 6, 3, 33, None),
    (8, 2, 64, 0, 70, None),
    (14, 2, 96, 130, 19, None),
    (2, 1, 512, 20, 3, None),
    (4, 2, 32, 200, 1, 17),
    (4, 2, 32, 10, 40, 7),
    (9, 3, 20, 140, 30, 128),
    (2, 2, 8, 50, 3, 1),
    (4, 1, 32, 0, 12, 1000),
]


def filled(
    kind: str, kv_heads: int, dim: int, count: int, isa: Isa, *, spare: int = 5
) -> tuple[NativeCache, Tensor, Tensor]:
    """A cache of two layers poisoned with NaN, its second one filled; and the keys and values (T, G, D)."""
    generator = torch.Generator().manual_seed(count + dim)
    key = torch.randn(count, kv_heads, dim, generator=generator)
    value = torch.randn(count, kv_heads, dim, generator=generator)
    cache = NativeCache(2, kv_heads, dim, count + spare, kind)
    for tensor in cache.tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
    ops.cache_store(cache, 1, 0, key, value, isa=isa)
    return cache, key, value


@pytest.mark.parametrize("kind", ["fp16", "q8"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "past", "count", "window"), CASES)
def test_attention(
    isa: Isa, kind: str, heads: int, kv_heads: int, dim: int, past: int, count: int, window: int | None
) -> None:
    cache, _, _ = filled(kind, kv_heads, dim, past + count, isa)
    q = torch.randn(count, heads, dim, generator=torch.Generator().manual_seed(7)) * 2 / dim**0.5
    keys, values = cache.read(1, past + count)
    expected = reference.attention(q, keys, values, past, window)
    found = ops.attention(q, cache, 1, past, window, isa=isa)
    assert (found - expected).abs().max() < 3e-6 * values.abs().max()


@pytest.mark.parametrize("dim", [1, 6, 16, 40, 64, 128])
def test_fp16_cache_stores_what_torch_rounds(isa: Isa, dim: int) -> None:
    cache, key, value = filled("fp16", 3, dim, 45, isa)
    keys, values = cache.read(1, 45)
    assert torch.equal(keys, reference.to_half(key).float().transpose(0, 1))
    assert torch.equal(values, reference.to_half(value).float().transpose(0, 1))
    assert torch.isnan(cache.k[0]).all(), "another layer was touched"


@pytest.mark.parametrize("dim", [1, 6, 32, 40, 64, 128])
def test_q8_cache_stores_the_reference_codes(isa: Isa, dim: int) -> None:
    cache, key, value = filled("q8", 3, dim, 45, isa)
    for found, x in zip(cache.read(1, 45), (key, value), strict=True):
        expected = reference.dequantize_q8(*reference.quantize_q8(x)).transpose(0, 1)
        # A value on the edge between two codes may fall either way.
        step = reference.quantize_q8(x)[1].float().max()
        assert (found - expected).abs().max() <= step * 1.001
        assert (found != expected).float().mean() < 1e-3
        blocks = x.abs().max()
        assert (found - x.transpose(0, 1)).abs().max() <= blocks / 127


def test_q8_of_zeros_and_of_huge_values(isa: Isa) -> None:
    cache = NativeCache(1, 1, 32, 16, "q8")
    rows = torch.stack((torch.zeros(32), torch.full((32,), 3e7), torch.linspace(-1e-7, 1e-7, 32)))[:, None]
    ops.cache_store(cache, 0, 0, rows, rows, isa=isa)
    keys, values = cache.read(0, 3)
    assert torch.equal(keys[0, 0], torch.zeros(32))
    assert torch.isfinite(values).all()


def test_one_token_at_a_time_equals_many_at_once(isa: Isa) -> None:
    cache, _, _ = filled("fp16", 2, 64, 150, isa)
    q = torch.randn(150, 6, 64, generator=torch.Generator().manual_seed(3)) / 8
    together = ops.attention(q, cache, 1, 0, isa=isa)
    for t in (0, 1, 15, 16, 17, 127, 128, 129, 149):
        alone = ops.attention(q[t : t + 1], cache, 1, t, isa=isa)
        assert (alone[0] - together[t]).abs().max() < 1e-5


def test_scores_far_apart_do_not_overflow(isa: Isa) -> None:
    cache, _, _ = filled("fp16", 1, 16, 200, isa)
    q = torch.full((1, 1, 16), 300.0)
    keys, values = cache.read(1, 200)
    found = ops.attention(q, cache, 1, 199, isa=isa)
    assert (found - reference.attention(q, keys, values, 199)).abs().max() < 1e-5


def test_cache_limits() -> None:
    with pytest.raises(UnsupportedError, match="512"):
        NativeCache(1, 1, 513, 8)
    with pytest.raises(UnsupportedError, match="q4"):
        NativeCache(1, 1, 8, 8, "q4")
    cache = NativeCache(1, 2, 8, 20)
    with pytest.raises(ShapeError):
        ops.cache_store(cache, 0, 18, torch.zeros(3, 2, 8), torch.zeros(3, 2, 8))
    with pytest.raises(ShapeError):
        ops.attention(torch.zeros(1, 3, 8), cache, 0, 0)
    with pytest.raises(ShapeError):
        cache.truncate(1)
