"""Dense weights and many tokens: rounded to words on the fast path, held to a hard bound and to what fp16 activations
would cost (csrc/cpu/linear_sums.h, linear_prompt_dense.h). On the exact path, and for few tokens: test_linear.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exl2_tui.core.formats import DenseWeight
from exl2_tui.core.ops import Isa, pack_linear, quant_matmul

TOKENS = [5, 6, 7, 16, 33]  # more than any instruction set takes as few
BLOCK = 64  # rows that share a scale
WEIGHT_STEPS = 2**13  # to the largest of a column in a block
MOST_STEPS = 2**15 - 1 - WEIGHT_STEPS  # to the largest activation of a block
MOST_SUM = 2**18 - BLOCK // 2 - 4  # steps to the sum of its magnitudes
HALVES = [torch.float16, torch.bfloat16]

fp64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_of(n: int, k: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (0.02 * torch.randn(n, k, generator=generator(k))).to(dtype)


def activations(tokens: int, features: int) -> Tensor:
    g = generator(tokens)
    return torch.randn(tokens, features, generator=g) * torch.randn(features, generator=g).exp()


def product(x: Tensor, weight: Tensor, isa: Isa, *, exact: bool = False) -> Tensor:
    packed = pack_linear(DenseWeight(weight, None), exact=exact, isa=isa)
    out = torch.full((len(x), len(weight)), float("nan"))
    return quant_matmul(x, packed, out, threads=1 + len(x) % 2)


def rounding_bound(x: Tensor, weight: Tensor) -> Tensor:
    """(M, N): half a step of each factor times the other, what fp32 adds up, and how narrow halves are off."""
    total = torch.zeros(len(x), len(weight), dtype=fp64)
    for xs, ws in zip(x.to(fp64).abs().split(BLOCK, 1), weight.to(fp64).abs().split(BLOCK, 1), strict=True):
        of_x = torch.maximum(xs.amax(1) / MOST_STEPS, xs.sum(1) / MOST_SUM) / 2
        of_w = ws.amax(1) / WEIGHT_STEPS / 2 + 2.0**-17 * ws.max()
        total += torch.outer(of_x, ws.sum(1)) + torch.outer(xs.sum(1), of_w) + BLOCK * torch.outer(of_x, of_w)
    return total + 1e-6 * (x.to(fp64).abs() @ weight.to(fp64).abs().t()) + 1e-30


def check(x: Tensor, weight: Tensor, isa: Isa) -> None:
    wrong = product(x, weight, isa).to(fp64) - x.to(fp64) @ weight.to(fp64).t()
    assert float((wrong.abs() / rounding_bound(x, weight)).max()) <= 1


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (64, 32), (67, 41), (300, 130), (129, 16), (1000, 48)])
def test_every_shape(isa: Isa, dtype: torch.dtype, k: int, n: int) -> None:
    for tokens in TOKENS:
        check(activations(tokens, k), weight_of(n, k, dtype), isa)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_error_is_less_than_that_of_fp16_activations(isa: Isa, dtype: torch.dtype) -> None:
    x, weight = activations(33, 1024), weight_of(64, 1024, dtype)
    outlier = x.clone()
    outlier[:, 100] *= 1e4
    for values in (torch.randn(33, 1024, generator=generator(0)), x, outlier):
        true = values.to(fp64) @ weight.to(fp64).t()
        rounded = values.half().to(fp64) @ weight.to(fp64).t()
        found = product(values, weight, isa)
        assert (found - true).square().mean() <= (rounded - true).square().mean()


@pytest.mark.parametrize("factor", [2.0**-18, 1e-30, 1e30])
def test_activations_of_any_size(isa: Isa, factor: float) -> None:
    check(factor * activations(9, 192), weight_of(32, 192), isa)


def test_one_activation_beyond_all_others(isa: Isa) -> None:
    x = activations(12, 192)
    x[torch.arange(12), torch.arange(12) * 16] *= 1e4
    check(x, weight_of(32, 192), isa)


@pytest.mark.parametrize(("value", "dtype"), [(2.0**-24, HALVES[0]), (65504.0, HALVES[0]), (1e-30, HALVES[1])])
def test_the_smallest_and_the_largest_weights(isa: Isa, value: float, dtype: torch.dtype) -> None:
    signs = 1 - 2 * torch.randint(2, (32, 128), generator=generator(1))
    weight = (value * signs).to(dtype)
    check(activations(8, 128), weight, isa)
    found = product(torch.ones(8, 128), weight, isa)  # all of a block alike: no rounding but that of the scales
    assert torch.allclose(found[0].to(fp64), weight.to(fp64).sum(1), rtol=2e-4, atol=2e-4 * value)


def test_zeros(isa: Isa) -> None:
    weight = weight_of(32, 192)
    assert not product(torch.zeros(8, 192), weight, isa).any()
    assert not product(activations(8, 192), torch.zeros_like(weight), isa).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_of_a_block_just_fits(isa: Isa, sign: int) -> None:
    """All products of the same sign, weights as large as they come, and every activation rounded up."""
    steps = torch.full((BLOCK,), 4000.51, dtype=fp64)
    steps[17] = MOST_SUM - steps[0] * (BLOCK - 1)
    assert steps[17] < MOST_STEPS
    assert 2**18 > steps.round().sum() > MOST_SUM + 28
    alike = torch.ones(BLOCK, dtype=fp64)
    alone = torch.zeros(BLOCK, dtype=fp64)
    alone[3] = MOST_STEPS
    x = torch.stack([steps, alike, alone] * 3).float().repeat(1, 2) / 1000
    weight = torch.full((16, 2 * BLOCK), sign * 0.37).half()
    check(x, weight, isa)
    assert (product(x, weight, isa).sign() == sign).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_visible(isa: Isa, poison: float) -> None:
    x, weight = activations(9, 192), weight_of(32, 192)
    clean = product(x, weight, isa)
    x[4, 100] = poison
    found = product(x, weight, isa)
    assert not torch.isfinite(found[4]).any()
    assert torch.equal(found[torch.arange(9) != 4], clean[torch.arange(9) != 4])
    x[4, 100] = 0
    clean = product(x, weight, isa)
    weight[7, 150] = poison
    found = product(x, weight, isa)
    assert not torch.isfinite(found[:, 7]).any()
    assert torch.equal(found[:, 16:], clean[:, 16:])  # columns of another tile


@pytest.mark.parametrize("dtype", HALVES)
def test_one_token_stays_as_it_is(isa: Isa, dtype: torch.dtype) -> None:
    x, weight = activations(1, 200), weight_of(48, 200, dtype)
    assert torch.equal(product(x, weight, isa), product(x, weight, isa, exact=True))


def test_floats_stay_as_they_are(isa: Isa) -> None:
    x, weight = activations(9, 200), weight_of(48, 200, torch.float32)
    assert torch.equal(product(x, weight, isa), product(x, weight, isa, exact=True))
