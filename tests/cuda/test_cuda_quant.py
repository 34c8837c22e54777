"""The quantizer's CUDA loops (csrc/cuda/quant_column.h), compiled for the CPU, against the solver for CPUs."""

from __future__ import annotations

import ctypes

import pytest
import torch
from support.compiled import compile_cpp
from torch import Tensor

from exl2_tui.core.ops import capabilities
from exl2_tui.core.ops.native import isa_code, ops
from exl2_tui.core.quant import kernels

SOURCE = r"""
#include "quant_column.h"
extern "C" float half_of(float value) { return exl2::cuda::through_half(value); }
extern "C" void round_all(const float* base, const float* reference, const float* coupling, const float* pivots,
                          const float* steps, int64_t rows, int64_t columns, int bits, float* delta, float* rounded,
                          uint8_t* codes) {
  const exl2::RoundTask task = {base, reference, coupling, rows,  pivots,  steps,
                                rows, columns,   bits,     delta, rounded, codes};
  for (int64_t column = 0; column < columns; ++column) exl2::cuda::round_column(task, column);
}
extern "C" void search_all(const float* group, const float* weights, const float* units, const uint8_t* middles,
                           int64_t rows, int64_t columns, int64_t maxima, int bits, int first, int last, uint8_t* codes,
                           float* costs) {
  const exl2::SearchTask task = {group, weights, units, middles, rows, columns, maxima, bits, first, last, codes};
  for (int64_t m = 0; m < maxima; ++m)
    for (int64_t column = 0; column < columns; ++column)
      costs[m * columns + column] = exl2::cuda::search_column(task, m, column);
}
"""


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_cpp(tmp_path_factory.mktemp("quant"), SOURCE)
    library.half_of.restype = ctypes.c_float
    return library


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def test_halves_are_rounded_as_torch_rounds_them(columns: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    halves = torch.arange(0, 0x7C00, 7, dtype=torch.int16).view(torch.float16).float()
    values = torch.cat(
        (
            halves,
            (halves[1:] + halves[:-1]) / 2,  # ties and near ties
            torch.randn(2000, generator=generator) * 10 ** torch.randint(-9, 6, (2000,), generator=generator),
            torch.tensor([65504.0, 65519.99, 65520.0, 1e30, 0.0, 2.0**-25, 2.0**-24, 2.0**-14 - 2.0**-26]),
        )
    )
    values = torch.cat((values, -values))
    found = torch.tensor([columns.half_of(ctypes.c_float(value)) for value in values.tolist()])
    assert torch.equal(found, values.half().float())


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize(("rows", "width", "bits"), [(32, 64, 2), (128, 70, 4), (128, 33, 8), (5, 9, 3)])
def test_rounding_gives_the_bits_of_the_cpu(columns: ctypes.CDLL, isa: str, rows: int, width: int, bits: int) -> None:
    if isa not in capabilities().isas:
        pytest.skip(f"this machine does not run {isa} code")
    generator = torch.Generator().manual_seed(rows + bits)
    base, reference = torch.randn(2, rows, width, generator=generator)
    coupling = torch.randn(rows, rows, generator=generator) * 0.05
    pivots = torch.rand(rows, generator=generator) + 0.5
    steps = (torch.rand(width, generator=generator) * 0.2 + 0.01).half().float()
    for given in (None, reference):
        expected = (torch.empty_like(base), torch.empty_like(base), torch.empty(base.shape, dtype=torch.uint8))
        nothing = torch.empty(0)
        inputs = (base, nothing if given is None else given, coupling, pivots, steps, bits)
        ops().quant_round(*inputs, *expected, isa_code(isa), 1)  # type: ignore[arg-type]
        found = tuple(torch.full_like(tensor, 77) for tensor in expected)
        columns.round_all(
            *map(pointer, (base, given, coupling, pivots, steps)),
            ctypes.c_int64(rows),
            ctypes.c_int64(width),
            bits,
            *map(pointer, found),
        )
        for ours, cpus in zip(found, expected, strict=True):
            assert torch.equal(ours, cpus)


def test_the_search_finds_the_codes_of_the_cpu(columns: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    group, weights = torch.randn(64, 50, generator=generator) * 0.1, torch.rand(64, generator=generator)
    maxima = torch.tensor([0.5, 0.003, 1e-4]).half()
    middles = torch.randint(0, 16, (3, 50), generator=generator, dtype=torch.uint8)
    units = (maxima.float() / 256).half().float()
    offsets = (-3, -2, -1, 0, 1)
    codes, costs = torch.full_like(middles, 77), torch.empty(middles.shape)
    columns.search_all(
        *map(pointer, (group, weights, units, middles)),
        *map(ctypes.c_int64, (64, 50, 3)),
        5,
        offsets[0],
        offsets[-1],
        pointer(codes),
        pointer(costs),
    )
    for native in (True, False):  # the compiled solver and the one in torch
        if not native:
            monkeypatch.setattr(kernels, "is_native", lambda _: False)
        expected, totals = kernels.search_codes(group, weights, maxima, middles, 5, offsets)
        assert (codes == expected).double().mean() > 0.99  # two codes may cost the same up to rounding
        assert torch.allclose(costs.sum(1, dtype=torch.float64), totals, rtol=1e-5)
