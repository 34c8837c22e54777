"""Sampling against plain float64 definitions, in distribution, and under hostile logits."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from exl2_tui.core.errors import GenerationError
from exl2_tui.core.generation import filters
from exl2_tui.core.generation.filters import Candidates
from exl2_tui.core.generation.history import TokenHistory
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.requests import SamplerSettings

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


def candidates(logits: torch.Tensor) -> Candidates:
    return Candidates(torch.arange(logits.numel()), logits)


def random_logits(size: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def nucleus(keys: list[float], probabilities: list[float], mass: float) -> set[int]:
    """Tokens in order of ascending key until their mass is reached; the one that reaches it included."""
    kept: set[int] = set()
    total = 0.0
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        kept.add(i)
        total += probabilities[i]
        if total >= mass:
            break
    return kept


def differs_by(tokens: set[int], probabilities: list[float]) -> float:
    """Float32 rounding may move the edge of a set, but only by tokens that hardly weigh anything."""
    return math.fsum(probabilities[i] for i in tokens)


SIZES = [1, 2, 7, 64, 1000, 5000, 40_001]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("mass", [0.0, 0.3, 0.9, 0.999])
def test_top_p_is_the_smallest_set_that_reaches_the_mass(size: int, spread: float, mass: float) -> None:
    logits = random_logits(size, spread)
    probabilities = softmax(logits.tolist())
    expected = nucleus([-p for p in probabilities], probabilities, mass)
    kept = set(filters.keep_top_p(candidates(logits), mass).ids.tolist())
    assert differs_by(kept ^ expected, probabilities) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mass", [0.2, 0.95])
def test_typical_keeps_the_tokens_nearest_to_the_entropy(size: int, mass: float) -> None:
    logits = random_logits(size, 3.0)
    probabilities = softmax(logits.tolist())
    entropy = -math.fsum(p * math.log(p) for p in probabilities)
    expected = nucleus([abs(-math.log(p) - entropy) for p in probabilities], probabilities, mass)
    kept = set(filters.keep_typical(candidates(logits), mass).ids.tolist())
    assert differs_by(kept ^ expected, probabilities) < 1e-5


def test_typical_may_drop_the_most_probable_token() -> None:
    logits = torch.tensor([0.4, *[0.6 / 50] * 50]).log()
    assert 0 not in filters.keep_typical(candidates(logits), 0.5).ids.tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 3, 50, 10_000])
def test_top_k_and_min_p(size: int, k: int) -> None:
    logits = random_logits(size, 2.0)
    order = sorted(range(size), key=logits.neg().tolist().__getitem__)
    assert filters.keep_top_k(candidates(logits), k).ids.tolist() == order[:k]
    probabilities = softmax(logits.tolist())
    least = 0.1 * max(probabilities)
    kept = filters.keep_min_p(candidates(logits), 0.1).ids.tolist()
    assert kept == [i for i, p in enumerate(probabilities) if p >= least]


def test_steps_see_what_earlier_ones_left_over() -> None:
    logits = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log()
    sampler = Sampler(SamplerSettings(**OFF | {"top_k": 2, "top_p": 0.7}), 5)
    steps = {step.name: step for step in sampler.explain(logits, sampler.history())}
    assert steps["model"].survivors == 5
    assert steps["top_k"].best == ((0, pytest.approx(5 / 7)), (1, pytest.approx(2 / 7)))
    assert steps["top_p"].best == ((0, 1.0),)  # 5/7 reaches 0.7; without renormalising both would stay


def test_penalties_follow_their_definition() -> None:
    settings = SamplerSettings(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    sampler = Sampler(settings, 4)
    logits = torch.tensor([3.0, -1.0, 2.0, 1.0])
    history = sampler.history([0, 0, 0, 1])
    penalized = filters.penalize(logits, history.seen(), 2.0, 0.5, 0.25)
    assert penalized.tolist() == [3.0 / 2 - 1.5 - 0.25, -2.0 - 0.5 - 0.25, 2.0, 1.0]
    assert logits.tolist() == [3.0, -1.0, 2.0, 1.0]


@pytest.mark.parametrize("window", [-1, 0, 1, 7, 100])
def test_history_counts_what_a_plain_counter_counts(window: int) -> None:
    generator = torch.Generator().manual_seed(window + 1)
    tokens = torch.randint(0, 120, (500,), generator=generator).tolist()
    history = TokenHistory(window, limit=100)
    history.extend(tokens[:200])
    for done, token in enumerate(tokens[200:], start=201):
        history.append(token)
        ids, counts = history.seen()
        visible = tokens[:done] if window < 0 else tokens[max(0, done - window) : done]
        expected = Counter(t for t in visible if t < 100)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected


@pytest.mark.parametrize("size", [10, 70, 6000])
def test_draws_follow_the_distribution(size: int) -> None:
    """Chi-square over the tokens expected at least 5 times; the bound is the 99.99 % quantile (Wilson-Hilferty)."""
    draws = 20_000
    logits = random_logits(size, 2.0, seed=3)
    sampler = Sampler(SamplerSettings(**OFF, seed=5), size)
    history = sampler.history()
    counts = Counter(sampler.sample(logits, history) for _ in range(draws))
    expected = [draws * p for p in softmax(logits.tolist())]
    common = [i for i in range(size) if expected[i] >= 5]
    rest = draws - sum(expected[i] for i in common)
    terms = [(counts[i] - expected[i]) ** 2 / expected[i] for i in common]
    if rest > 5:
        terms.append((draws - sum(counts[i] for i in common) - rest) ** 2 / rest)
    freedom = len(terms) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert sum(terms) < bound


def test_draw_walks_the_cumulative_distribution() -> None:
    logits = random_logits(10_000, 1.0).double()
    logits[100:5000] = -math.inf
    weights = logits.float().exp().double()
    cumulative = (weights / weights.sum()).cumsum(0)
    for uniform in (0.0, 1e-9, 0.25, 0.5, 0.75, 0.999999, 1 - 2**-53):
        token = filters.draw(candidates(logits.float()), uniform)
        assert weights[token] > 0
        assert cumulative[token] >= uniform - 1e-6
        assert token == 0 or cumulative[token - 1] <= uniform + 1e-6


def test_equal_seed_gives_equal_tokens() -> None:
    logits = [random_logits(500, 2.0, seed) for seed in range(50)]

    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplerSettings(seed=seed, top_k=0, top_p=1.0), 500)
        history = sampler.history()
        tokens = []
        for row in logits:
            tokens.append(sampler.sample(row, history))
            history.append(tokens[-1])
        return tokens

    assert run(7) == run(7)
    assert run(-1) == run(-1)
    assert run(7) != run(8)
    assert run(None) != run(None)
    unseeded = Sampler(SamplerSettings(), 500)
    assert 0 <= unseeded.seed < 2**31


def test_tokens_beyond_the_tokenizer_are_never_chosen() -> None:
    logits = torch.zeros(100)
    logits[50:] = 30.0
    logits[60] = math.nan
    for settings in (SamplerSettings.greedy(), SamplerSettings(**OFF, seed=1)):
        sampler = Sampler(settings, 50)
        assert all(sampler.sample(logits, sampler.history([99])) < 50 for _ in range(100))


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    logits = random_logits(1000, 1.0)
    best = int(logits.argmax())
    for temperature in (0.0, 1e-30, 1e-3):
        sampler = Sampler(SamplerSettings(**OFF | {"temperature": temperature}), 1000)
        assert {sampler.sample(logits, sampler.history()) for _ in range(5)} == {best}
    penalized = Sampler(SamplerSettings(temperature=0.0, repetition_penalty=1.0, presence_penalty=50.0), 1000)
    assert penalized.sample(logits, penalized.history([best])) != best


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "no token any probability")]
)
@pytest.mark.parametrize("settings", [SamplerSettings(), SamplerSettings.greedy()])
def test_broken_logits_are_named(value: float, message: str, settings: SamplerSettings) -> None:
    logits = torch.full((100,), -math.inf) if value == -math.inf else torch.zeros(100)
    logits[17] = value
    sampler = Sampler(settings, 100)
    with pytest.raises(GenerationError, match=message):
        sampler.sample(logits, sampler.history())


def test_masked_logits_and_every_filter_together() -> None:
    logits = random_logits(3000, 2.0)
    logits[1000:] = -math.inf
    settings = SamplerSettings(top_k=0, top_p=0.99, min_p=0.001, typical_p=0.99, presence_penalty=1.0, seed=3)
    sampler = Sampler(settings, 3000)
    history = sampler.history(range(2000))
    assert all(sampler.sample(logits, history) < 1000 for _ in range(200))
    names = [step.name for step in sampler.explain(logits, history)]
    assert names == ["model", "penalties", "temperature", "top_p", "min_p", "typical_p"]
    survivors = [step.survivors for step in sampler.explain(logits, history)]
    assert survivors == sorted(survivors, reverse=True)
