"""Adaptive GPTQ of one linear layer: round row by row, push every rounding error into the rows still to come.

Works on plain tensors: it knows nothing of models, files or calibration. Weights are held transposed, (K, N) float32
with K input features. Source: spec/quantizer.md section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.quant.grid import GroupScales, classic_search, zero_point
from exl2_tui.core.quant.kernels import sequential_round
from exl2_tui.core.quant.recipe import QParams

CLASSIC_DAMPING = 0.12
DAMPING_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Factor:
    """What all candidates of one Hessian share.

    perm (K,) int64: input features by falling diag(H). upper (K, K) float32: upper Cholesky factor U of the inverse of
    the permuted, damped H, so that H^-1 = U^T U. hessian (K, K) float32: that H itself. damping: what was added to its
    diagonal in the end.
    """

    perm: Tensor
    upper: Tensor
    hessian: Tensor
    damping: float


@dataclass(frozen=True, slots=True)
class Solution:
    """A quantized linear in packed row order.

    codes (K, N) uint8; scale_codes (G, N) uint8; scale_max (G,) float16; perm (K,) int64; groups: (bits, rows) of each.
    weight (K, N) float32 in the original row order, holding exactly the stored fp16 values.
    loss: tr(E^T H E) with the damped H, for E the difference to the weights that were asked for.
    """

    codes: Tensor
    scale_codes: Tensor
    scale_max: Tensor
    groups: tuple[tuple[int, int], ...]
    perm: Tensor
    weight: Tensor
    loss: float


def factorize(hessian: Tensor, damping: float = CLASSIC_DAMPING) -> Factor:
    """Orders, damps and inverts a Hessian (K, K) float32; it is not changed.

    Raises QuantizationError if it is not finite or cannot be inverted with ten times the damping.
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise QuantizationError(
            "the activations that calibrate this layer are not finite",
            hint="Check the source model: its activations overflow on the calibration text.",
        )
    perm = torch.argsort(diagonal, descending=True, stable=True)
    ordered = hessian[perm][:, perm].float()
    step = max(damping * float(diagonal.mean()), 1e-5)
    added = 0.0
    for _ in range(DAMPING_ATTEMPTS):
        ordered.diagonal().add_(step)
        added += step
        lower, failed = torch.linalg.cholesky_ex(ordered)
        if int(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(torch.isfinite(upper).all()):
            return Factor(perm, upper.contiguous(), ordered, added)
    raise QuantizationError(
        f"the Hessian of this layer cannot be inverted, even with {added:.3g} added to its diagonal",
        hint="Use more, or more varied, calibration text.",
    )


def solve(weight: Tensor, factor: Factor, params: QParams, cancel: CancelToken | None = None) -> Solution:
    """Quantizes weight (K, N) float32 (original row order, unchanged) with the classic scale search."""
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(
            "the weights hold NaN or infinite values", hint="The source model is damaged: download it again."
        )
    groups = params.groups(weight.shape[0])
    current = weight.float()[factor.perm]
    codes = torch.empty(current.shape, dtype=torch.uint8, device=current.device)
    rounded = torch.empty_like(current)
    scales: list[GroupScales] = []
    loss = 0.0
    start = 0
    for bits, rows in groups:
        if cancel is not None:
            cancel.check()
        end = start + rows
        scale = classic_search(current[start:end], bits)
        errors = round_group(current[start:end], factor.upper[start:end, start:end], scale, bits, codes, rounded, start)
        loss += float(errors.double().square().sum())
        if end < current.shape[0]:
            current[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1.0)
        scales.append(scale)
        start = end
    original_order = torch.empty_like(rounded)
    original_order[factor.perm] = rounded
    return Solution(
        codes=codes,
        scale_codes=torch.stack([scale.codes for scale in scales]),
        scale_max=torch.stack([scale.scale_max for scale in scales]),
        groups=groups,
        perm=factor.perm,
        weight=original_order,
        loss=loss,
    )


def round_group(
    current: Tensor, upper: Tensor, scale: GroupScales, bits: int, codes: Tensor, rounded: Tensor, start: int
) -> Tensor:
    """Rounds one group with feedback inside it; returns the scaled errors (R, N) for the rows after it.

    current (R, N) float32; upper (R, R) is the group's block of U; rows start.. of codes and rounded are written.
    """
    rows = slice(start, start + current.shape[0])
    rounded[rows], codes[rows], errors = sequential_round(
        current, None, upper.T.neg(), upper.diagonal(), scale.steps, bits
    )
    return errors


def round_to_nearest(weight: Tensor, hessian_order: Tensor, params: QParams) -> Solution:
    """Same order and scales without feedback, for output heads too large to solve. loss is 0: it is not known."""
    groups = params.groups(weight.shape[0])
    current = weight.float()[hessian_order]
    codes = torch.empty(current.shape, dtype=torch.uint8, device=current.device)
    rounded = torch.empty_like(current)
    scales: list[GroupScales] = []
    start = 0
    for bits, rows in groups:
        block = current[start : start + rows]
        scale = classic_search(block, bits)
        zero = zero_point(bits)
        code = torch.round(block / scale.steps).add_(zero).clamp_(0, (1 << bits) - 1)
        codes[start : start + rows] = code.to(torch.uint8)
        rounded[start : start + rows] = ((code - zero) * scale.steps).half().float()
        scales.append(scale)
        start += rows
    original_order = torch.empty_like(rounded)
    original_order[hessian_order] = rounded
    return Solution(
        codes=codes,
        scale_codes=torch.stack([scale.codes for scale in scales]),
        scale_max=torch.stack([scale.scale_max for scale in scales]),
        groups=groups,
        perm=hessian_order,
        weight=original_order,
        loss=0.0,
    )
