"""CudaModel with layers on two devices, on the CPU: packing and the decode kernel are replaced by torch, the way of
tokens, hidden states, cache and rope between devices is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import write_random_exl2_model, write_random_model
from torch import Tensor

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.formats import LinearWeight
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.cuda import model as cuda_model
from exl2_tui.core.model.cuda.decoder import CudaLayer, DecoderChain
from exl2_tui.core.model.cuda.linear import CudaLinear, empty_linear
from exl2_tui.core.model.cuda.model import CudaModel
from exl2_tui.core.model.cuda.prompt import silu_times
from exl2_tui.core.model.rope import rope_table
from exl2_tui.core.requests import SamplerSettings

# Two names of this processor: different as device objects, the same for tensors.
FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 0)
TOLERANCE = 4e-3  # activations are fp16


class TorchLinear(CudaLinear):
    """A linear that remembers the matrix instead of packing it."""

    matrix: Tensor

    def dequantize(self, out: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(self.matrix, (0, self.in_features - self.matrix.shape[1]))
        return out.view(-1)[: padded.numel()].view(padded.shape).copy_(padded)

    def multiply(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(rows[:, : self.matrix.shape[1]].float(), self.matrix.float(), bias).to(dtype)


def pack(weight: LinearWeight, device: torch.device) -> TorchLinear:
    matrix = weight.dequantize().half().t()
    blocks = -(-matrix.shape[1] // 32)
    shell = empty_linear("float", [(16, blocks)], matrix.shape[0], FIRST, None, None, weight.bias)
    linear = TorchLinear(**{name: getattr(shell, name) for name in shell.__dataclass_fields__})
    object.__setattr__(linear, "matrix", matrix)
    return linear


class TorchDecoder:
    """What Decoder does, with the model's own prompt path for one device's layers. Takes at most 3 tokens at once."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor | None,
        layers: Sequence[CudaLayer],
        final_norm: Tensor | None,
        head: CudaLinear | None,
        cache: Any,
        first: int = 0,
    ) -> None:
        self.config, self.embedding, self.layers, self.cache, self.first = config, embedding, layers, cache, first
        self.head = head
        self.residual = torch.full((8, config.hidden_size), torch.nan)
        self.logits = torch.full((8, config.vocab_size), torch.nan)
        self.owner: CudaModel

    def advance(self, tokens: Tensor, position: int, hidden: Tensor | None) -> int:
        if len(tokens) > 3:
            return 3
        assert (hidden is None) == (self.embedding is not None) == (self.first == 0)
        x = torch.nn.functional.embedding(tokens, self.embedding).float() if hidden is None else hidden.clone()  # type: ignore[arg-type]
        config, length = self.config, self.cache.length
        self.cache.length = position
        rope = rope_table(config, self.cache.capacity, position, len(tokens), FIRST)
        delta: Tensor | None = None
        for index, layer in enumerate(self.layers, self.first):
            x, delta = self.owner._layer(index, layer, x, delta, cuda_model.ALL_ROWS, rope, self.cache)
        assert delta is not None
        x += delta
        self.cache.length = length
        self.residual[: len(tokens)] = x
        if self.head is not None:
            self.logits[: len(tokens)] = self.owner._logits(x)
        return len(tokens)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_model, "require", lambda _: None)
    monkeypatch.setattr(cuda_model, "has_step", lambda _: True)
    monkeypatch.setattr(cuda_model, "pack_linear", pack)
    monkeypatch.setattr(cuda_model, "Decoder", TorchDecoder)


