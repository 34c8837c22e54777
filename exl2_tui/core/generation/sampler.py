"""Sampler: logits to the next token.

The order is that of the field: penalties, temperature, top-k, top-p, min-p, typical, then a multinomial draw. Where
the reference program deviates from the papers (top-p loses the crossing token, typical adds p to ln p, the draw is cut
at 0.9998), the definitions of the papers and of transformers are used.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.errors import GenerationError
from exl2_tui.core.generation import filters
from exl2_tui.core.generation.filters import Candidates
from exl2_tui.core.generation.history import TokenHistory
from exl2_tui.core.generation.quick import QuickChoice
from exl2_tui.core.model.passage import Choice
from exl2_tui.core.requests import SamplerSettings

Filter = Callable[[Candidates], Candidates]
# Logits asked for beyond the k that survive: for ties, and for those that penalties push back.
SLACK = 16
PENALTY_SLACK = 64
MIN_P_KEEPS = 128  # at most, as a rule
UNIFORMS = 64  # random numbers drawn at once


@dataclass(frozen=True, slots=True)
class SamplingStep:
    """What one step left over, for people who want to see it.

    survivors: how many tokens; best: (token, probability) of the most probable ones, most probable first.
    """

    name: str
    survivors: int
    best: tuple[tuple[int, float], ...]


class Sampler:
    """One request's random numbers and filters.

    vocab_size is the tokenizer's: models often have more rows than there are tokens, and those are never chosen.
    Equal seed, settings and logits give equal tokens.
    """

    def __init__(self, settings: SamplerSettings, vocab_size: int) -> None:
        self.settings = settings
        self.vocab_size = vocab_size
        # 31 bits: short enough to be typed again
        self.seed = secrets.randbits(31) if settings.seed is None else settings.seed
        self._random = torch.Generator().manual_seed(self.seed % (1 << 64))
        self._uniforms = torch.zeros(UNIFORMS, dtype=torch.float64)  # as drawn; greedy choice needs none
        self._uniforms_list: list[float] = []  # the same for Python
        self._used = 0 if settings.temperature == 0 else UNIFORMS
        self._quick = QuickChoice(settings, vocab_size, uses_history=self.uses_history)
        self._ids = torch.arange(vocab_size)
        self._filters = _filters(settings)

    @property
    def uses_history(self) -> bool:
        """Whether any penalty is on."""
        s = self.settings
        return s.repetition_range != 0 and (s.repetition_penalty, s.frequency_penalty, s.presence_penalty) != (1, 0, 0)

    @property
    def preselection(self) -> int:
        """How many of the largest logits nearly always tell the next token; 0 if all are needed."""
        s = self.settings
        if not self._kept or not self._quick.possible:
            return 0
        if not self.uses_history:
            return self._kept + SLACK
        # Others may only move up if a penalty is a reward.
        lowers = s.repetition_penalty >= 1 and s.frequency_penalty >= 0 and s.presence_penalty >= 0
        return 2 * self._kept + PENALTY_SLACK if lowers else 0

    @property
    def _kept(self) -> int:
        """Tokens left over by greedy choice, by top-k or as a rule by min-p, if that comes first; 0: none is on."""
        s = self.settings
        if s.temperature == 0:
            return 1
        return s.top_k or (MIN_P_KEEPS if s.min_p > 0 and s.top_p >= 1 else 0)

    def history(self, tokens: Sequence[int] = ()) -> TokenHistory:
        """A history for these settings, filled with the prompt."""
        history = TokenHistory(self.settings.repetition_range if self.uses_history else 0, self.vocab_size)
        history.extend(tokens)
        return history

    def sample(self, logits: Tensor, history: TokenHistory) -> int:
        """The next token. logits (V,) float, left untouched; raises GenerationError if they are no numbers."""
        uniform = self._uniform() if self.settings.temperature else 0.0
        token = self._quick.sample(logits, history, uniform)
        if token is not None:
            return token
        with _one_thread():
            return self._sample(logits, history, uniform)

    def ahead(self, history: TokenHistory, count: int) -> Choice | None:
        """What a model needs to choose up to `count` tokens itself, as `sample` would; None: ask `sample` for each.

        `spend` the numbers of those that it has chosen.
        """
        if self._used == UNIFORMS:
            self._draw_uniforms()
        return self._quick.ahead(history, self._uniforms, self._used, count, self.preselection)

    def spend(self, tokens: int) -> None:
        """So many tokens were chosen with the numbers that `ahead` gave away."""
        if self.settings.temperature:
            self._used += tokens

    def explain(self, logits: Tensor, history: TokenHistory, show: int = 20) -> tuple[SamplingStep, ...]:
        """What each step of `sample` would leave over, the model's own choice first; draws and changes nothing."""
        with _one_thread():
            model = logits.detach().to("cpu", torch.float32)[: self.vocab_size]
            candidates = self._candidates(logits, history)
            steps = [_describe("model", Candidates(self._ids[: model.numel()], model), show)]
            if self.uses_history:
                steps.append(_describe("penalties", candidates, show))
            narrowing = self._filters
            if self.settings.temperature == 0:
                narrowing = (("greedy", lambda c: filters.keep_top_k(c, 1)),)
            for name, narrow in narrowing:
                candidates = narrow(candidates)
                steps.append(_describe(name, candidates, show))
            return tuple(steps)

    def _sample(self, logits: Tensor, history: TokenHistory, uniform: float) -> int:
        """The specification: every step over all logits."""
        candidates = self._candidates(logits, history)
        if self.settings.temperature == 0:
            return int(candidates.ids[filters.largest(candidates.logits, 1)])
        for _, narrow in self._filters:
            candidates = narrow(candidates)
        return filters.draw(candidates, uniform)

    def _uniform(self) -> float:
        """The next random number in [0, 1)."""
        if self._used == UNIFORMS:
            self._draw_uniforms()
        self._used += 1
        return self._uniforms_list[self._used - 1]

    def _draw_uniforms(self) -> None:
        self._uniforms = torch.rand(UNIFORMS, dtype=torch.float64, generator=self._random)
        self._uniforms_list = self._uniforms.tolist()
        self._used = 0

    def _candidates(self, logits: Tensor, history: TokenHistory) -> Candidates:
        logits = logits.detach().to("cpu", torch.float32)[: self.vocab_size]
        _check(logits)
        s = self.settings
        if self.uses_history:
            logits = filters.penalize(
                logits, history.seen(), s.repetition_penalty, s.frequency_penalty, s.presence_penalty
            )
        return Candidates(self._ids[: logits.numel()], logits)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch from spreading these small operations over threads.

    It saves nothing for so few numbers, and where the cores are busy, be it with the threads of our own kernels, each
    operation would wait until a second thread gets a core: 70 ms instead of 0.2 ms per token, measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _filters(settings: SamplerSettings) -> tuple[tuple[str, Filter], ...]:
    """The steps after the penalties that these settings switch on, in order."""
    s = settings
    steps: list[tuple[str, Filter]] = []
    if s.temperature not in (0, 1):
        steps.append(("temperature", lambda c: filters.scale(c, s.temperature)))
    if s.top_k > 0:
        steps.append(("top_k", lambda c: filters.keep_top_k(c, s.top_k)))
    if s.top_p < 1:
        steps.append(("top_p", lambda c: filters.keep_top_p(c, s.top_p)))
    if s.min_p > 0:
        steps.append(("min_p", lambda c: filters.keep_min_p(c, s.min_p)))
    if s.typical_p < 1:
        steps.append(("typical_p", lambda c: filters.keep_typical(c, s.typical_p)))
    return tuple(steps)


def _check(logits: Tensor) -> None:
    """The maximum of a vector shows what is wrong with it: NaN propagates, and -inf means nothing can be chosen."""
    top = float(logits.amax()) if logits.numel() else -math.inf
    if math.isfinite(top):
        return
    if math.isnan(top):
        what = "the model computed NaN (not a number) for the next token"
    elif top > 0:
        what = "the model computed infinity for the next token"
    else:
        what = "the model gives no token any probability"
    raise GenerationError(
        what,
        hint="The weights are probably damaged or overflow in half precision: check the files, or load with exact on",
    )


def _describe(name: str, candidates: Candidates, show: int) -> SamplingStep:
    probabilities = candidates.probabilities()
    index = filters.largest(probabilities, min(show, len(candidates)))
    ids = candidates.ids.index_select(0, index).tolist()
    return SamplingStep(name, len(candidates), tuple(zip(ids, probabilities[index].tolist(), strict=True)))
