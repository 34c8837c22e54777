"""Activations as whole numbers of three digits, compiled for the CPU: csrc/cuda/fixed.h is the same source on both."""

from __future__ import annotations

import ctypes

import pytest
import torch
from support.compiled import compile_cpp

SOURCE = r"""
#include "fixed.h"
using namespace exl2::cuda;
extern "C" float split(const float* x, float largest, uint32_t* words, int32_t* sum) {
  const FixedPoint fixed(largest);
  float eight[8];
  for (int i = 0; i < 8; ++i) eight[i] = x[i];
  const Digits digits = split_digits(eight, fixed.scale);
  for (int h = 0; h < 2; ++h) {
    words[h] = digits.high[h];
    words[2 + h] = digits.middle[h];
    words[4 + h] = digits.low[h];
  }
  *sum = digits.sum;
  return fixed.unit;
}
"""


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_cpp(tmp_path_factory.mktemp("fixed"), SOURCE)
    library.split.restype = ctypes.c_float
    return library


def split(fixed: ctypes.CDLL, x: torch.Tensor, largest: float) -> tuple[torch.Tensor, int, float]:
    """x (8,) -> its numbers, int64 (2, 4), for rows 0, 2, 1, 3 and 4, 6, 5, 7; their sum; the unit."""
    words, total = (ctypes.c_uint32 * 6)(), ctypes.c_int32()
    values = (ctypes.c_float * 8)(*x.tolist())
    unit = fixed.split(values, ctypes.c_float(largest), words, ctypes.byref(total))
    digits = torch.frombuffer(bytearray(words), dtype=torch.int8).view(3, 2, 4).long()
    return (digits * torch.tensor([65536, 256, 1])[:, None, None]).sum(0), total.value, unit


def activations(count: int, spread: float, seed: int) -> torch.Tensor:
    """fp16 numbers, (count, 8) float32, of sizes that differ by up to 2^spread."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(-spread * torch.rand(count, 8, generator=generator))
    return (torch.randn(count, 8, generator=generator) * sizes).half().float()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3000.0])
def test_products_with_codes_are_exact_where_the_numbers_are(fixed: ctypes.CDLL, scale: float) -> None:
    """Up to 4 bits, as codes.h unpacks them: first + 16 second, and 16 second."""
    x = (activations(300, 4, 1) * scale).half().float()
    largest = float(x.abs().max())
    exact = x.double()
    # With a power of two between the largest and the smallest exact one (fixed.h).
    kept = (x == 0) | (x.abs() >= largest / 128)
    x, exact = torch.where(kept, x, 0), torch.where(kept, exact, 0)
    codes = torch.randint(0, 16, (300, 8), generator=torch.Generator().manual_seed(2))
    for row, wanted, code in zip(x, exact, codes, strict=True):
        numbers, total, unit = split(fixed, row, largest)
        first, second = code[[0, 2, 1, 3]], code[[4, 6, 5, 7]]
        found = ((first + 16 * second) * numbers[0] + 16 * second * numbers[1]).sum()
        assert float(found) * unit == float((code * wanted).sum())
        assert total * unit == float(wanted.sum())


def test_small_numbers_are_off_by_less_than_the_rounding_of_the_largest(fixed: ctypes.CDLL) -> None:
    x = activations(300, 20, 3)
    largest = float(x.abs().max())
    for row in x:
        numbers, _, unit = split(fixed, row, largest)
        found = torch.stack([numbers[0], 16 * (numbers[1] + numbers[0])]).double() * unit
        wanted = row[[0, 2, 1, 3, 4, 6, 5, 7]].view(2, 4).double()
        assert float((found - wanted).abs().max()) <= largest * 2.0**-18


def test_twice_the_largest_still_fits(fixed: ctypes.CDLL) -> None:
    x = torch.tensor([1.999, -1.999, 0.5, 0, -1.999, 1.999, 0, -0.001])
    numbers, total, unit = split(fixed, x, 1.0)
    assert float((numbers[0].double() * unit - x[[0, 2, 1, 3]].double()).abs().max()) < 2.0**-21
    assert total * unit == pytest.approx(float(x.double().sum()), abs=2.0**-17)


def test_nothing_but_zeros(fixed: ctypes.CDLL) -> None:
    numbers, total, unit = split(fixed, torch.zeros(8), 0.0)
    assert not numbers.any()
    assert total == 0
    assert unit > 0