@pytest.mark.parametrize("writer", [write_random_model, write_random_exl2_model])
def test_a_split_model_agrees_with_the_reference(on_cpu: None, writer: Any, tmp_path: Path) -> None:
    folder = writer(tmp_path, num_hidden_layers=4)
    config = ModelConfig.from_dir(folder)
    places = [FIRST, FIRST, FIRST, SECOND]
    with Checkpoint.open(folder) as checkpoint:
        reference = CausalLM.load(checkpoint, config)
        model = CudaModel.load(checkpoint, config, places)
    model.devices = places  # tensors forget the number
    caches = reference.new_cache(128), model.new_cache(128)
    decoder = model._new_decoder(caches[1])
    assert isinstance(decoder, DecoderChain)
    for part in decoder.decoders:
        part.owner = model  # type: ignore[attr-defined]
    assert [(part.first, len(part.layers)) for part in decoder.decoders] == [(0, 3), (3, 1)]  # type: ignore[attr-defined]
    assert [part.head is None for part in decoder.decoders] == [True, False]  # type: ignore[attr-defined]
    model._decoder = decoder
    generator = torch.Generator().manual_seed(0)
    for count in (20, 1, 8, 3, 1):  # a prompt, then steps; 8 go in parts of 3
        ids = torch.randint(0, config.vocab_size, (count,), generator=generator)
        wanted = reference.forward(ids, caches[0], all_logits=True)
        found = model.forward(ids, caches[1], all_logits=True)
        assert found.shape == wanted.shape
        assert ((found - wanted).norm() / wanted.norm()).item() < TOLERANCE
    sampler = Sampler(SamplerSettings.greedy(), config.vocab_size)
    choice = sampler.ahead(sampler.history(), 4)
    assert choice is not None and choice.preselection
    passage = model.write(5, caches[1], choice, stop_ids=(), seconds=1)  # one token after another, over all GPUs
    wanted = reference.forward([5], caches[0])
    assert passage.tokens == [] and passage.logits is not None
    assert int(passage.logits.argmax()) == int(wanted.argmax()) and caches[1].length == caches[0].length


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "MistralForCausalLM"])
def test_behind_the_last_cache_only_rows_that_are_wanted_go_on(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, architecture: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda_model, "CHUNK", 16)
    rows: list[int] = []

    def silu(gate: Tensor, *others: Any) -> Tensor:
        rows.append(len(gate))
        return silu_times(gate, *others)

    monkeypatch.setattr(cuda_model, "silu_times", silu)
    folder = write_random_model(tmp_path, architecture, num_hidden_layers=2, sliding_window=24)
    config = ModelConfig.from_dir(folder)
    with Checkpoint.open(folder) as checkpoint:
        model = CudaModel.load(checkpoint, config, FIRST)
    caches = model.new_cache(128), model.new_cache(128)
    generator = torch.Generator().manual_seed(0)
    for count, wanted_rows in ((40, [16, 16, 8, 1]), (9, [9, 1]), (32, [16, 16, 1])):
        ids = torch.randint(0, config.vocab_size, (count,), generator=generator)
        wanted = model.forward(ids, caches[0], all_logits=True)[-1]
        rows.clear()
        found = model.forward(ids, caches[1])
        assert rows == wanted_rows
        assert ((found - wanted).norm() / wanted.norm()).item() < TOLERANCE
        for index in range(2):
            for part in ("keys", "values"):
                ours, theirs = (getattr(cache, part)[index][:, : cache.length] for cache in caches)
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "tolerance"), [("fp16", TOLERANCE), ("q8", 2e-2)])
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"])
def test_without_the_steps_kernel_tokens_go_layer_by_layer(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, architecture: str, kind: str, tolerance: float, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda_model, "has_step", lambda _: False)
    monkeypatch.setattr(cuda_model, "Decoder", type("NotToBeMade", (), {"__init__": None}))
    folder = write_random_exl2_model(tmp_path, architecture, widths=(8,), head_dim=32, sliding_window=24)
    config = ModelConfig.from_dir(folder)
    with Checkpoint.open(folder) as checkpoint:
        reference = CausalLM.load(checkpoint, config)
        model = CudaModel.load(checkpoint, config, FIRST)
    assert model.kernels == "CUDA, layer by layer (cpu)"
    caches = reference.new_cache(128), model.new_cache(128, kind)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 20, 1, 8, 3, 9, 1):
        ids = torch.randint(0, config.vocab_size, (count,), generator=generator)
        wanted = reference.forward(ids, caches[0], all_logits=True)
        for part in model._workspaces.values():
            part.fill_(torch.nan)
        found = model.forward(ids, caches[1], all_logits=True)
        assert found.shape == wanted.shape and found.dtype == torch.float32
        assert ((found - wanted).norm() / wanted.norm()).item() < tolerance
    sampler = Sampler(SamplerSettings.greedy(), config.vocab_size)
    choice = sampler.ahead(sampler.history(), 4)
    assert choice is not None
    passage = model.write(5, caches[1], choice, stop_ids=(), seconds=1)
    caches[1].truncate(caches[1].length - 1)
    assert passage.tokens == [] and passage.logits is not None
    assert torch.equal(passage.logits, model.forward([5], caches[1]))
