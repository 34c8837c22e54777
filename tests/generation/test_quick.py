"""The native choice gives the token that all filters in torch give, or none; and it gives one nearly always."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.few_logits import sample_few
from torch import Tensor

from exl2_tui.core.generation.quick import QuickChoice
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.ops import native
from exl2_tui.core.ops.native import Isa
from exl2_tui.core.requests import SamplerSettings
from exl2_tui.settings_form import PRESETS

settings_of_any_kind = st.builds(
    SamplerSettings,
    temperature=st.sampled_from([0.0, 1e-30, 0.1, 0.7, 1.0, 1.3, 5.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 17, 50, 300, 1024, 5000]),
    top_p=st.sampled_from([0.0, 0.3, 0.8, 0.95, 0.9999, 1.0, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.5, 1.0]),
    typical_p=st.sampled_from([0.0, 0.2, 0.9, 1.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.025, 1.5, 0.9]),
    repetition_range=st.sampled_from([-1, 0, 40]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.2]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.4, -0.1]),
    seed=st.integers(0, 1000),
)


def some_logits(size: int, seed: int, spread: float = 3.0, step: float = 0.0, masked: int = 0) -> Tensor:
    """step: they are multiples of it, which makes many equal; masked: so many of them are -inf."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator) * spread
    if step:
        logits = (logits / step).round() * step
    logits[torch.randperm(size, generator=generator)[:masked]] = -torch.inf
    return logits


def quick_of(settings: SamplerSettings, sampler: Sampler, isa: Isa | None = None) -> QuickChoice:
    return QuickChoice(settings, sampler.vocab_size, uses_history=sampler.uses_history, isa=isa)


@pytest.mark.parametrize("isa", native.capabilities().isas)
@given(
    settings=settings_of_any_kind,
    size=st.sampled_from([1, 2, 15, 64, 257, 1000, 5003]),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 0.3, 3.0, 10.0]),
    step=st.sampled_from([0.0, 0.0, 0.0, 0.25]),
    hidden=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_it_is_the_token_that_the_filters_give(
    isa: Isa, settings: SamplerSettings, size: int, seed: int, spread: float, step: float, hidden: float, uniform: float
) -> None:
    logits = some_logits(size, seed, spread, step, int(size * hidden) if size > 1 and hidden < 1 else 0)
    sampler = Sampler(settings, size)
    quick = quick_of(settings, sampler, isa)
    history = sampler.history((seed * i) % size for i in range(60))
    choices = [quick.sample(logits, history, uniform)]
    if sampler.preselection:
        choices.append(sample_few(sampler, logits, history, uniform=uniform, isa=isa))
    for choice in choices:
        assert choice in (None, -1) or choice == sampler._sample(logits, history, uniform)


@pytest.mark.parametrize("size", [8192, 50_000])
@pytest.mark.parametrize(
    "settings",
    [*PRESETS.values(), SamplerSettings(top_k=0, top_p=0.9), SamplerSettings(top_k=20, min_p=0.02, typical_p=0.9)],
)
def test_usual_settings_hardly_ever_need_the_filters(settings: SamplerSettings, size: int) -> None:
    sampler = Sampler(settings, size)
    quick, history = quick_of(settings, sampler), sampler.history(range(0, size, 11))
    rows = [some_logits(size, seed, spread=5) for seed in range(50)]
    found = [quick.sample(row, history, seed / 50) for seed, row in enumerate(rows)]
    assert found.count(None) <= 2
    for seed in range(0, 50, 5):
        assert found[seed] in (None, sampler._sample(rows[seed], history, seed / 50))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 5, 100, 4999])
def test_broken_logits_are_left_to_those_who_name_them(wrong: float, place: int) -> None:
    logits = some_logits(5000, 1)
    logits[place] = wrong
    for settings in (SamplerSettings(), SamplerSettings.greedy(), PRESETS["creative"]):
        sampler = Sampler(settings, 5000)
        quick, history = quick_of(settings, sampler), sampler.history([1, 2])
        assert quick.sample(logits, history, 0.5) is None
        assert sample_few(sampler, logits, history, uniform=0.5, count=200) == -1
    assert quick_of(settings, sampler).sample(torch.full((5000,), -torch.inf), history, 0.5) is None


def test_a_token_that_was_left_out_but_could_survive_is_noticed() -> None:
    settings = SamplerSettings(temperature=1, top_k=0, top_p=1, min_p=0.5, repetition_penalty=1, presence_penalty=2)
    sampler = Sampler(settings, 4)
    history = sampler.history([0, 1])
    logits = torch.tensor([5.0, 4.0, 3.9, 0.0])  # the first two fall below the third
    assert sample_few(sampler, logits, history, uniform=0.5, count=2) == -1
    assert sampler.sample(logits, history) == sampler._sample(logits, history, 0.5) == 2


def test_equal_seeds_draw_equal_numbers_however_many_are_drawn_at_once() -> None:
    sampler = Sampler(SamplerSettings(seed=11), 10)
    generator = torch.Generator().manual_seed(11)
    for _ in range(150):
        assert sampler._uniform() == float(torch.rand((), dtype=torch.float64, generator=generator))


@pytest.mark.parametrize("isa", native.capabilities().isas)
def test_the_op_refuses_tokens_outside_the_vocabulary(isa: Isa) -> None:
    settings = SamplerSettings()
    sampler = Sampler(settings, 10)
    history = sampler.history([9])
    with pytest.raises(RuntimeError, match="outside the vocabulary"):
        quick_of(settings, sampler, isa).sample(torch.randn(9), history, 0.5)
