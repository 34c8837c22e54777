"""Every op in plain torch: the specification of the native kernels and the oracle of their tests.

Shape letters: T query tokens, S cached tokens, H query heads, G kv heads, D head_dim; linears M rows, K in, N out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exl2_tui.core.formats import LinearWeight

Q8_BLOCK = 32  # dimensions that share a scale in a q8 cache


def quant_matmul(x: Tensor, weight: LinearWeight) -> Tensor:
    """x (M, K) float32 -> (M, out_features) float32: x @ dequantized weight + bias, all sums in float32."""
    out = x @ weight.dequantize().float()
    return out if weight.bias is None else out + weight.bias.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C), weight (C,) -> x / sqrt(mean(x^2) + eps) * weight."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, D); cos, sin (T, R/2) -> dimensions i and i + R/2 of each head rotated, the rest unchanged."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, silu(g) = g / (1 + e^-g)."""
    return torch.nn.functional.silu(gate) * up


def to_half(x: Tensor) -> Tensor:
    """float32 -> float16, rounded to nearest even, saturated at the largest finite values."""
    return x.clamp(-65504.0, 65504.0).half()


def quantize_q8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., D) float32 -> codes (..., D) int8 and scales (..., ceil(D / 32)) float16; x ~ code * scale.

    The largest magnitude of a block becomes 127; the scale is rounded to float16 before codes are chosen.
    """
    padding = -x.shape[-1] % Q8_BLOCK
    blocks = torch.nn.functional.pad(x, (0, padding)).reshape(*x.shape[:-1], -1, Q8_BLOCK)
    scales = (blocks.abs().amax(-1) * (1.0 / 127.0)).clamp(max=65504.0).half()
    step = scales.float()
    inverse = torch.where(step > 0, 1.0 / step, torch.zeros_like(step))
    codes = (blocks * inverse[..., None]).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten(-2)[..., : x.shape[-1]], scales


def dequantize_q8(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 values that codes (..., D) and scales (..., ceil(D / 32)) stand for."""
    return codes.float() * scales.float().repeat_interleave(Q8_BLOCK, -1)[..., : codes.shape[-1]]


def attention(q: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None = None) -> Tensor:
    """Causal softmax attention of tokens position ... position + T - 1 over the S >= position + T cached ones.

    q (T, H, D), scaled already; keys, values (G, S, D) float32; query head h reads kv head h * G // H. A token sees
    itself and what lies before, at most `window` tokens. -> (T, H, D).
    """
    count, heads, _ = q.shape
    end = position + count
    group = heads // keys.shape[0]
    keys, values = (t[:, :end].repeat_interleave(group, 0) for t in (keys, values))
    scores = q.transpose(0, 1) @ keys.transpose(1, 2)
    distance = torch.arange(position, end)[:, None] - torch.arange(end)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ values).transpose(0, 1)
