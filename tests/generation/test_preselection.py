"""Sampling from the largest few logits gives the tokens that sampling from all of them gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.fake_model import FakeModel, FakeTokenizer
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import GenerationError
from exl2_tui.core.events import TokenDelta
from exl2_tui.core.generation.generator import Generator
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.protocol import Cache
from exl2_tui.core.model.top import Preselecting, TopLogits, top_logits
from exl2_tui.core.requests import SamplerSettings

SETTINGS = [
    SamplerSettings.greedy(),
    SamplerSettings(seed=1),
    SamplerSettings(seed=2, top_k=1),
    SamplerSettings(seed=3, temperature=1.7, top_k=200, top_p=0.95, repetition_penalty=1.0),
    SamplerSettings(seed=4, top_k=40, min_p=0.02, typical_p=0.9),
    SamplerSettings(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.4),
    SamplerSettings(seed=5, top_k=20, repetition_penalty=1.5, repetition_range=64),
]


class Watched:
    """TopLogits of known logits; counts how often all of them were asked for."""

    def __init__(self) -> None:
        self.fetched = 0

    def top(self, logits: Tensor, sampler: Sampler) -> TopLogits:
        found = top_logits(logits, sampler.preselection, sampler.vocab_size)

        def everything() -> Tensor:
            self.fetched += 1
            return logits

        return TopLogits(found.ids, found.values, found.complete, everything)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("rows", "vocab"), [(40064, 40000), (300, 260)])
def test_tokens_are_the_same(settings: SamplerSettings, rows: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    few, all_of_them, watched = Sampler(settings, vocab), Sampler(settings, vocab), Watched()
    if settings.seed is None:
        all_of_them = few
    history = few.history(torch.randint(0, vocab, (150,), generator=generator).tolist())
    for _ in range(60):
        logits = torch.randn(rows, generator=generator) * 4
        logits[history.seen()[0][:30]] += 6  # what was said is likely, as in real text
        logits[vocab:] = 50  # padding that no tokenizer knows
        token = few.sample(watched.top(logits, few), history)
        assert token == all_of_them.sample(logits, history)
        history.append(token)
    assert watched.fetched <= 6


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(top_k=0),
        SamplerSettings(repetition_penalty=0.9),
        SamplerSettings(frequency_penalty=-1.0),
        SamplerSettings(presence_penalty=-0.1),
    ],
)
def test_some_settings_need_all_logits(settings: SamplerSettings) -> None:
    assert Sampler(settings, 1000).preselection == 0


@pytest.mark.parametrize("settings", SETTINGS)
def test_ties_are_left_to_all_logits(settings: SamplerSettings) -> None:
    sampler, watched = Sampler(settings, 1000), Watched()
    flat = torch.zeros(1000)
    flat[:3] = 1
    sampler.sample(watched.top(flat, sampler), sampler.history([]))
    assert watched.fetched == 1


def test_penalties_that_push_the_best_below_the_rest_are_noticed() -> None:
    settings = SamplerSettings(temperature=0, repetition_penalty=3.0)
    sampler, watched = Sampler(settings, 4000), Watched()
    logits = torch.linspace(0, 1, 4000)
    history = sampler.history(range(3000, 4000))  # all of the largest were said before
    token = sampler.sample(watched.top(logits, sampler), history)
    assert token == sampler.sample(logits, history) == 2999
    assert watched.fetched == 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_are_named_as_before(wrong: float) -> None:
    sampler = Sampler(SamplerSettings.greedy(), 1000)
    logits = torch.full((1000,), wrong) if wrong == float("-inf") else torch.randn(1000)
    logits[7] = wrong
    with pytest.raises(GenerationError) as expected:
        sampler.sample(logits, sampler.history([]))
    with pytest.raises(GenerationError) as found:
        sampler.sample(Watched().top(logits, sampler), sampler.history([]))
    assert found.value.message == expected.value.message


def test_few_bytes_cross() -> None:
    top = top_logits(torch.randn(32000), Sampler(SETTINGS[1], 32000).preselection, 32000)
    assert len(top.ids) == len(top.values) == 164 and top.ids.dtype == torch.int64
    assert bool((top.values[1:] <= top.values[:-1]).all())


class PreselectingModel(FakeModel):
    """A FakeModel whose logits lie on a GPU, so to speak."""

    asked: tuple[int, ...] = ()

    def forward_top(
        self, ids: Sequence[int], cache: Cache, count: int, vocab: int, *, cancel: CancelToken | None = None
    ) -> TopLogits:
        self.asked += (count,)
        return top_logits(self.forward(ids, cache, cancel=cancel), count, vocab)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [*SETTINGS, SamplerSettings(top_k=0, seed=9)])
def test_the_generator_writes_the_same_text(settings: SamplerSettings) -> None:
    texts = []
    models = (FakeModel(), PreselectingModel())
    assert isinstance(models[1], Preselecting) and not isinstance(models[0], Preselecting)
    for model in models:
        generator = Generator(model, FakeTokenizer(), model.new_cache(256))
        events = [*generator.stream(range(5, 60), settings, max_new_tokens=30)]
        events += generator.stream(range(5, 80), settings, max_new_tokens=30)  # the cache is still right
        texts.append([event.token_ids for event in events if isinstance(event, TokenDelta)])
    assert settings.seed is not None or settings.temperature == 0
    assert texts[0] == texts[1] and texts[0]
    assert bool(models[1].asked) == bool(settings.top_k or settings.temperature == 0)
