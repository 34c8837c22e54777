"""What a prompt's tokens go through between the matrix products: our kernels on a GPU, the same in torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.model.cache import KVCache
from exl2_tui.core.model.rope import RopeTable, rotate


def rope_and_append(
    index: int, q: Tensor, k: Tensor, v: Tensor, rope: RopeTable, cache: KVCache
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates q and k and appends k and v to layer `index` of the cache; q, and the keys and values of all S tokens.

    q (T, H, D), k and v (T, G, D) float16, contiguous; q may be overwritten. Keys and values: (G, S, D).
    """
    if not q.is_cuda:
        q, k = rotate(q.float(), rope).half(), rotate(k.float(), rope).half()
        return q, *cache.append(index, k.transpose(0, 1), v.transpose(0, 1))
    keys, values = cache.keys[index], cache.values[index]
    torch.ops.exl2_cuda.prompt_rope(q, k, v, rope.cos, rope.sin, keys, values, cache.length)
    end = cache.length + q.shape[0]
    return q, keys[:, :end], values[:, :end]


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, float16, contiguous; gate is overwritten."""
    if not gate.is_cuda:
        return functional.silu(gate, inplace=True).mul_(up)
    torch.ops.exl2_cuda.prompt_silu(gate, up)
    return gate
