"""Which layers go to which device, and that a model on several devices computes what it does on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.models import write_random_model

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.estimate import estimate, model_sizes
from exl2_tui.core.model.footprint import cache_bytes
from exl2_tui.core.model.split import LayerRange, ModelSizes, split_layers

NAMES = ["cuda:0", "cuda:1", "cuda:2"]
SIZES = ModelSizes(layers=(10,) * 8, embedding=5, head=7, scratch=2)


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ((94,), [(0, 0, 8)]),  # 80 + 5 + 7 + 2: exactly
        ((200, 200), [(0, 0, 8)]),
        ((93, 19), [(0, 0, 7), (1, 7, 8)]),  # the head goes where the last layer is
        ((47, 49), [(0, 0, 4), (1, 4, 8)]),
        ((0, 94), [(1, 0, 8)]),
        ((16, 94), [(1, 0, 8)]),  # no layer beside the embedding
        ((47, 11, 49), [(0, 0, 4), (2, 4, 8)]),
    ],
)
def test_devices_are_filled_in_turn(rooms: tuple[int, ...], expected: list[tuple[int, int, int]]) -> None:
    assert list(split_layers(SIZES, rooms, NAMES[: len(rooms)])) == [LayerRange(*part) for part in expected]


@pytest.mark.parametrize("seed", range(20))
def test_every_layer_has_one_place_and_every_place_enough_room(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = ModelSizes(tuple(torch.randint(1, 50, (12,), generator=generator).tolist()), 9, 30, 4)
    rooms = torch.randint(0, 400, (5,), generator=generator).tolist()
    try:
        ranges = split_layers(sizes, rooms, [str(index) for index in range(5)])
    except MemoryLimitError:
        assert sum(max(0, room - 4) for room in rooms) < sum(sizes.layers) + 39 + 5 * 80
        return
    assert [layer for part in ranges for layer in range(part.first, part.last)] == list(range(12))
    for part in ranges:
        used = sum(sizes.layers[part.first : part.last]) + sizes.scratch
        used += (sizes.embedding if part.first == 0 else 0) + (sizes.head if part.last == 12 else 0)
        assert used <= rooms[part.device]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(MemoryLimitError) as raised:
        split_layers(SIZES, (47, 20), NAMES[:2])
    assert "from 5 of 8 on" in raised.value.message and "cuda:1" in raised.value.message
    assert "--gpu-split" in (raised.value.hint or "")


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM"])
def test_sizes_add_up_to_the_estimate(architecture: str, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, architecture)
    config = ModelConfig.from_dir(folder)
    with Checkpoint.open(folder) as checkpoint:
        whole = estimate(checkpoint, config, 128, "fp16", "cuda")
        parts = model_sizes(checkpoint, config, 128, "fp16", "cuda")
        dense = model_sizes(checkpoint, config, 128, "fp16", "gpu-reference")
    norms = whole.weights + cache_bytes(config, 128, "fp16") - sum(parts.layers) - parts.head
    embedding = config.vocab_size * config.hidden_size
    stored = checkpoint.info("model.embed_tokens.weight").nbytes
    assert 0 <= norms - stored <= 4 * 8 * config.hidden_size * (config.num_hidden_layers + 1)
    assert parts.embedding == dense.embedding == 2 * embedding == dense.head
    assert parts.scratch == whole.scratch


def test_logits_are_the_same_on_several_devices(tmp_path: Path) -> None:
    """Both devices are this processor: what is tested is the way of hidden states, rope and cache."""
    folder = write_random_model(tmp_path, num_hidden_layers=4)
    config = ModelConfig.from_dir(folder)
    places = [torch.device("cpu", 0)] * 3 + [torch.device("cpu", 1)]
    moves = []
    with Checkpoint.open(folder) as checkpoint:
        one = CausalLM.load(checkpoint, config)
        several = CausalLM.load(checkpoint, config, places)
    caches = one.new_cache(32), several.new_cache(32)
    for block, place in zip(several.blocks, places, strict=True):
        inner = block.forward
        block.forward = lambda *given, inner=inner, place=place: moves.append(place) or inner(*given)  # type: ignore[method-assign, misc]
    for ids in ([3, 1, 4, 1, 5], [9], [2, 6]):
        assert torch.equal(one.forward(ids, caches[0]), several.forward(ids, caches[1]))
    assert moves == places * 3
