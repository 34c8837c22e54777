from __future__ import annotations

import pytest
import torch

from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.formats import packing
from exl2_tui.core.quant import kernels
from exl2_tui.core.quant.gptq import factorize, round_to_nearest, solve
from exl2_tui.core.quant.grid import classic_search, needed_steps
from exl2_tui.core.quant.recipe import mix


@pytest.mark.parametrize(
    ("bits", "largest", "scale_max"),
    [
        (3, 0.00833907, 0x2091),
        (4, 0.00389156, 0x1C1E),
        (5, 0.00188302, 0x1811),
        (6, 0.00092656, 0x141F),
        (8, 0.00022892, 0x0C12),
    ],
)
def test_scale_search_vector_of_the_spec(bits: int, largest: float, scale_max: int) -> None:
    k, n = torch.meshgrid(torch.arange(32).double(), torch.arange(32).double(), indexing="ij")
    group = (0.01 * (1 + n / 16) * torch.sin(0.7 * k + n)).float()
    scale = classic_search(group, bits)
    assert float(needed_steps(group, bits).amax()) == pytest.approx(largest, abs=1e-8)
    assert scale.codes[::4].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert int(scale.scale_max.view(torch.int16)) == scale_max


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (K, N) and a Hessian with strongly correlated, unequal inputs."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rows, rows, generator=generator) * torch.logspace(0, -2, rows)
    inputs = torch.randn(4 * rows, rows, generator=generator) @ basis + torch.randn(4 * rows, rows, generator=generator)
    return torch.randn(rows, columns, generator=generator) * 0.02, inputs.T @ inputs / 4


def textbook(weight: torch.Tensor, hessian: torch.Tensor, bits: int) -> torch.Tensor:
    """One group, 32-bit GPTQ written by the letter of the spec in float64 loops, as an independent check."""
    perm = torch.argsort(hessian.diagonal(), descending=True)
    w, h = weight[perm].double(), hessian[perm][:, perm].double()
    h += torch.eye(len(h), dtype=torch.float64) * max(0.12 * float(hessian.diagonal().mean()), 1e-5)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    steps = classic_search(w.float(), bits).steps.double()
    zero, out = 1 << (bits - 1), torch.empty_like(w)
    for k in range(len(w)):
        code = (torch.round(w[k] / steps) + zero).clamp(0, (1 << bits) - 1)
        out[k] = ((code - zero) * steps).half().double()
        error = (w[k] - out[k]) / upper[k, k]
        w[k:] -= torch.outer(upper[k, k:], error)
    result = torch.empty_like(out)
    result[perm] = out
    return result


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_solver_equals_the_textbook(bits: int) -> None:
    weight, hessian = problem(64, 40)
    found = solve(weight, factorize(hessian), mix(64, bits)).weight.double()
    expected = textbook(weight, hessian, bits)
    different = (found - expected).abs() > 1e-7
    assert different.double().mean() < 0.01  # float32 may tip a value that lies between two codes


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_beats_rounding_to_nearest(bits: int) -> None:
    weight, hessian = problem(256, 96)
    params = mix(64, bits)

    def loss(candidate: torch.Tensor) -> float:
        difference = (candidate - weight).double()
        return float((difference * (hessian.double() @ difference)).sum())

    factor = factorize(hessian)
    solution = solve(weight, factor, params)
    assert loss(solution.weight) < 0.7 * loss(round_to_nearest(weight, factor.perm, params).weight)


def test_reported_loss_is_the_damped_proxy_loss() -> None:
    weight, hessian = problem(96, 40)
    factor = factorize(hessian)
    solution = solve(weight, factor, mix(32, 4, 3, high=(0.3,)))
    difference = (solution.weight - weight).double()
    damped = hessian.double() + factor.damping * torch.eye(96, dtype=torch.float64)
    assert solution.loss == pytest.approx(float((difference * (damped @ difference)).sum()), rel=1e-3)


def test_codes_and_scales_reproduce_the_weight() -> None:
    weight, hessian = problem(160, 64)
    solution = solve(weight, factorize(hessian), mix((32, 64), 5, 3, high=(0.2,)))
    unit = (solution.scale_max / 256).half()
    start = 0
    for index, (bits, rows) in enumerate(solution.groups):
        steps = ((solution.scale_codes[index].half() + 1).square() * unit[index]).half()
        values = ((solution.codes[start : start + rows].half() - (1 << (bits - 1))) * steps).half()
        assert torch.equal(values.float(), solution.weight[solution.perm[start : start + rows]])
        start += rows


def test_hard_inputs() -> None:
    weight, hessian = problem(64, 32)
    params = mix(32, 3)
    zero_columns = weight.clone()
    zero_columns[:, :7] = 0
    assert (solve(zero_columns, factorize(hessian), params).weight[:, :7] == 0).all()
    assert (solve(torch.zeros(64, 32), factorize(hessian), params).weight == 0).all()

    outlier = weight.clone()
    outlier[5, 5] = 1e4
    assert float(solve(outlier, factorize(hessian), params).weight[5, 5]) == pytest.approx(1e4, rel=0.35)

    tiny = solve(weight * 1e-6, factorize(hessian), params)
    assert torch.isfinite(tiny.weight).all() and (tiny.scale_max > 0).all()

    rank_one = torch.outer(torch.ones(64), torch.ones(64))
    assert torch.isfinite(solve(weight, factorize(rank_one), params).weight).all()
    dead = hessian.clone()
    dead[:, :20] = 0
    dead[:20] = 0
    assert torch.isfinite(solve(weight, factorize(dead), params).weight).all()
    assert torch.isfinite(solve(weight, factorize(torch.zeros(64, 64)), params).weight).all()

    with pytest.raises(QuantizationError, match="NaN"):
        solve(weight.index_fill(0, torch.tensor([3]), float("nan")), factorize(hessian), params)
    with pytest.raises(QuantizationError, match="not finite"):
        factorize(torch.full((64, 64), float("inf")))


@pytest.mark.parametrize("bits", packing.CODE_BITS)
@pytest.mark.parametrize(("rows", "columns"), [(32, 1), (96, 33), (256, 200)])
def test_packing_natively_gives_the_same_words(bits: int, rows: int, columns: int) -> None:
    assert kernels.is_native(torch.device("cpu"))
    codes = torch.randint(0, 1 << bits, (columns, rows), dtype=torch.uint8).t()  # not contiguous
    assert torch.equal(kernels.pack_rows(codes, bits), packing.pack_rows(codes, bits))
    if bits < 8:
        codes[rows - 1, columns - 1] = 1 << bits
        with pytest.raises(RuntimeError, match="does not fit"):
            kernels.pack_rows(codes, bits)
