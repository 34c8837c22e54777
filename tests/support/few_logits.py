"""How a passage on a GPU chooses: natively, from the largest few logits (csrc/cuda/passage.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from exl2_tui.core.generation.history import TokenHistory
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.ops import native
from exl2_tui.core.ops.native import Isa


def sample_few(
    sampler: Sampler,
    logits: Tensor,
    history: TokenHistory,
    *,
    uniform: float | None = None,
    count: int | None = None,
    isa: Isa | None = None,
) -> int:
    """The token, or -1 where all logits have to be looked at. Draws nothing.

    uniform: other than the sampler's next; count: other than its preselection.
    """
    choice = sampler.ahead(history, 1)
    assert choice is not None and choice.preselection
    vocab = min(choice.vocab, len(logits))
    values, ids = torch.topk(logits[:vocab], min(count or choice.preselection, vocab))
    if uniform is None:
        uniform = float(choice.uniforms[choice.used])
    token: int = native.ops().sample(
        *(values, ids, len(ids) == vocab, vocab, choice.seen, choice.counts, choice.distinct),
        *(choice.settings, uniform, native.isa_code(isa)),
    )
    return token
