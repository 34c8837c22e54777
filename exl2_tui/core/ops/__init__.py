"""The seam to the kernels: public ops, checked here, computed natively where the library is there and else in torch.

Single ops serve tests, tools and the quantizer; a model runs as one native call per step (core/model/native.py).
Shape letters: T query tokens, S cached tokens, H query heads, G kv heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exl2_tui.core.errors import DtypeError, ShapeError
from exl2_tui.core.ops import native, reference
from exl2_tui.core.ops.cache import NativeCache
from exl2_tui.core.ops.linear import PackedLinear, pack_linear, quant_matmul
from exl2_tui.core.ops.native import Capabilities, Isa, capabilities

__all__ = [
    "Capabilities",
    "Isa",
    "NativeCache",
    "PackedLinear",
    "attention",
    "cache_store",
    "capabilities",
    "pack_linear",
    "quant_matmul",
    "rms_norm",
    "rope",
    "silu_mul",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, isa: Isa | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. x (..., C), weight (C,), both float32."""
    _check(x, "x")
    _check(weight, "weight", x.shape[-1:])
    if isa is None and not capabilities().native:
        return reference.rms_norm(x, weight, eps)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    native.ops().rms_norm(x.contiguous(), weight.contiguous(), eps, out, native.isa_code(isa))
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, isa: Isa | None = None) -> Tensor:
    """x (T, heads, D) with the first R dimensions of each head rotated; cos, sin (T, R/2). All float32."""
    _check(x, "x", dims=3)
    _check(cos, "cos", dims=2)
    _check(sin, "sin", cos.shape)
    if cos.shape[0] != x.shape[0] or 2 * cos.shape[1] > x.shape[2]:
        raise ShapeError(f"cos {tuple(cos.shape)} does not fit x {tuple(x.shape)}")
    if isa is None and not capabilities().native:
        return reference.rope(x, cos, sin)
    out = x.clone(memory_format=torch.contiguous_format)
    native.ops().rope(out, cos.contiguous(), sin.contiguous(), native.isa_code(isa))
    return out


def silu_mul(gate: Tensor, up: Tensor, *, isa: Isa | None = None) -> Tensor:
    """silu(gate) * up, float32 of one shape."""
    _check(gate, "gate")
    _check(up, "up", gate.shape)
    if isa is None and not capabilities().native:
        return reference.silu_mul(gate, up)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    native.ops().silu_mul(gate.contiguous(), up.contiguous(), out, native.isa_code(isa))
    return out


def cache_store(
    cache: NativeCache, layer: int, position: int, key: Tensor, value: Tensor, *, isa: Isa | None = None
) -> None:
    """Writes keys and values (T, G, D) float32 of tokens position ... position + T - 1 into one layer. Native only."""
    kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
    _check(key, "key", (key.shape[0], kv_heads, head_dim))
    _check(value, "value", key.shape)
    if position < 0 or position + key.shape[0] > cache.capacity:
        raise ShapeError(f"{key.shape[0]} tokens at {position} do not fit a cache of {cache.capacity}")
    code = native.isa_code(isa)
    native.ops().cache_store(key.contiguous(), value.contiguous(), position, *cache.layer(layer), code)


def attention(
    q: Tensor, cache: NativeCache, layer: int, position: int, window: int | None = None, *, isa: Isa | None = None
) -> Tensor:
    """Attention of q (T, H, D) float32, scaled, over one layer of the cache, which holds position + T tokens.

    As reference.attention; (T, H, D) float32. Native only.
    """
    kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
    _check(q, "q", dims=3)
    if q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise ShapeError(f"q {tuple(q.shape)} does not fit {kv_heads} kv heads of {head_dim} dimensions")
    if position < 0 or position + q.shape[0] > cache.capacity:
        raise ShapeError(f"{q.shape[0]} tokens at {position} do not fit a cache of {cache.capacity}")
    if window is not None and window < 1:
        raise ShapeError(f"a window must hold at least one token, not {window}")
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    code = native.isa_code(isa)
    native.ops().attention(q.contiguous(), kv_heads, position, window or 0, *cache.layer(layer), out, code)
    return out


def _check(tensor: Tensor, name: str, shape: tuple[int, ...] | None = None, dims: int | None = None) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise DtypeError(f"{name} must be float32 on the CPU, found {tensor.dtype} on {tensor.device}")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ShapeError(f"{name} must have the shape {tuple(shape)}, found {tuple(tensor.shape)}")
    if tensor.dim() < 1 or (dims is not None and tensor.dim() != dims):
        raise ShapeError(f"{name} must have {dims or 'some'} dimensions, found {tensor.dim()}")
