"""The KV cache in the layout of the native kernels (csrc/cpu/cache.h).

    tensor    fp16                                    q8
    k         float16 (L, G, tiles, D, 16)            int8, the same shape
    v         float16 (L, G, capacity, Dp)            int8, the same shape
    scales    none                                    float16 (L, G, tiles, ceil(D / 32), 16), of k and of v

Keys are stored in tiles of 16 tokens, transposed; Dp is D rounded up to 16. Bytes per token, layer and kv head: 2 D + 2
Dp, or D + Dp + 4 ceil(D / 32).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from exl2_tui.core.errors import ShapeError, UnsupportedError
from exl2_tui.core.ops.reference import Q8_BLOCK, dequantize_q8

TILE = 16
MAX_HEAD_DIM = 512

NativeCacheKind = Literal["fp16", "q8"]


class NativeCache:
    """Keys and values of one sequence for `layers` layers. Memory is reserved at once but touched as tokens arrive."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int, kind: str = "fp16") -> None:
        if kind not in ("fp16", "q8"):
            raise UnsupportedError(f'the cache kind "{kind}" is not one of fp16, q8')
        if capacity < 1:
            raise ShapeError(f"a cache for {capacity} tokens is asked for, but it must hold at least one")
        if not 1 <= head_dim <= MAX_HEAD_DIM:
            raise UnsupportedError(f"native kernels take heads of up to {MAX_HEAD_DIM} dimensions, not {head_dim}")
        tiles = -(-capacity // TILE)
        padded = -(-head_dim // TILE) * TILE
        dtype = torch.float16 if kind == "fp16" else torch.int8
        scale_shape = (layers, kv_heads, tiles, -(-head_dim // Q8_BLOCK), TILE) if kind == "q8" else (0,)
        self.kind = kind
        self.capacity = capacity
        self.length = 0
        self.k = torch.empty((layers, kv_heads, tiles, head_dim, TILE), dtype=dtype)
        self.v = torch.empty((layers, kv_heads, tiles * TILE, padded), dtype=dtype)
        self.k_scale = torch.empty(scale_shape, dtype=torch.float16)
        self.v_scale = torch.empty(scale_shape, dtype=torch.float16)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k, v and the scales of both, in the order the native ops take them."""
        return self.k, self.v, self.k_scale, self.v_scale

    def layer(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors of one layer, as views."""
        scales = (self.k_scale[index], self.v_scale[index]) if self.kind == "q8" else (self.k_scale, self.v_scale)
        return self.k[index], self.v[index], *scales

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Raises ShapeError if fewer are stored."""
        if not 0 <= length <= self.length:
            raise ShapeError(f"the cache cannot be cut to {length} tokens: it holds {self.length}")
        self.length = length

    def read(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values (G, count, D) float32 of the first tokens of a layer, decoded: the oracle of the layout."""
        k, v, k_scale, v_scale = self.layer(layer)
        keys = k.transpose(2, 3).flatten(1, 2)[:, :count]
        values = v[:, :count, : k.shape[2]]
        if self.kind == "fp16":
            return keys.float(), values.float()
        k_steps, v_steps = (s.transpose(2, 3).flatten(1, 2)[:, :count] for s in (k_scale, v_scale))
        return dequantize_q8(keys, k_steps), dequantize_q8(values, v_steps)
