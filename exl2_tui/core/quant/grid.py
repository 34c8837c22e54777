"""Scales of one row group: 4-bit codes per column on a square law below one fp16 maximum.

Source: spec/quantizer.md section 5.5, spec/exl2-format.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_MAX = 2.0**-16
"""Below this fp16(max / 256) is 0 and nothing can be stored."""

CLASSIC_STEPS = 97
"""Factors tried on the maximum: 0.70 to 1.20."""


@dataclass(frozen=True, slots=True)
class GroupScales:
    """codes (N,) uint8 0..15; scale_max () float16; steps (N,) float32 holding the fp16 step S of every column."""

    codes: Tensor
    scale_max: Tensor
    steps: Tensor


def zero_point(bits: int) -> int:
    return 1 << (bits - 1)


def steps_of(codes: Tensor, scale_max: Tensor) -> Tensor:
    """S = fp16((c+1)^2 * fp16(max/256)), as float32. codes (..., N) uint8, scale_max (...) float16."""
    unit = (scale_max.float() / 256.0).half().float()
    return ((codes.float() + 1.0).square() * unit.unsqueeze(-1)).half().float()


def column_codes(needed: Tensor, largest: Tensor) -> Tensor:
    """Codes 0..15 whose square-law step comes nearest to `needed` (N,), given the largest step () float32."""
    return (torch.round(16.0 * torch.sqrt(needed / largest)).clamp_(1.0, 16.0) - 1.0).to(torch.uint8)


def needed_steps(group: Tensor, bits: int) -> Tensor:
    """The step at which a column's largest magnitude just fits. group (R, N) float32 -> (N,)."""
    largest_code = (1 << bits) - 1
    return (group.abs().amax(dim=0) + 1e-12) / (largest_code / 2)


def classic_factors(device: torch.device) -> Tensor:
    """The 97 factors of the classic search, (97,) float32."""
    position = torch.arange(CLASSIC_STEPS, dtype=torch.float32, device=device) / (CLASSIC_STEPS - 1)
    return 0.70 * (1.0 - position) + 1.20 * position


def finish(codes: Tensor, largest: Tensor, factor: Tensor | float) -> GroupScales:
    """Rounds the maximum to fp16, never below what the format can hold, and derives the steps."""
    scale_max = (largest * factor).clamp(SMALLEST_MAX, 65504.0).half()
    return GroupScales(codes, scale_max, steps_of(codes, scale_max))


def classic_search(group: Tensor, bits: int) -> GroupScales:
    """The classic choice: codes from the largest magnitudes, then one factor for all columns by sum |e|^3.5.

    group (R, N) float32: the current, error-compensated weights of the group.
    """
    needed = needed_steps(group, bits)
    largest = needed.amax().clamp_min(SMALLEST_MAX)
    codes = column_codes(needed, largest)
    steps = ((codes.float() + 1.0) / 16.0).square() * largest
    low, high = -zero_point(bits), (1 << bits) - 1 - zero_point(bits)
    factors = classic_factors(group.device)
    errors = torch.empty_like(factors)
    for index, factor in enumerate(factors):
        scaled = steps * factor
        error = torch.round(group / scaled).clamp_(low, high).mul_(scaled).sub_(group).abs_()
        errors[index] = (error.square() * error * error.sqrt()).sum()
    return finish(codes, largest, factors[errors.argmin()])
