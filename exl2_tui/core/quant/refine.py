"""A better solver for the same file format: scales weighted by what errors cost, and passes over codes and scales.

All of it lowers tr(E^T H E) for E the change of the weights, H the Hessian of their inputs. Every step below either
improves that sum or leaves things as they are. Ideas: spec/quantizer.md section 15.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.quant.gptq import Factor, Solution, round_group
from exl2_tui.core.quant.grid import (
    SMALLEST_MAX,
    GroupScales,
    column_codes,
    needed_steps,
    steps_of,
    zero_point,
)
from exl2_tui.core.quant.kernels import search_codes, sequential_round
from exl2_tui.core.quant.recipe import QParams

MAXIMA = tuple(0.60 + 0.05 * step for step in range(12))
"""Factors on the group's largest step that are tried: 0.60 to 1.15, and `fitting_factors`."""
NEIGHBOURS = (-3, -2, -1, 0, 1)
"""Scale codes tried around the one where the largest magnitude just fits."""


def fitting_factors(bits: int) -> tuple[float, float]:
    """Factors at which the largest magnitude falls on the lowest and on the highest code, which an outlier needs."""
    zero = zero_point(bits)
    half = ((1 << bits) - 1) / 2
    return half / zero, half / (zero - 1)


def weighted_search(group: Tensor, bits: int, weights: Tensor) -> GroupScales:
    """Scales that make sum weights_k (w_kn - rounded)^2 small: the best code per column for the best common maximum.

    group (R, N) float32; weights (R,) float32, such as 1 / U_kk^2, which is what an error of row k costs in GPTQ.
    """
    needed = needed_steps(group, bits)
    base = needed.amax().clamp_min(SMALLEST_MAX)
    factors = torch.tensor((*MAXIMA, *fitting_factors(bits)), device=group.device)
    maxima = (base * factors).clamp(SMALLEST_MAX, 65504.0).half()
    middles = torch.stack([column_codes(needed, largest) for largest in maxima.float()])
    codes, totals = search_codes(group, weights, maxima, middles, bits, NEIGHBOURS)
    best = totals.argmin()
    return GroupScales(codes[best], maxima[best], steps_of(codes[best], maxima[best]))


@dataclass(slots=True)
class Working:
    """A layer being refined, in packed row order: target and rounded (K, N) float32, codes (K, N) uint8, and per
    group the bits, first row, end and scales."""

    target: Tensor
    rounded: Tensor
    codes: Tensor
    groups: list[tuple[int, int, int]]
    scales: list[GroupScales]


def refine(
    weight: Tensor,
    factor: Factor,
    params: QParams,
    *,
    passes: int,
    cancel: CancelToken | None = None,
) -> Solution:
    """GPTQ with weighted scales, then `passes` rounds of refitting scales and of coordinate descent on the codes.

    weight (K, N) float32 in the original row order. All of it minimizes the loss with the damped H: with less damping
    the passes would fit the calibration rows too well.
    """
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(
            "the weights hold NaN or infinite values", hint="The source model is damaged: download it again."
        )
    target = weight.float()[factor.perm]
    work, loss = _solve(target, factor, params, cancel)
    for _ in range(passes):
        _refit(work, factor.hessian, cancel)
        _descend(work, factor.hessian, cancel)
    if passes:
        difference = work.rounded - target
        loss = float((difference * (factor.hessian @ difference)).sum(dtype=torch.float64))
    original_order = torch.empty_like(work.rounded)
    original_order[factor.perm] = work.rounded
    return Solution(
        codes=work.codes,
        scale_codes=torch.stack([scale.codes for scale in work.scales]),
        scale_max=torch.stack([scale.scale_max for scale in work.scales]),
        groups=params.groups(weight.shape[0]),
        perm=factor.perm,
        weight=original_order,
        loss=loss,
    )


