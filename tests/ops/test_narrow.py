"""Narrow halves (csrc/cpu/linear_narrow.h): what becomes of each weight, and of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from exl2_tui.core.formats import DenseWeight
from exl2_tui.core.ops import Isa, pack_linear, quant_matmul

fp64 = torch.float64
# Exponents that a block has, bits of the error relative to its largest power of two, share of the memory.
NARROW = {torch.float16: (7, 17, 14 / 16), torch.bfloat16: (15, 22, 12 / 16)}


def halves(dtype: torch.dtype, k: int, n: int, exponents: tuple[int, int]) -> Tensor:
    """(n, k) of either sign, spread evenly over powers of two, and some zeros."""
    g = torch.Generator().manual_seed(k + n)
    low, high = exponents
    size = torch.exp2(low + (high - low) * torch.rand(n, k, generator=g, dtype=fp64))
    return (size * torch.randint(-1, 2, (n, k), generator=g)).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "exponents", "loses"),
    [
        (torch.float16, (-3, 0), False),  # nothing is smaller than what a block holds as it is
        (torch.float16, (-24, 16), True),
        (torch.float16, (-24, -14), False),  # fp16's own subnormals
        (torch.bfloat16, (-10, 0), False),
        (torch.bfloat16, (-126, -80), True),
        (torch.bfloat16, (90, 127), True),
    ],
)
def test_narrow_halves(isa: Isa, dtype: torch.dtype, exponents: tuple[int, int], loses: bool) -> None:
    """Each weight is off by no more than the header says, and larger ones are kept."""
    k, n = 128, 40
    weight = halves(dtype, k, n, exponents)
    packed = pack_linear(DenseWeight(weight, None), isa=isa)
    found = torch.cat([quant_matmul(row[None], packed) for row in torch.eye(k)]).t()

    blocks = pad(weight.to(fp64).abs(), (0, 0, 0, 48 - n)).unflatten(0, (3, 16)).unflatten(2, (2, 64))
    largest = torch.exp2(blocks.amax((1, 3), keepdim=True).log2().floor()).expand_as(blocks)
    largest = largest.flatten(2).flatten(0, 1)[:n]
    kept, error, _ = NARROW[dtype]
    wrong = (found.to(fp64) - weight.to(fp64)).abs()
    assert (wrong <= largest * 2.0**-error).all()
    assert (wrong[weight.abs().to(fp64) >= largest * 2.0 ** (1 - kept)] == 0).all()
    assert bool(wrong.any()) == loses

    exact = pack_linear(DenseWeight(weight, None), exact=True, isa=isa)
    assert torch.equal(quant_matmul(torch.eye(k)[:1], exact)[0], weight[:, 0].float())


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_halves_take_less_memory(dtype: torch.dtype) -> None:
    weight = DenseWeight(torch.zeros(512, 1024, dtype=dtype), None)
    assert pack_linear(weight).nbytes <= (NARROW[dtype][2] + 0.01) * weight.nbytes
    assert pack_linear(weight, exact=True).nbytes <= 1.01 * weight.nbytes


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_stays_visible(isa: Isa, dtype: torch.dtype, poison: float) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[17, 100] = poison
    packed = pack_linear(DenseWeight(weight, None), isa=isa)
    for tokens in (1, 9):
        found = quant_matmul(torch.randn(tokens, 128), packed)
        assert not torch.isfinite(found[:, 17]).any()
        assert torch.isfinite(found[:, [*range(16), *range(32, 48)]]).all()
