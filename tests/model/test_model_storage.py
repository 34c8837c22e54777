"""The same model, however its weights are stored: float types, shards, EXL2, GPTQ, fused, tied, padded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.gptq_writer import write_gptq_model
from support.models import random_config, write_model, write_random_exl2_model, write_random_model

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError, UnsupportedError
from exl2_tui.core.formats import GptqWeight
from exl2_tui.core.formats.packing import pack_columns, pack_rows
from exl2_tui.core.model.causal_lm import CausalLM, build_block, build_embedding, build_final_norm, build_head
from exl2_tui.core.model.layout import Fused, LinearSpec, layer_linears
from exl2_tui.core.model.rope import rope_table
from exl2_tui.core.model.weights import linear_names, read_linear, read_norm, take_inventory

IDS = torch.arange(3, 43)


def logits(folder: Path) -> torch.Tensor:
    with Checkpoint.open(folder) as checkpoint:
        model = CausalLM.load(checkpoint, ModelConfig.from_dir(folder))
    return model.forward(IDS, model.new_cache(64, "fp32"), all_logits=True)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("LlamaForCausalLM", {"vocab_size": 250}),
        ("LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Qwen2ForCausalLM", {"head_dim": 10, "hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 2}),
        ("Qwen3ForCausalLM", {}),
        ("Phi3ForCausalLM", {}),
    ],
)
def test_exl2_runs_as_what_it_decodes_to(architecture: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    folder = write_random_exl2_model(tmp_path / "exl2", architecture, twin=twin, **overrides)
    found, expected = logits(folder), logits(twin)
    assert found.shape == (40, overrides.get("vocab_size", 256))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4, "group_size": 32, "desc_act": True, "sym": False},
        {"bits": 3, "group_size": -1},
        {"bits": 8, "group_size": 64, "v2": True, "sym": False},
        {"bits": 2, "group_size": 32, "settings_in": "quantize_config.json"},
    ],
)
def test_gptq_runs_as_what_it_stands_for(settings: dict[str, Any], tmp_path: Path) -> None:
    source = write_random_model(tmp_path / "source")
    meant = write_gptq_model(source, tmp_path / "gptq", **settings)
    assert len(meant) == 14
    tensors = load_file(source / "model.safetensors")
    for prefix, weight in meant.items():
        tensors[f"{prefix}.weight"] = torch.from_numpy(weight).t().contiguous()
    twin = write_model(tmp_path / "twin", random_config(), tensors)
    torch.testing.assert_close(logits(tmp_path / "gptq"), logits(twin), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shards_and_half_precision(dtype: str, tmp_path: Path) -> None:
    whole = logits(write_random_model(tmp_path / "whole", dtype=dtype))
    shards = logits(write_random_model(tmp_path / "shards", dtype=dtype, shards=3))
    assert torch.equal(whole, shards)
    exact = logits(write_random_model(tmp_path / "exact", dtype="float32"))
    assert 0 < (whole - exact).norm() / exact.norm() < 0.05


class OneLinear:
    """A source with a single GPTQ linear."""

    def __init__(self, prefix: str, weight: GptqWeight) -> None:
        self.prefix, self.weight = prefix, weight
        self.names = [f"{prefix}.{part}" for part in ("qweight", "qzeros", "scales")]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def linear_kind(self, prefix: str) -> str | None:
        return "gptq" if prefix == self.prefix else None

    def linear(self, prefix: str, k: int, n: int, bias: bool | None) -> GptqWeight:
        assert (k, n) == (self.weight.in_features, self.weight.out_features) and not bias
        return self.weight


def random_gptq(k: int, n: int, bits: int) -> GptqWeight:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (k, n), generator=generator).byte()
    zeros = torch.randint(0, 1 << bits, (k // 32, n), generator=generator).byte()
    scales = torch.rand(k // 32, n, generator=generator).half()
    return GptqWeight(
        pack_rows(codes, bits), pack_columns(zeros, bits), scales, None, None, bits=bits, group_size=32, v2=True
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fused_gptq_is_split_along_its_outputs(bits: int) -> None:
    weight = random_gptq(64, 160, bits)
    source = OneLinear("qkv_proj", weight)
    for start, size in ((0, 96), (96, 32), (128, 32)):
        spec = LinearSpec("part", 64, size, fused=Fused("qkv_proj", start, 160))
        part = read_linear(source, spec)
        assert torch.equal(part.dequantize(), weight.dequantize()[:, start : start + size])
        assert linear_names(source, spec) == tuple(source.names)
    with pytest.raises(UnsupportedError, match="multiples of 32"):
        read_linear(source, LinearSpec("part", 64, 40, fused=Fused("qkv_proj", 0, 160)))


def test_inventory_names_what_is_missing_and_unused(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "two", num_hidden_layers=2)
    with Checkpoint.open(folder) as checkpoint:
        config = ModelConfig.from_dir(folder)
        complete = take_inventory(checkpoint, config)
        assert complete.missing == () and complete.unused == () and set(complete.used) == set(checkpoint.names)
        complete.check()
        smaller = ModelConfig.from_dict({**checkpoint.config, "num_hidden_layers": 1})
        assert len(take_inventory(checkpoint, smaller).unused) == 9
        larger = take_inventory(checkpoint, ModelConfig.from_dict({**checkpoint.config, "num_hidden_layers": 4}))
        assert len(larger.missing) == 18
        with pytest.raises(CheckpointError, match=r"18 tensors are missing: model\.layers\.2\..*, \.\.\."):
            larger.check(folder)
        biased = ModelConfig.from_dict({**checkpoint.config, "attention_bias": True})
        assert "model.layers.1.self_attn.o_proj.bias" in take_inventory(checkpoint, biased).missing


def test_wrong_shapes_name_the_tensor(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path)
    with Checkpoint.open(folder) as checkpoint:
        for overrides, name in (
            ({"vocab_size": 255}, "model.embed_tokens.weight"),
            ({"intermediate_size": 100}, "model.layers.0.mlp.gate_proj.weight"),
            ({"head_dim": 32}, "model.layers.0.self_attn.q_proj.weight"),
        ):
            with pytest.raises(CheckpointError) as caught:
                CausalLM.load(checkpoint, ModelConfig.from_dict({**checkpoint.config, **overrides}))
            assert caught.value.tensor == name
            assert "expected" in caught.value.message and "found" in caught.value.message
        with pytest.raises(CheckpointError, match=r"expected shape \(16,\) or \(4, 16\)"):
            read_norm(checkpoint, "model.norm.weight", 4, 16)


def test_parts_one_at_a_time(tmp_path: Path) -> None:
    """What the quantizer does: batches through single blocks, watched linears, an exchanged weight."""
    folder = write_random_model(tmp_path, "Qwen3ForCausalLM", dtype="float32")
    config = ModelConfig.from_dir(folder)
    ids = torch.stack((IDS, IDS.flip(0)))
    with Checkpoint.open(folder) as checkpoint:
        model = CausalLM.load(checkpoint, config)
        rope = rope_table(config, 40, 0, 40)
        x = build_embedding(config, checkpoint, "cpu", torch.float32).forward(ids)
        for layer in range(config.num_hidden_layers):
            block = build_block(config, checkpoint, layer, "cpu", torch.float32)
            assert list(block.linears) == [spec.prefix for spec in layer_linears(config, layer)]
            seen: dict[str, torch.Tensor] = {}
            for prefix, linear in block.linears.items():
                linear.observer = partial(seen.__setitem__, prefix)
            x = block.forward(x, rope)
            for prefix, linear in block.linears.items():
                assert seen[prefix].shape == (2, 40, linear.weight.shape[1])
        norm = build_final_norm(config, checkpoint, "cpu", torch.float32)
        found = build_head(config, checkpoint, "cpu", torch.float32).forward(norm.forward(x))
    for row, sequence in zip(found, ids, strict=True):
        expected = model.forward(sequence, model.new_cache(40, "fp32"), all_logits=True)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    changed = block.linears["model.layers.1.mlp.down_proj"]
    before = block.forward(x, rope)
    changed.weight = torch.zeros_like(changed.weight)
    assert not torch.equal(block.forward(x, rope), before)
