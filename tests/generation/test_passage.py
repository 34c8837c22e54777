"""Tokens that a model writes by itself are those that it and the sampler choose in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import write_random_model
from support.passages import PROMPT, WHOLE, both, check_where_they_end, generator_of, what_counts
from test_preselection import SETTINGS

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError
from exl2_tui.core.generation import generator as generator_module
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.native import NativeModel
from exl2_tui.core.model.passage import Passage
from exl2_tui.core.requests import LoadOptions, SamplerSettings

UNSURE = SamplerSettings(seed=6, top_k=5000)  # no token is chosen natively
SEEDED = [settings for settings in SETTINGS if settings.seed is not None or settings.temperature == 0]


class Asked(NativeModel):
    """Counts what it writes by itself. afterwards: is called after every passage."""

    passages: tuple[int, ...] = ()
    afterwards: Callable[[], None] | None = None

    def write(self, *args: Any, **options: Any) -> Passage:
        passage = super().write(*args, **options)
        self.passages += (len(passage.tokens),)
        if self.afterwards is not None:
            self.afterwards()
        return passage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder: Path = tmp_path_factory.mktemp("model")
    write_random_model(folder, vocab_size=300)
    with Checkpoint.open(folder) as checkpoint:
        return Asked.load(checkpoint, ModelConfig.from_dir(folder), LoadOptions(threads=2))


@pytest.fixture
def whole_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_module, "PASSAGE_SECONDS", WHOLE)


@pytest.mark.parametrize("seconds", [0.0, WHOLE])
@pytest.mark.parametrize("settings", [*SEEDED, SamplerSettings(seed=9, top_k=0), UNSURE])
def test_tokens_are_the_same(
    model: Asked, settings: SamplerSettings, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator_module, "PASSAGE_SECONDS", seconds)
    model.passages = ()
    _, ids, _ = both(model, settings, max_new_tokens=80)
    assert len(ids) > 75  # half a character at the end is not shown
    assert sum(model.passages) > 60 or (settings is UNSURE and not any(model.passages))
    assert max(model.passages) <= 1 or (seconds == WHOLE and max(model.passages) > 4)


@pytest.mark.usefixtures("whole_passages")
@pytest.mark.parametrize("settings", [SamplerSettings.greedy(), SamplerSettings(seed=1)])
def test_they_end_where_they_should(model: Asked, settings: SamplerSettings) -> None:
    check_where_they_end(model, settings)


@pytest.mark.usefixtures("whole_passages")
def test_cancelled_while_a_passage_was_written(model: Asked) -> None:
    generator, cancel = generator_of(model), CancelToken()
    model.afterwards = cancel.cancel
    try:
        _, ids, end = what_counts([*generator.stream(PROMPT, SEEDED[1], max_new_tokens=60, cancel=cancel)])
    finally:
        model.afterwards = None
    assert end == ("cancelled", 1, len(PROMPT) + 1) and len(ids) == 1
    whole = what_counts([*generator_of(model).stream(PROMPT, SEEDED[1], max_new_tokens=60)])
    assert what_counts([*generator.stream(PROMPT, SEEDED[1], max_new_tokens=60)]) == whole


def test_cancelled_before_a_passage(model: Asked) -> None:
    cache, cancel = model.new_cache(100), CancelToken()
    model.forward([5], cache)
    sampler = Sampler(SEEDED[1], 300)
    choice = sampler.ahead(sampler.history([5, 6]), 20)
    assert choice is not None and choice.count == 20
    cancel.cancel()
    with pytest.raises(CancelledError):
        model.write(6, cache, choice, stop_ids=(), seconds=WHOLE, cancel=cancel)
    assert cache.length == 1
