"""The model in plain torch: slow, readable, on any device, in any dtype. What every faster one is tested against.

The quantizer uses the same parts one at a time (`build_block`), so it never holds a whole model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import ShapeError
from exl2_tui.core.model.attention import Attention
from exl2_tui.core.model.block import Block
from exl2_tui.core.model.cache import KVCache, check_room
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM, LinearSpec, head_linear, layer_linears, layer_norms
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.mlp import MLP
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.protocol import Cache
from exl2_tui.core.model.rope import rope_table
from exl2_tui.core.model.weights import TensorSource, linear_names, read_linear, read_matrix, read_norm, release_linear


class Embedding:
    """Token ids to rows of weight (V, C)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, C)."""
        return functional.embedding(ids, self.weight)


class CausalLM:
    """embedding -> blocks -> norm -> head. Implements protocol.LanguageModel."""

    kernels = "reference (torch)"

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        blocks: Sequence[Block],
        norm: RMSNorm,
        head: Linear,
        devices: Sequence[torch.device] | None = None,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.blocks = list(blocks)
        self.devices = list(devices or [embedding.weight.device] * len(self.blocks))
        self.norm = norm
        self.head = head

    @classmethod
    def load(
        cls,
        source: TensorSource,
        config: ModelConfig,
        device: torch.device | str | Sequence[torch.device] = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> CausalLM:
        """All weights as dense `dtype` tensors on `device`, or on one device per layer.

        The embedding lies with the first layer, the final norm and the head with the last.
        """
        layers = range(config.num_hidden_layers)
        devices = [torch.device(device) for _ in layers] if isinstance(device, torch.device | str) else list(device)
        embedding = build_embedding(config, source, devices[0], dtype)
        blocks = [build_block(config, source, layer, devices[layer], dtype) for layer in layers]
        norm = build_final_norm(config, source, devices[-1], dtype)
        is_tied = linear_names(source, head_linear(config)) == (EMBEDDING,) and devices[0] == devices[-1]
        head = Linear(embedding.weight) if is_tied else build_head(config, source, devices[-1], dtype)
        return cls(config, embedding, blocks, norm, head, devices)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def weight_bytes(self) -> int:
        linears = sum(linear.nbytes for block in self.blocks for linear in block.linears.values())
        own_head = 0 if self.head.weight is self.embedding.weight else self.head.nbytes
        return self.embedding.weight.nbytes + linears + own_head

    def new_cache(self, context: int, kind: str = "fp16") -> KVCache:
        return KVCache(self.config, context, kind, self.devices)

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor | Sequence[int],
        cache: Cache,
        *,
        all_logits: bool = False,
        cancel: CancelToken | None = None,
    ) -> Tensor:
        if not isinstance(cache, KVCache):
            raise ShapeError("the cache was made by another model: new_cache() makes one that fits")
        tokens = check_ids(ids, self.config.vocab_size)
        check_room(len(tokens), cache.length, cache.capacity)
        rope = rope_table(self.config, cache.capacity, cache.length, len(tokens), self.device)
        x = self.embedding.forward(tokens[None].to(self.device))
        for block, device in zip(self.blocks, self.devices, strict=True):
            if cancel is not None:
                cancel.check()
            if x.device != device:
                x, rope = x.to(device), rope.to(device)
            x = block.forward(x, rope, cache)
        last = x[0] if all_logits else x[0, -1]
        logits = self.head.forward(self.norm.forward(last)).float().cpu()
        cache.length += len(tokens)
        return logits

    def close(self) -> None:
        self.embedding = Embedding(torch.empty(0, 0))
        self.blocks = []
        self.head = Linear(torch.empty(0, 0))


def check_ids(ids: Tensor | Sequence[int], vocab_size: int) -> Tensor:
    """ids as an int64 tensor (T,) on the CPU. Raises ShapeError unless T >= 1 and every id is in the vocabulary."""
    tokens = torch.as_tensor(ids, dtype=torch.int64, device="cpu")
    if tokens.dim() != 1 or len(tokens) == 0:
        raise ShapeError(f"token ids must be a list of at least one, but have the shape {tuple(tokens.shape)}")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise ShapeError(
            f"token ids lie between {int(tokens.min())} and {int(tokens.max())}, "
            f"but the vocabulary is 0 to {vocab_size - 1}"
        )
    return tokens


def build_embedding(
    config: ModelConfig, source: TensorSource, device: torch.device | str, dtype: torch.dtype
) -> Embedding:
    stored = read_matrix(source, EMBEDDING, config.vocab_size, config.hidden_size)
    weight = stored.to(device=device, dtype=dtype, copy=True)
    source.release(EMBEDDING)
    return Embedding(weight)


def build_block(
    config: ModelConfig, source: TensorSource, layer: int, device: torch.device | str, dtype: torch.dtype
) -> Block:
    norms = [
        _build_norm(source, name, heads, size, config.rms_norm_eps, device, dtype)
        for name, (heads, size) in layer_norms(config, layer).items()
    ]
    q_norm, k_norm = norms[1:-1] or (None, None)
    q, k, v, o, gate, up, down = (_build_linear(source, spec, device, dtype) for spec in layer_linears(config, layer))
    attn = Attention(config, layer, q=q, k=k, v=v, o=o, q_norm=q_norm, k_norm=k_norm)
    return Block(config, layer, attn_norm=norms[0], attn=attn, mlp_norm=norms[-1], mlp=MLP(gate, up, down))


def build_final_norm(
    config: ModelConfig, source: TensorSource, device: torch.device | str, dtype: torch.dtype
) -> RMSNorm:
    return _build_norm(source, FINAL_NORM, 1, config.hidden_size, config.rms_norm_eps, device, dtype)


def build_head(config: ModelConfig, source: TensorSource, device: torch.device | str, dtype: torch.dtype) -> Linear:
    """The head as a linear of its own, also where it is tied to the embedding."""
    return _build_linear(source, head_linear(config), device, dtype)


def _build_linear(source: TensorSource, spec: LinearSpec, device: torch.device | str, dtype: torch.dtype) -> Linear:
    stored = read_linear(source, spec)
    decoded = stored.dequantize().t()
    weight = decoded.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    bias = None if stored.bias is None else stored.bias.to(device=device, dtype=dtype, copy=True)
    release_linear(source, spec)
    return Linear(weight, bias)


def _build_norm(
    source: TensorSource,
    name: str,
    heads: int,
    size: int,
    eps: float,
    device: torch.device | str,
    dtype: torch.dtype,
) -> RMSNorm:
    weight = read_norm(source, name, heads, size).to(device=device, dtype=dtype, copy=True)
    source.release(name)
    return RMSNorm(weight, eps)
