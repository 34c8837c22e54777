"""The CUDA kernels against the plain-torch float32 reference. Needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.gptq_writer import write_gptq_model
from support.gpu_models import RERUNS, TOLERANCE, RoundedCache, assert_agree, load_both
from support.models import random_exl2, write_random_exl2_model, write_random_model

from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.formats import DenseWeight
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.cuda.linear import pack_linear
from exl2_tui.core.model.footprint import CACHE_BITS, cache_bytes

REASON = library.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
GPU = torch.device("cuda:0")


@pytest.mark.parametrize("widths", [(2,), (3,), (4,), (5,), (6,), (8,), (8, 6, 5, 4, 3, 2)])
@pytest.mark.parametrize("columns", [32, 72, 256])
def test_dequantization_is_bit_equal(widths: tuple[int, ...], columns: int) -> None:
    columns = -(-columns // 32) * 32
    weight = random_exl2(torch.randn(columns, 384, generator=torch.Generator().manual_seed(columns)), None, widths, 5)
    packed = pack_linear(weight, GPU)
    found = packed.dequantize(torch.full((columns * 384,), float("nan"), dtype=torch.float16, device=GPU)).cpu()
    assert torch.equal(found, weight.dequantize().t()[:, weight.perm])


def test_dense_weights_come_back_padded() -> None:
    weight = torch.randn(40, 72).half()
    found = pack_linear(DenseWeight(weight, None), GPU).dequantize(
        torch.empty(40 * 96, dtype=torch.float16, device=GPU)
    )
    assert torch.equal(found.cpu(), torch.nn.functional.pad(weight, (0, 24)))


@pytest.mark.parametrize("widths", [(2,), (3,), (4,), (5,), (6,), (8,), (8, 6, 5, 4, 3, 2)])
def test_exl2_steps_of_every_width(tmp_path: Path, widths: tuple[int, ...]) -> None:
    assert_agree(write_random_exl2_model(tmp_path, widths=widths))


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize(("bits", "sym"), [(4, True), (4, False), (2, False), (3, True), (8, True)])
def test_gptq_steps(tmp_path: Path, bits: int, sym: bool, desc_act: bool) -> None:
    source = write_random_model(tmp_path / "float", hidden_size=128, intermediate_size=256)
    write_gptq_model(source, tmp_path / "gptq", bits=bits, group_size=32, desc_act=desc_act, sym=sym)
    assert_agree(tmp_path / "gptq")


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("LlamaForCausalLM", {"hidden_size": 40, "intermediate_size": 72}),
        ("LlamaForCausalLM", {"hidden_size": 4160, "intermediate_size": 96, "num_hidden_layers": 1}),
        ("LlamaForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128}),
        ("LlamaForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}),
        ("LlamaForCausalLM", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64}),
        ("LlamaForCausalLM", {"num_attention_heads": 20, "num_key_value_heads": 2, "head_dim": 64}),
        ("LlamaForCausalLM", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 96}),
        # 8 tokens are 256 units of attention, more than there are CUDA blocks
        ("LlamaForCausalLM", {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 16}),
        ("LlamaForCausalLM", {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}),
        ("Qwen2ForCausalLM", {}),
        ("Qwen3ForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}),
        ("MistralForCausalLM", {"sliding_window": 24}),
    ],
)
def test_shapes_and_architectures(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    assert_agree(write_random_model(tmp_path, architecture, **overrides))


# Where activations differ a little, some codes are neighbours: with 4 bits that is a step of 8 %.
@pytest.mark.parametrize(("kind", "tolerance"), [("q8", 6e-3), ("q6", 5e-2), ("q4", 5e-2)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [(4, 2, 16), (6, 2, 32), (8, 1, 64), (4, 2, 96), (2, 2, 128), (10, 1, 128), (4, 1, 256), (32, 32, 32)],
)
def test_coded_caches(tmp_path: Path, kind: str, tolerance: float, heads: int, kv_heads: int, dim: int) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
    reference, model = load_both(
        write_random_model(tmp_path, "Qwen3ForCausalLM", max_position_embeddings=2048, **sizes)
    )
    caches = RoundedCache(reference.config, 1200, CACHE_BITS[kind]), model.new_cache(1200, kind)
    assert caches[1].nbytes == cache_bytes(reference.config, 1200, kind)
    generator = torch.Generator().manual_seed(dim)
    for count in (1, 3, 40, 1, 8, 900, 1, 5):
        ids = torch.randint(0, reference.config.vocab_size, (count,), generator=generator)
        wanted = reference.forward(ids, caches[0], all_logits=True)
        found = model.forward(ids, caches[1], all_logits=True)
        error = ((found - wanted).norm() / wanted.norm()).item()
        assert error < tolerance, f"{count} tokens: relative error {error:.2e}"


def test_a_long_sequence_is_split_over_the_gpu(tmp_path: Path) -> None:
    path = write_random_exl2_model(tmp_path, max_position_embeddings=2048)
    reference, model = load_both(path)
    caches = reference.new_cache(1200, "fp32"), model.new_cache(1200)
    ids = torch.randint(0, 256, (1000,), generator=torch.Generator().manual_seed(1))
    reference.forward(ids, caches[0])
    model.forward(ids, caches[1])
    for count in (1, 8, 3, 1):
        wanted = reference.forward(ids[:count], caches[0], all_logits=True)
        found = model.forward(ids[:count], caches[1], all_logits=True)
        assert ((found - wanted).norm() / wanted.norm()).item() < TOLERANCE


def test_greedy_reruns_are_bit_equal(tmp_path: Path) -> None:
    _, model = load_both(write_random_exl2_model(tmp_path))
    cache = model.new_cache(200)
    runs = []
    for _ in range(RERUNS):
        cache.truncate(0)
        token, logits = 7, []
        for _ in range(50):
            logits.append(model.forward([token], cache))
            token = int(logits[-1].argmax())
        runs.append(torch.stack(logits))
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_too_large_a_cache_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    _, model = load_both(write_random_model(tmp_path, max_position_embeddings=1 << 20))
    with pytest.raises(Exl2Error) as raised:
        model.new_cache(1 << 34)  # terabytes
    assert "context" in (raised.value.hint or "")
    assert model.forward([1, 2], model.new_cache(16)).shape == (256,)
