"""One transformer block."""

from __future__ import annotations

from torch import Tensor

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.attention import Attention
from exl2_tui.core.model.cache import KVCache
from exl2_tui.core.model.layout import layer_linears
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.mlp import MLP
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.rope import RopeTable


class Block:
    """h += attention(norm(h)); h += mlp(norm(h))."""

    def __init__(
        self, config: ModelConfig, layer: int, *, attn_norm: RMSNorm, attn: Attention, mlp_norm: RMSNorm, mlp: MLP
    ) -> None:
        self.attn_norm = attn_norm
        self.attn = attn
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        parts = (attn.q, attn.k, attn.v, attn.o, mlp.gate, mlp.up, mlp.down)
        specs = layer_linears(config, layer)
        self.linears: dict[str, Linear] = {spec.prefix: part for spec, part in zip(specs, parts, strict=True)}

    def forward(self, x: Tensor, rope: RopeTable, cache: KVCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C): every row a sequence from position 0, or with a cache one row that continues it.

        rope holds the positions of the T tokens (rope.rope_table).
        """
        x = x + self.attn.forward(self.attn_norm.forward(x), rope, cache)
        return x + self.mlp.forward(self.mlp_norm.forward(x))
