"""QuickChoice: the next token in one native call (csrc/cpu/sampler.h), from the largest few logits.

The same steps in torch are forty calls, each of which gives the interpreter lock away and, while a screen is drawn,
waits to get it back. They remain the specification, and do what this one leaves undone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exl2_tui.core.generation.history import TokenHistory
from exl2_tui.core.model.passage import Choice
from exl2_tui.core.ops import native
from exl2_tui.core.ops.native import Isa
from exl2_tui.core.requests import SamplerSettings


class QuickChoice:
    """Chooses where the largest few logits are sure to give the token that `Sampler` would find with all filters.

    uses_history: whether any penalty is on. isa: another than the one in use, for tests.
    """

    def __init__(
        self, settings: SamplerSettings, vocab_size: int, *, uses_history: bool, isa: Isa | None = None
    ) -> None:
        s = settings
        narrows = s.temperature == 0 or s.top_k > 0 or s.top_p < 1 or s.min_p > 0
        self.possible = narrows and native.capabilities().native
        self._vocab_size = vocab_size
        self._uses_history = uses_history
        penalties = (s.repetition_penalty, s.frequency_penalty, s.presence_penalty)
        numbers = (s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p, *penalties)
        self._settings = torch.tensor(numbers, dtype=torch.float64)
        self._all = torch.empty(0, dtype=torch.int64)
        if self.possible:
            self._sample = native.ops().sample
            self._isa = native.isa_code(isa)

    def sample(self, logits: Tensor, history: TokenHistory, uniform: float) -> int | None:
        """The token at `uniform` in [0, 1) of the cumulative probability; None where it is not sure. logits (V,)."""
        vocab = min(self._vocab_size, len(logits))
        if not self.possible or not vocab:
            return None
        if logits.dtype != torch.float32 or not logits.is_cpu or not logits.is_contiguous():
            return None
        distinct = self._distinct(history)
        token: int = self._sample(
            *(logits, self._all, True, vocab, history.ids, history.counts, distinct),
            *(self._settings, uniform, self._isa),
        )
        return token if token >= 0 else None

    def ahead(self, history: TokenHistory, uniforms: Tensor, used: int, count: int, preselection: int) -> Choice | None:
        """What a model needs to choose up to `count` tokens in the same way; None if that is not possible.

        uniforms float64: numbers in [0, 1), of which the first `used` are spent and at least one is left.
        preselection: Sampler.preselection.
        """
        if not self.possible:
            return None
        return Choice(
            count=min(count, len(uniforms) - used, history.room + 1),
            vocab=self._vocab_size,
            seen=history.ids,
            counts=history.counts,
            distinct=self._distinct(history),
            uses_history=self._uses_history,
            settings=self._settings,
            uniforms=uniforms,
            used=used,
            preselection=preselection,
        )

    def _distinct(self, history: TokenHistory) -> int:
        return len(history) if self._uses_history else 0
