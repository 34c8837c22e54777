"""Passages on a GPU: steps that wait there for their token give what single steps give. Needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.gpu_models import NEEDS_STEP
from support.models import write_random_exl2_model
from support.passages import WHOLE, both, check_where_they_end

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError
from exl2_tui.core.generation import generator as generator_module
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.cuda.model import CudaModel
from exl2_tui.core.model.passage import Choice
from exl2_tui.core.requests import SamplerSettings

REASON = library.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
SETTINGS = [
    SamplerSettings.greedy(),
    SamplerSettings(seed=1),
    SamplerSettings(seed=3, temperature=1.7, top_k=200, top_p=0.95, repetition_penalty=1.0),
    SamplerSettings(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.4),
    SamplerSettings(seed=9, top_k=0),  # needs all logits of every token
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CudaModel:
    folder: Path = write_random_exl2_model(tmp_path_factory.mktemp("model"), vocab_size=300)
    with Checkpoint.open(folder) as checkpoint:
        return CudaModel.load(checkpoint, ModelConfig.from_dir(folder), torch.device("cuda:0"))


def choice_of(settings: SamplerSettings, count: int) -> Choice:
    sampler = Sampler(settings, 300)
    choice = sampler.ahead(sampler.history([5, 6]), count)
    assert choice is not None
    return choice


@pytest.mark.parametrize("seconds", [0.0, WHOLE])
@pytest.mark.parametrize("settings", SETTINGS)
def test_tokens_are_the_same(
    model: CudaModel, settings: SamplerSettings, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator_module, "PASSAGE_SECONDS", seconds)
    assert len(both(model, settings, max_new_tokens=80)[1]) > 75  # half a character at the end is not shown


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_they_end_where_they_should(
    model: CudaModel, settings: SamplerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator_module, "PASSAGE_SECONDS", WHOLE)
    check_where_they_end(model, settings)


def test_a_doubt_leaves_the_logits_of_a_single_step(model: CudaModel) -> None:
    """Though another step was launched behind it."""
    cache, choice = model.new_cache(100), replace(choice_of(SETTINGS[1], 20), preselection=1)
    for token in (5, 17, 200):
        passage = model.write(token, cache, choice, stop_ids=(), seconds=WHOLE)
        assert passage.tokens == [] and passage.logits is not None
        cache.truncate(cache.length - 1)
        assert torch.equal(model.forward([token], cache), passage.logits)


def test_cancelled_before_a_passage(model: CudaModel) -> None:
    cache, cancel = model.new_cache(100), CancelToken()
    model.forward([5], cache)
    cancel.cancel()
    with pytest.raises(CancelledError):
        model.write(6, cache, choice_of(SETTINGS[1], 20), stop_ids=(), seconds=WHOLE, cancel=cancel)
    assert cache.length == 1


@NEEDS_STEP
def test_steps_that_cannot_wait_are_run_again(model: CudaModel, tmp_path: Path) -> None:
    """Where launches block, none can wait for a token: it goes on without, and is launched once more with it."""
    cache = model.new_cache(100)
    passage = model.write(6, cache, choice_of(SETTINGS[0], 20), stop_ids=(), seconds=WHOLE)
    write_random_exl2_model(tmp_path, vocab_size=300)
    program = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
import torch
from test_cuda_passage import SETTINGS, WHOLE, Checkpoint, CudaModel, ModelConfig, choice_of
path = Path({str(tmp_path)!r})
with Checkpoint.open(path) as checkpoint:
    model = CudaModel.load(checkpoint, ModelConfig.from_dir(path), torch.device("cuda:0"))
cache, token, tokens = model.new_cache(100), 6, []
while len(tokens) < 20:
    tokens += model.write(token, cache, choice_of(SETTINGS[0], 20 - len(tokens)), stop_ids=(), seconds=WHOLE).tokens
    token = tokens[-1]
print(tokens)
"""
    environment = {**os.environ, "CUDA_LAUNCH_BLOCKING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=100
    )
    assert done.stdout.strip() == str(passage.tokens), done.stderr
