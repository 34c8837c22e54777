"""A model on a GPU beside the plain-torch float32 reference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.cache import KVCache
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.cuda.cache import decode, encode
from exl2_tui.core.model.cuda.model import CudaModel

RERUNS = int(os.environ.get("EXL2_TUI_RERUNS", "20"))  # tools/gpu-session asks for 1,000
TOLERANCE = 3e-3  # activations are fp16 on the GPU; measured: 5e-4 to 1e-3
NEEDS_STEP = pytest.mark.skipif(library.unavailable() is None and not library.has_step(), reason="a GPU without steps")


def load_both(path: Path) -> tuple[CausalLM, CudaModel]:
    config = ModelConfig.from_dir(path)
    with Checkpoint.open(path) as checkpoint:
        reference = CausalLM.load(checkpoint, config)
    with Checkpoint.open(path) as checkpoint:
        return reference, CudaModel.load(checkpoint, config, torch.device("cuda:0"))


class RoundedCache(KVCache):
    """The oracle of a coded cache: float32, but every key and value goes through the codes."""

    def __init__(self, config: ModelConfig, capacity: int, bits: tuple[int, int]) -> None:
        super().__init__(config, capacity, "fp32")
        self.bits = bits

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = zip((keys, values), self.bits, strict=True)
        return super().append(layer, *(decode(*encode(rows, bits), rows.shape[-1]) for rows, bits in parts))


def assert_agree(path: Path, steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 1), context: int = 160) -> None:
    reference, model = load_both(path)
    generator = torch.Generator().manual_seed(3)
    caches = reference.new_cache(context, "fp32"), model.new_cache(context)
    for count in (40, *steps):
        ids = torch.randint(0, reference.config.vocab_size, (count,), generator=generator)
        if model._decoder is not None:
            model._decoder.logits.fill_(float("nan"))
        wanted = reference.forward(ids, caches[0], all_logits=True)
        found = model.forward(ids, caches[1], all_logits=True)
        assert found.shape == wanted.shape
        error = ((found - wanted).norm() / wanted.norm()).item()
        assert error < TOLERANCE, f"{count} tokens: relative error {error:.2e}"
