"""The classic recipe: tied candidates per half, measured on the original stream, quantized with drifting inputs.

The baseline, as the reference converter has it. Source: spec/quantizer.md sections 5 to 9.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.quant.gptq import Factor, Solution, factorize, round_to_nearest, solve
from exl2_tui.core.quant.halves import Half, HessianSum, batches, collect, relative_error, run
from exl2_tui.core.quant.measurement import MeasuredOption
from exl2_tui.core.quant.recipe import QParams, classic_attention_options, classic_mlp_options

ROUNDED_HEAD = 1_000_000_000
"""Weights above which a head is rounded to nearest."""
WORST_BEST_ACCURACY = 0.1
"""If not even the best option of a half reaches this, the model or the text is broken."""


@dataclass(frozen=True, slots=True)
class QuantizedHalf:
    """Solutions by short name, seconds each took, and the half's relative output error."""

    solutions: dict[str, Solution]
    seconds: dict[str, float]
    error: float


def options_of(half: Half) -> tuple[dict[str, QParams], ...]:
    return classic_attention_options() if half.key.endswith("self_attn") else classic_mlp_options()


def transposed(half: Half, short: str) -> Tensor:
    """The weight (K, N) float32 of a linear."""
    return half.linears[short].weight.float().T.contiguous()


def named(half: Half, short: str, work: Callable[[], Solution]) -> Solution:
    """Runs `work` and names the linear in any error."""
    try:
        return work()
    except QuantizationError as error:
        raise QuantizationError(error.message, tensor=f"{half.full_name(short)}.weight", hint=error.hint) from None


def factors(half: Half, hessians: Mapping[str, Tensor]) -> dict[str, Factor]:
    """One factorisation per stage, by the short name of every linear in it."""
    found: dict[str, Factor] = {}
    for stage in half.stages:
        try:
            factor = factorize(hessians[stage[0]])
        except QuantizationError as error:
            raise QuantizationError(error.message, tensor=half.full_name(stage[0]), hint=error.hint) from None
        found.update(dict.fromkeys(stage, factor))
    return found


def measure(half: Half, states: Tensor, cancel: CancelToken | None) -> tuple[list[MeasuredOption], Tensor]:
    """Tries every option on states (R, T, C) float16; returns them with their errors and the original output."""
    hessians, reference = collect(half, states, cancel)
    shared = factors(half, hessians)
    options = options_of(half)
    candidates: dict[tuple[str, QParams], Tensor] = {}
    for short, linear in half.linears.items():
        weight = transposed(half, short)
        for params in dict.fromkeys(option[short] for option in options):
            solution = named(half, short, partial(solve, weight, shared[short], params, cancel))
            candidates[short, params] = solution.weight.T.to(
                linear.weight.dtype if linear.weight.is_cuda else torch.float16
            )
    originals = {short: linear.weight for short, linear in half.linears.items()}
    measured: list[MeasuredOption] = []
    try:
        for option in options:
            total = 0
            for short, params in option.items():
                linear = half.linears[short]
                total += params.total_bits(linear.weight.shape[1], linear.weight.shape[0])
                linear.weight = candidates[short, params].to(originals[short].dtype)
            measured.append(MeasuredOption(option, total, relative_error(run(half, states, cancel), reference)))
    finally:
        for short, weight in originals.items():
            half.linears[short].weight = weight
    best = min(option.error for option in measured)
    if 1 - best < WORST_BEST_ACCURACY:
        raise QuantizationError(
            f"even the best candidate has an error of {best:.2f}",
            tensor=half.key,
            hint="The source model or the calibration text is not what it seems.",
        )
    return measured, reference


def quantize(
    half: Half, states: Tensor, recipes: Mapping[str, QParams], cancel: CancelToken | None
) -> tuple[QuantizedHalf, Tensor]:
    """Quantizes a half on the drifting states (R, T, C) float16 and installs the result; returns its output states."""
    hessians, target = collect(half, states, cancel)
    shared = factors(half, hessians)
    solutions: dict[str, Solution] = {}
    seconds: dict[str, float] = {}
    for short in half.linears:
        started = time.perf_counter()
        weight = transposed(half, short)
        solutions[short] = named(half, short, partial(solve, weight, shared[short], recipes[short], cancel))
        seconds[short] = time.perf_counter() - started
    for short, solution in solutions.items():
        linear = half.linears[short]
        linear.weight = solution.weight.T.to(linear.weight.dtype).contiguous()
    result = run(half, states, cancel)
    return QuantizedHalf(solutions, seconds, relative_error(result, target)), result


def head(
    norm: RMSNorm, linear: Linear, states: Tensor, params: QParams, cancel: CancelToken | None
) -> tuple[Solution, float]:
    """Quantizes the output head on states (R, T, C) float16; returns the relative error of its output too.

    Very large heads are rounded to nearest, since their error feedback would take hours.
    """
    hessian = HessianSum(linear.weight.shape[1], linear.weight.device)
    for _, x in batches(states, cancel):
        hessian(norm.forward(x))
    mean = hessian.total / states.shape[0]
    weight = linear.weight.float().T.contiguous()
    try:
        factor = factorize(mean)
        if weight.numel() > ROUNDED_HEAD:
            solution = round_to_nearest(weight, factor.perm, params)
        else:
            solution = solve(weight, factor, params, cancel)
    except QuantizationError as error:
        raise QuantizationError(error.message, tensor="lm_head.weight", hint=error.hint) from None
    difference = solution.weight - weight
    lost = (difference * (mean @ difference)).sum()
    whole = (weight * (mean @ weight)).sum()
    return solution, float((lost / whole.clamp_min(1e-12)).clamp_min(0.0).sqrt())
