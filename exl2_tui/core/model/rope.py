"""Rotary position embedding: frequencies of every variant, and the rotation.

Source: the HF implementation's formulas, in float32 in the same order, since at position 100,000 the last bit of a
frequency is worth 0.006 rad. R is the number of rotated elements of a head, R/2 pairs (i, i + R/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.config_rope import RopeConfig


@dataclass(frozen=True, slots=True)
class RopeTable:
    """cos and sin of T consecutive positions, each (T, R/2) float32, already multiplied with the attention scale."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> RopeTable:
        return RopeTable(self.cos.to(device), self.sin.to(device))


def rope_frequencies(config: ModelConfig, context: int) -> tuple[Tensor, float]:
    """Angle per position of each pair, (R/2,) float32, and the factor on cos and sin.

    context: the longest sequence that will be run, in tokens. longrope and dynamic depend on it. transformers switches
    at the moment a sequence outgrows the trained length and leaves keys of two kinds in the cache; one choice per
    cache makes results independent of how a prompt is cut into chunks.
    """
    rope, dim = config.rope, config.rope_dim
    exponent = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim
    base = rope.theta
    if rope.kind == "dynamic" and context > rope.original_context:
        stretch = rope.factor * context / rope.original_context - (rope.factor - 1)
        base *= stretch ** (dim / (dim - 2))
    frequencies = 1.0 / base**exponent
    if rope.kind == "linear":
        return frequencies / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, frequencies), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, dim, base**exponent), _yarn_scale(rope)
    if rope.kind == "longrope":
        stretches = rope.long_factor if context > rope.original_context else rope.short_factor
        return 1.0 / (torch.tensor(stretches, dtype=torch.float32) * base**exponent), _longrope_scale(rope)
    return frequencies, 1.0


def rope_table(
    config: ModelConfig, context: int, start: int, count: int, device: torch.device | str = "cpu"
) -> RopeTable:
    """The table for positions start ... start + count - 1 of a sequence of at most `context` tokens."""
    frequencies, scale = rope_frequencies(config, context)
    positions = torch.arange(start, start + count, dtype=torch.float32)
    angles = positions[:, None] * frequencies
    return RopeTable((angles.cos() * scale).to(device), (angles.sin() * scale).to(device))


def rotate(x: Tensor, table: RopeTable) -> Tensor:
    """x (..., T, heads, D): the first R elements of each head rotated by its position, the rest unchanged."""
    cos, sin = table.cos[:, None].to(x.dtype), table.sin[:, None].to(x.dtype)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long wavelengths are stretched by factor, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / frequencies
    longest = rope.original_context / rope.low_freq_factor
    shortest = rope.original_context / rope.high_freq_factor
    smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    outer = torch.where(wavelength > longest, frequencies / rope.factor, frequencies)
    return torch.where((wavelength >= shortest) & (wavelength <= longest), between, outer)


def _yarn(rope: RopeConfig, dim: int, wavelengths: Tensor) -> Tensor:
    """Pairs that turn more than beta_fast times within the trained context keep their frequency, those that turn less
    than beta_slow times are stretched by factor, those between are blended."""

    def pair_with_turns(turns: float) -> float:
        return dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with_turns(rope.beta_fast), pair_with_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = 0.001 if low == high else high - low
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    keep = 1 - stretched
    return (1.0 / (rope.factor * wavelengths)) * (1 - keep) + (1.0 / wavelengths) * keep


def _yarn_scale(rope: RopeConfig) -> float:
    def scale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _longrope_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 1.0 if rope.factor <= 1 else math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_context))
