"""The refined solver: every part lowers the loss it is meant to lower, natively and in torch alike."""

from __future__ import annotations

import pytest
import torch
from test_gptq import problem

from exl2_tui.core.quant import kernels
from exl2_tui.core.quant.drift import Moments
from exl2_tui.core.quant.gptq import Factor, factorize, round_to_nearest, solve
from exl2_tui.core.quant.grid import classic_search, steps_of
from exl2_tui.core.quant.recipe import QParams, mix
from exl2_tui.core.quant.refine import refine, weighted_search


def loss(weight: torch.Tensor, target: torch.Tensor, hessian: torch.Tensor) -> float:
    difference = (weight - target).double()
    return float((difference * (hessian.double() @ difference)).sum())


@pytest.mark.parametrize("params", [mix(64, 2), mix(32, 3), mix((32, 64), 5, 3, high=(0.2,)), mix(128, 6)])
def test_refining_beats_the_classic_solver_and_each_pass_helps(params: QParams) -> None:
    weight, hessian = problem(256, 96)
    losses = [loss(solve(weight, factorize(hessian), params).weight, weight, hessian)]
    factor = factorize(hessian, 0.02)
    losses += [loss(refine(weight, factor, params, passes=n).weight, weight, hessian) for n in (0, 1, 2)]
    assert losses[1] < 0.9 * losses[0]
    assert losses[2] < losses[1] and losses[3] < 1.001 * losses[2]


def test_the_stored_form_is_the_weight() -> None:
    weight, hessian = problem(160, 70)
    solution = refine(weight, factorize(hessian, 0.02), mix((32, 64), 5, 3, high=(0.2,)), passes=2)
    start = 0
    for index, (bits, rows) in enumerate(solution.groups):
        steps = steps_of(solution.scale_codes[index], solution.scale_max[index])
        values = ((solution.codes[start : start + rows].float() - (1 << (bits - 1))) * steps).half().float()
        assert torch.equal(values, solution.weight[solution.perm[start : start + rows]])
        start += rows
    assert (solution.scale_max >= 2.0**-16).all()


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_weighted_scales_are_no_worse_than_the_classic_ones(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    group = torch.randn(64, 50, generator=generator) * torch.rand(50, generator=generator).exp2()
    weights = torch.rand(64, generator=generator) + 0.1

    def cost(steps: torch.Tensor) -> float:
        zero = 1 << (bits - 1)
        error = torch.round(group / steps).clamp(-zero, zero - 1) * steps - group
        return float((error.square() * weights[:, None]).sum())

    assert cost(weighted_search(group, bits, weights).steps) < cost(classic_search(group, bits).steps)


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (128, 7), (33, 130)])
def test_native_kernels_agree_with_torch(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.is_native(torch.device("cpu")):
        pytest.skip("the compiled library is not here")
    generator = torch.Generator().manual_seed(rows)
    base, reference = torch.randn(2, rows, columns, generator=generator)
    coupling = torch.randn(rows, rows, generator=generator) * 0.05
    pivots, steps = torch.rand(rows, generator=generator) + 0.5, torch.rand(columns, generator=generator) * 0.2 + 0.05
    steps, weights = steps.half().float(), torch.rand(rows, generator=generator)
    maxima = torch.tensor([0.5, 0.003, 1e-4]).half()
    middles = torch.randint(0, 16, (3, columns), generator=generator, dtype=torch.uint8)

    def everything() -> list[torch.Tensor]:
        found = [*kernels.sequential_round(base, None, coupling, pivots, steps, 4)]
        found += kernels.sequential_round(base, reference, coupling, pivots, steps, 3)
        return [*found, *kernels.search_codes(base * 0.1, weights, maxima, middles, 5, (-3, -2, -1, 0, 1))]

    native = everything()
    monkeypatch.setattr(kernels, "is_native", lambda _: False)
    for ours, expected in zip(native, everything(), strict=True):
        assert ours.dtype == expected.dtype
        close = torch.isclose(ours.double(), expected.double(), rtol=1e-4, atol=1e-5)
        assert close.double().mean() > 0.995  # a value between two codes may tip either way


def test_hard_inputs_refined() -> None:
    weight, hessian = problem(64, 32)
    weight[:, :5] = 0
    weight[7, 9] = 1e4
    dead = hessian.clone()
    dead[:20] = dead[:, :20] = 0
    for tried in (dead, torch.zeros(64, 64), torch.outer(torch.ones(64), torch.ones(64))):
        factor: Factor = factorize(tried, 0.02)
        solution = refine(weight, factor, mix(32, 3), passes=2)
        assert torch.isfinite(solution.weight).all() and (solution.weight[:, :5] == 0).all()
        assert torch.isfinite(refine(weight * 1e-8, factor, mix(32, 3), passes=2).weight).all()


def hard(kind: str, rows: int) -> torch.Tensor:
    """Hessians that real models bring: (rows, rows) float32."""
    _, hessian = problem(rows, 1)
    if kind == "rank deficient":
        few = torch.randn(5, rows, generator=torch.Generator().manual_seed(3))
        return few.T @ few
    if kind == "dead columns":
        hessian[: rows // 3] = 0
        hessian[:, : rows // 3] = 0
    if kind == "one huge input":
        hessian[4] *= 1e4
        hessian[:, 4] *= 1e4
    return hessian


@pytest.mark.parametrize("kind", ["usual", "rank deficient", "dead columns", "one huge input"])
@pytest.mark.parametrize(("rows", "params"), [(96, mix(64, 2)), (160, mix(128, 4, 3, high=(0.3,))), (32, mix(32, 8))])
def test_never_worse_than_rounding_to_nearest(kind: str, rows: int, params: QParams) -> None:
    weight, _ = problem(rows, 33, seed=5)
    weight[7, 9] = 1e4  # one outlier
    factor = factorize(hard(kind, rows), 0.02)
    nearest = round_to_nearest(weight, factor.perm, params).weight
    solution = refine(weight, factor, params, passes=2)
    damped = torch.empty_like(factor.hessian)
    damped[factor.perm[:, None], factor.perm] = factor.hessian
    ours = loss(solution.weight, weight, damped)
    assert ours <= loss(nearest, weight, damped)
    assert solution.loss == pytest.approx(ours, rel=0.02)


def test_the_target_that_cancels_drift_is_the_least_squares_solution() -> None:
    """With share 1 and little damping, quantized inputs times the target come closest to what the original adds."""
    generator = torch.Generator().manual_seed(2)
    fresh = torch.randn(400, 24, generator=generator, dtype=torch.float64)
    seen = fresh + 0.2 * torch.randn(400, 24, generator=generator, dtype=torch.float64)
    residual = 0.1 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    moments = Moments((seen.T @ seen).float(), (seen.T @ (fresh - seen)).float(), (seen.T @ residual).float())
    expected = torch.linalg.lstsq(seen, fresh @ weight + residual).solution
    found = moments.target(weight.float(), 1.0, 1e-6)
    assert torch.allclose(found.double(), expected, atol=1e-3)
    halfway = moments.target(weight.float(), 0.5, 1e-6)
    assert torch.allclose(halfway.double(), (weight + expected) / 2, atol=1e-3)
    assert torch.equal(moments.target(weight.float(), 0.0, 0.02), weight.float())
