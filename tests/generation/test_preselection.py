"""Sampling from the largest few logits gives the tokens that sampling from all of them gives, or none."""

from __future__ import annotations

import pytest
import torch
from support.few_logits import sample_few

from exl2_tui.core.errors import GenerationError
from exl2_tui.core.generation.sampler import Sampler
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


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("rows", "vocab"), [(40064, 40000), (300, 260)])
def test_tokens_are_the_same(settings: SamplerSettings, rows: int, vocab: int) -> None:
    generator, sampler, unsure = torch.Generator().manual_seed(rows), Sampler(settings, vocab), 0
    history = sampler.history(torch.randint(0, vocab, (150,), generator=generator).tolist())
    for _ in range(60):
        logits = torch.randn(rows, generator=generator) * 4
        logits[history.seen()[0][:30]] += 6  # what was said is likely, as in real text
        logits[vocab:] = 50  # padding that no tokenizer knows
        found = sample_few(sampler, logits, history)
        token = sampler.sample(logits, history)
        assert found in (token, -1)
        unsure += found == -1
        history.append(token)
    assert unsure <= 6


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
    sampler = Sampler(settings, 1000)
    flat = torch.zeros(1000)
    flat[:3] = 1
    assert sample_few(sampler, flat, sampler.history()) == -1


def test_penalties_that_push_the_best_below_the_rest_are_noticed() -> None:
    sampler = Sampler(SamplerSettings(temperature=0, repetition_penalty=3.0), 4000)
    logits = torch.linspace(0, 1, 4000)
    history = sampler.history(range(3000, 4000))  # all of the largest were said before
    assert sample_few(sampler, logits, history) == -1
    assert sampler.sample(logits, history) == 2999


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_are_left_to_those_who_name_them(wrong: float) -> None:
    sampler = Sampler(SamplerSettings.greedy(), 1000)
    logits = torch.full((1000,), wrong) if wrong == float("-inf") else torch.randn(1000)
    logits[7] = wrong
    assert sample_few(sampler, logits, sampler.history()) == -1
    with pytest.raises(GenerationError):
        sampler.sample(logits, sampler.history())


def test_few_bytes_cross() -> None:
    assert Sampler(SETTINGS[1], 32000).preselection == 164