def _solve(target: Tensor, factor: Factor, params: QParams, cancel: CancelToken | None) -> tuple[Working, float]:
    """GPTQ as in gptq.solve, with the weighted scale search; the loss as well."""
    current = target.clone()
    work = Working(target, torch.empty_like(target), torch.empty_like(target, dtype=torch.uint8), [], [])
    costs = factor.upper.diagonal().square().reciprocal()
    loss = 0.0
    start = 0
    for bits, rows in params.groups(target.shape[0]):
        if cancel is not None:
            cancel.check()
        end = start + rows
        scale = weighted_search(current[start:end], bits, costs[start:end])
        errors = round_group(
            current[start:end], factor.upper[start:end, start:end], scale, bits, work.codes, work.rounded, start
        )
        loss += float(errors.square().sum(dtype=torch.float64))
        if end < len(target):
            current[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1.0)
        work.scales.append(scale)
        work.groups.append((bits, start, end))
        start = end
    return work, loss


def _refit(work: Working, hessian: Tensor, cancel: CancelToken | None) -> None:
    """With the codes fixed, moves every group's scales to where the loss is least.

    In a column the loss is quadratic in the group's step s: with q the codes and E the error there, the best change is
    -(q . H E) / (q . H q). The column's code follows to the nearest step that lowers the loss.
    """
    error = work.rounded - work.target
    for index, (bits, start, end) in enumerate(work.groups):
        if cancel is not None:
            cancel.check()
        scale = work.scales[index]
        rows = slice(start, end)
        q = work.codes[rows].float() - zero_point(bits)
        slope = (q * (hessian[rows] @ error)).sum(dim=0)
        curvature = (q * (hessian[rows, rows] @ q)).sum(dim=0)
        wanted = scale.steps - slope / curvature.clamp_min(1e-20)
        gains: list[tuple[Tensor, Tensor, Tensor]] = []
        # With the columns' codes fixed as well, the loss is quadratic in the maximum.
        share = scale.steps / scale.scale_max.float()
        exact = -(share * slope).sum() / (share.square() * curvature).sum().clamp_min(1e-20)
        largest = scale.scale_max.float()
        for tried in (largest, largest * 0.97, largest * 1.03, largest + exact):
            scale_max = tried.clamp(SMALLEST_MAX, 65504.0).half()
            middle = column_codes(wanted.clamp_min(1e-12), scale_max.float()).to(torch.int16)
            lowest: Tensor | None = None
            chosen = scale.codes
            for offset in (-1, 0, 1):
                codes = (middle + offset).clamp(0, 15).to(torch.uint8)
                delta = steps_of(codes, scale_max) - scale.steps
                cost = 2 * delta * slope + delta.square() * curvature  # exact up to the fp16 rounding of weights
                if lowest is None:
                    lowest, chosen = cost, codes
                else:
                    chosen = torch.where(cost < lowest, codes, chosen)
                    lowest = torch.minimum(lowest, cost)
            assert lowest is not None
            gains.append((lowest.sum(), chosen, scale_max))
        best = min(gains, key=lambda gain: float(gain[0]))
        if float(best[0]) < 0:
            steps = steps_of(best[1], best[2])
            work.scales[index] = GroupScales(best[1], best[2], steps)
            work.rounded[rows] = (q * steps).half().float()
            error[rows] = work.rounded[rows] - work.target[rows]


def _descend(work: Working, hessian: Tensor, cancel: CancelToken | None) -> None:
    """One coordinate-descent pass: every weight in turn takes the code that is best given all others.

    With g = H (target - rounded), the best value of row k is rounded_k + g_k / H_kk. Rows are walked in blocks, so that
    g is brought up to date for the rest with one matrix product per block.
    """
    gradient = hessian @ (work.target - work.rounded)
    for index, (bits, start, end) in enumerate(work.groups):
        if cancel is not None:
            cancel.check()
        rows = slice(start, end)
        before = work.rounded[rows].clone()
        pivots = hessian.diagonal()[rows]
        coupling = hessian[rows, rows] / pivots[:, None]
        base = before + gradient[rows] / pivots[:, None]
        work.rounded[rows], work.codes[rows], change = sequential_round(
            base, before, coupling, torch.ones_like(pivots), work.scales[index].steps, bits
        )
        if end < len(gradient):
            gradient[end:].addmm_(hessian[end:, rows], change)
