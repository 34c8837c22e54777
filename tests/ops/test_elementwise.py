"""Norm, rope, activation and conversions against the reference, on odd sizes and with outputs poisoned beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exl2_tui.core import ops
from exl2_tui.core.errors import DtypeError, ShapeError
from exl2_tui.core.ops import Isa, native, reference

SIZES = [1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 384, 1000, 4096]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def poisoned(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(like.shape, float("nan"), dtype=dtype)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(isa: Isa, size: int) -> None:
    x, weight = randn(3, size) * 5, randn(size, seed=1)
    out = poisoned(x)
    native.ops().rms_norm(x, weight, 1e-5, out, native.isa_code(isa))
    close(out, reference.rms_norm(x, weight, 1e-5), 2e-6)


@pytest.mark.parametrize(("dim", "half"), [(2, 1), (6, 2), (16, 8), (20, 10), (64, 16), (80, 40), (128, 64), (7, 0)])
def test_rope(isa: Isa, dim: int, half: int) -> None:
    x, angles = randn(5, 3, dim), randn(5, half, seed=1) * 100
    found = ops.rope(x, angles.cos(), angles.sin(), isa=isa)
    close(found, reference.rope(x, angles.cos(), angles.sin()), 1e-6)
    assert torch.equal(found[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("size", SIZES)
def test_silu_mul(isa: Isa, size: int) -> None:
    gate, up = randn(size) * 20, randn(size, seed=1)
    out = poisoned(gate)
    native.ops().silu_mul(gate, up, out, native.isa_code(isa))
    close(out, reference.silu_mul(gate, up), 1e-6)


def test_silu_of_extremes(isa: Isa) -> None:
    gate = torch.tensor([-1e30, -200.0, -88.5, -0.0, 0.0, 88.5, 200.0, 1e30])
    found = ops.silu_mul(gate, torch.ones_like(gate), isa=isa)
    close(found[1:-1], reference.silu_mul(gate, torch.ones_like(gate))[1:-1], 1e-6)
    assert abs(float(found[0])) < 1e-6
    assert float(found[-1]) == pytest.approx(1e30)


def test_exp_is_accurate_over_its_range(isa: Isa) -> None:
    x = torch.linspace(-86.9, 87.9, 200_001)
    out = poisoned(x)
    native.ops().exp(x, out, native.isa_code(isa))
    exact = x.double().exp()
    assert ((out.double() - exact) / exact).abs().max() < 1e-6


def test_exp_of_what_softmax_hides_is_zero(isa: Isa) -> None:
    x = torch.tensor([float("-inf"), -1e30, -200.0, 0.0] * 5)
    out = poisoned(x)
    native.ops().exp(x, out, native.isa_code(isa))
    assert out.tolist() == [0.0, 0.0, 0.0, 1.0] * 5


def test_to_float_of_every_half(isa: Isa) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)[:-3]
        out = torch.empty(x.shape)
        native.ops().to_float(x, out, native.isa_code(isa))
        assert torch.equal(out.nan_to_num(nan=7.0), x.float().nan_to_num(nan=7.0))


def test_to_half_rounds_to_even_and_keeps_subnormals(isa: Isa) -> None:
    halves = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    between = (halves[1:] + halves[:-1]) / 2  # ties
    values = torch.cat((halves, between, between * (1 + 1e-6), between * (1 - 1e-6), randn(1001) * 1e-5))
    values = torch.cat((values, -values))
    out = torch.full(values.shape, float("nan"), dtype=torch.float16)
    native.ops().to_half(values, out, native.isa_code(isa))
    assert torch.equal(out, reference.to_half(values))


def test_to_half_saturates(isa: Isa) -> None:
    x = torch.tensor([1e5, -1e5, float("inf"), float("-inf"), 65519.0] * 7)
    out = torch.empty(x.shape, dtype=torch.float16)
    native.ops().to_half(x, out, native.isa_code(isa))
    assert out.tolist() == [65504.0, -65504.0, 65504.0, -65504.0, 65504.0] * 7


def test_wrong_arguments_are_our_errors() -> None:
    with pytest.raises(DtypeError, match="float32"):
        ops.rms_norm(torch.zeros(2, 4).half(), torch.ones(4), 1e-5)
    with pytest.raises(ShapeError, match=r"\(4,\)"):
        ops.rms_norm(torch.zeros(2, 4), torch.ones(5), 1e-5)
    with pytest.raises(ShapeError):
        ops.rope(torch.zeros(2, 1, 4), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ShapeError):
        ops.silu_mul(torch.zeros(3), torch.zeros(4))
