"""The KV cache: capacity, truncation, and that a failed or cancelled step leaves no trace."""

from __future__ import annotations

import pytest
import torch
from support.models import write_random_model

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError, ContextError, MemoryLimitError, ShapeError, UnsupportedError
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.footprint import cache_bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = write_random_model(tmp_path_factory.mktemp("model"), dtype="float32")
    with Checkpoint.open(folder) as checkpoint:
        return CausalLM.load(checkpoint, ModelConfig.from_dir(folder))


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_truncate_continues_from_there(model: CausalLM, kind: str) -> None:
    cache = model.new_cache(32, kind)
    model.forward([5, 6, 7, 8], cache)
    expected = model.forward([9], cache)
    model.forward([10, 11], cache)
    cache.truncate(4)
    assert cache.length == 4
    assert torch.equal(model.forward([9], cache), expected)
    cache.truncate(0)
    torch.testing.assert_close(model.forward([5, 6, 7, 8, 9], cache), expected, rtol=1e-2, atol=1e-2)
    for length in (-1, 6):
        with pytest.raises(ShapeError):
            cache.truncate(length)


def test_half_precision_is_close(model: CausalLM) -> None:
    ids = list(range(3, 33))
    exact = model.forward(ids, model.new_cache(30, "fp32"))
    rounded = model.forward(ids, model.new_cache(30, "fp16"))
    assert 0 < (exact - rounded).norm() / exact.norm() < 5e-3


def test_all_logits_end_with_the_last(model: CausalLM) -> None:
    ids = [5, 6, 7]
    every = model.forward(torch.tensor(ids), model.new_cache(3, "fp32"), all_logits=True)
    last = model.forward(ids, model.new_cache(3, "fp32"))
    assert every.shape == (3, 256) and last.shape == (256,) and last.dtype == torch.float32
    torch.testing.assert_close(every[-1], last, rtol=1e-5, atol=1e-5)


def test_full_cache(model: CausalLM) -> None:
    cache = model.new_cache(4)
    model.forward([5, 6, 7], cache)
    with pytest.raises(ContextError, match="holds 4 tokens and 3 are in use"):
        model.forward([8, 9], cache)
    assert cache.length == 3
    model.forward([8], cache)
    assert cache.length == cache.capacity == 4


@pytest.mark.parametrize("ids", [[], [[1]], [-1], [256], [1 << 40]])
def test_bad_ids(model: CausalLM, ids: list[int]) -> None:
    cache = model.new_cache(4)
    with pytest.raises(ShapeError):
        model.forward(ids, cache)
    assert cache.length == 0


def test_cancelled_step_leaves_the_cache(model: CausalLM) -> None:
    cache = model.new_cache(8, "fp32")
    model.forward([5, 6], cache)
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        model.forward([7, 8], cache, cancel=token)
    assert cache.length == 2
    fresh = model.new_cache(8, "fp32")
    expected = model.forward([5, 6, 9], fresh)
    torch.testing.assert_close(model.forward([9], cache), expected, rtol=1e-5, atol=1e-5)


def test_sizes_and_kinds(model: CausalLM) -> None:
    for kind in ("fp16", "fp32"):
        assert model.new_cache(100, kind).nbytes == cache_bytes(model.config, 100, kind)
    with pytest.raises(UnsupportedError):
        model.new_cache(100, "q8")
    with pytest.raises(ShapeError):
        model.new_cache(0)
    with pytest.raises(MemoryLimitError):
        model.new_cache(1 << 44)
