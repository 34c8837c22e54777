"""What a prompt's tokens go through between the matrix products: our kernels on a GPU, the same in torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.model.cuda.cache import CudaCache
from exl2_tui.core.model.rope import RopeTable, rotate

NOTHING = torch.empty(0)


def rope_and_append(
    index: int, q: Tensor, k: Tensor, v: Tensor, rope: RopeTable, cache: CudaCache
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates q and k and appends k and v to layer `index` of the cache; q, and the keys and values of all S tokens.

    q (T, H, D), k and v (T, G, D) float16, contiguous; q may be overwritten. Keys and values: (G, S, D).
    """
    if not q.is_cuda:
        q, k = rotate(q.float(), rope).half(), rotate(k.float(), rope).half()
        return q, *cache.append(index, k.transpose(0, 1), v.transpose(0, 1))
    tables = (rope.cos, rope.sin)
    if not cache.is_coded:
        torch.ops.exl2_cuda.prompt_rope(q, k, v, *tables, cache.keys[index], cache.values[index], cache.length)
        return q, *cache.read(index, cache.length + q.shape[0])
    keys, values = (part.new_empty(part.shape[1], part.shape[0], part.shape[2]) for part in (k, v))
    torch.ops.exl2_cuda.prompt_rope(q, k, v, *tables, keys, values, 0)
    return q, *cache.append(index, keys, values)


def normalize(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, perm: Tensor | None, width: int) -> Tensor:
    """x += delta, where there is one; its RMSNorm, float16, put into order.

    x (T, C) float32, delta (T, C) float16, weight (C,) float16, all contiguous; perm and width: see in_order.
    """
    if x.is_cuda:
        out = x.new_empty(len(x), width, dtype=torch.float16)
        torch.ops.exl2_cuda.prompt_norm(x, _or_nothing(delta), weight, _or_nothing(perm), eps, out)
        return out
    if delta is not None:
        x += delta
    return in_order(functional.rms_norm(x, weight.shape, weight.float(), eps).half(), perm, width)


def in_order(x: Tensor, perm: Tensor | None, width: int) -> Tensor:
    """x (T, K) float16 -> (T, width): gathered by perm (K,) int32, or padded with zeros; x itself if neither."""
    if perm is None and x.shape[1] == width:
        return x
    if x.is_cuda:
        out = x.new_empty(len(x), width)
        torch.ops.exl2_cuda.prompt_order(x, _or_nothing(perm), out)
        return out
    ordered = x if perm is None else x.index_select(1, perm)
    return functional.pad(ordered, (0, width - ordered.shape[1]))


def silu_times(gate: Tensor, up: Tensor, perm: Tensor | None, width: int) -> Tensor:
    """silu(gate) * up, float16, contiguous, put into order (see in_order). gate may be overwritten."""
    if gate.is_cuda:
        out = gate.new_empty(len(gate), width)
        torch.ops.exl2_cuda.prompt_silu(gate, up, _or_nothing(perm), out)
        return out
    return in_order(functional.silu(gate, inplace=True).mul_(up), perm, width)


def _or_nothing(tensor: Tensor | None) -> Tensor:
    """What the kernels take for None."""
    return NOTHING if tensor is None else tensor
