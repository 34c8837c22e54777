"""Text that the model itself writes, for calibration: it has the distribution the model was trained on.

Many rows are written at once with a cache of their own; only for models small enough to be held whole.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.model.attention import Attention
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.rope import RopeTable, rope_table, rotate
from exl2_tui.core.quant.source import SourceModel

LARGEST_MODEL = 400_000_000
"""Weights up to which a model writes its own calibration text: beyond, that would take longer than all the rest."""
DOCUMENT = 512
"""Tokens per text: longer ones cost more and drift further from what the model knows."""
SHARE = 0.5
"""Share of the calibration tokens that the model writes."""


class _RowCache:
    """Keys and values of B rows of one layer, (B, G, capacity, D) each."""

    def __init__(self, attention: Attention, rows: int, heads: int, capacity: int, device: torch.device) -> None:
        shape = (rows, heads, capacity, attention.head_dim)
        self.keys = torch.empty(shape, device=device)
        self.values = torch.empty(shape, device=device)


def _attend(attention: Attention, x: Tensor, rope: RopeTable, cache: _RowCache, start: int) -> Tensor:
    """Attention of the T new tokens x (B, T, C) at positions start..; the same arithmetic as Attention.forward."""
    heads = (*x.shape[:2], -1, attention.head_dim)
    q, k, v = (linear.forward(x).view(heads) for linear in (attention.q, attention.k, attention.v))
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = attention.q_norm.forward(q), attention.k_norm.forward(k)
    q, k = rotate(q, rope).transpose(1, 2), rotate(k, rope).transpose(1, 2)
    end = start + x.shape[1]
    cache.keys[:, :, start:end] = k
    cache.values[:, :, start:end] = v.transpose(1, 2)
    first = 0 if attention.window is None else max(0, end - attention.window)
    mixed = functional.scaled_dot_product_attention(
        q, cache.keys[:, :, first:end], cache.values[:, :, first:end], is_causal=start == 0, enable_gqa=True
    )
    return attention.o.forward(mixed.transpose(1, 2).flatten(2))


@torch.no_grad()
def write(
    source: SourceModel, prompts: Sequence[Sequence[int]], length: int, seed: int, cancel: CancelToken | None
) -> Generator[int, None, list[list[int]]]:
    """Continues every prompt to `length` tokens by plain sampling; yields the tokens done.

    Rows go on after an end token: the model starts something new, as it saw in training.
    """
    model = CausalLM.load(source.checkpoint, source.config, source.device)
    generator = torch.Generator(device=source.device).manual_seed(seed)
    shortest = max(1, min(map(len, prompts)))
    rows = torch.zeros(len(prompts), length, dtype=torch.int64, device=source.device)
    given = torch.zeros_like(rows, dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        cut = torch.tensor(list(prompt)[:length], device=source.device)
        rows[index, : len(cut)], given[index, : len(cut)] = cut, True
    caches = [
        _RowCache(block.attn, len(prompts), source.config.num_key_value_heads, length, source.device)
        for block in model.blocks
    ]
    start = 0
    for end in range(shortest, length):
        if cancel is not None:
            cancel.check()
        x = model.embedding.forward(rows[:, start:end])
        rope = rope_table(source.config, length, start, end - start, source.device)
        for block, cache in zip(model.blocks, caches, strict=True):
            x = x + _attend(block.attn, block.attn_norm.forward(x), rope, cache, start)
            x = x + block.mlp.forward(block.mlp_norm.forward(x))
        logits = model.head.forward(model.norm.forward(x[:, -1]))
        if not bool(torch.isfinite(logits).all()):
            return []  # the model is damaged: measuring will say which layer is the first to be wrong
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        rows[:, end] = torch.where(given[:, end], rows[:, end], drawn)
        start = end
        if end % 16 == 0:
            yield end
    return [row.tolist() for row in rows]
