"""Tiny random model directories in the Hugging Face layout, for any test that needs a model but not a good one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.formats import Exl2Weight

NANO_CHAT = Path(__file__).resolve().parents[3] / "shared" / "models" / "nano-chat"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def random_config(architecture: str = "LlamaForCausalLM", **overrides: Any) -> dict[str, Any]:
    """config.json of a tiny model; an override of None removes nothing, it writes null."""
    model_type = architecture.removesuffix("ForCausalLM").lower()
    return {"architectures": [architecture], "model_type": model_type, **SMALL, **overrides}


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a model as float32, named and shaped as transformers does; outputs stay of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}

    def linear(prefix: str, k: int, n: int, bias: bool = False) -> None:
        tensors[f"{prefix}.weight"] = torch.randn(n, k, generator=generator) / k**0.5
        if bias:
            tensors[f"{prefix}.bias"] = torch.randn(n, generator=generator) * 0.3

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = 1 + torch.randn(size, generator=generator) * 0.2

    hidden, ffn, query, kv = config.hidden_size, config.intermediate_size, config.query_size, config.kv_size
    tensors["model.embed_tokens.weight"] = torch.randn(config.vocab_size, hidden, generator=generator)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm", hidden)
        if config.fused:
            linear(f"{layer}.self_attn.qkv_proj", hidden, query + 2 * kv)
        else:
            for part, size in (("q", query), ("k", kv), ("v", kv)):
                linear(f"{layer}.self_attn.{part}_proj", hidden, size, config.attention_bias)
        linear(f"{layer}.self_attn.o_proj", query, hidden, config.attention_output_bias)
        if config.qk_norm:
            norm(f"{layer}.self_attn.q_norm", config.head_dim)
            norm(f"{layer}.self_attn.k_norm", config.head_dim)
        norm(f"{layer}.post_attention_layernorm", hidden)
        if config.fused:
            linear(f"{layer}.mlp.gate_up_proj", hidden, 2 * ffn)
        else:
            linear(f"{layer}.mlp.gate_proj", hidden, ffn, config.mlp_bias)
            linear(f"{layer}.mlp.up_proj", hidden, ffn, config.mlp_bias)
        linear(f"{layer}.mlp.down_proj", ffn, hidden, config.mlp_bias)
    norm("model.norm", hidden)
    if not config.tie_word_embeddings:
        linear("lm_head", hidden, config.vocab_size)
    return tensors


def write_model(path: Path | str, config: dict[str, Any], tensors: dict[str, torch.Tensor], *, shards: int = 1) -> Path:
    """Writes config.json and the tensors, in model order, over `shards` files with an index as Hugging Face does."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_random_model(
    path: Path | str,
    architecture: str = "LlamaForCausalLM",
    *,
    seed: int = 0,
    dtype: str = "float16",
    shards: int = 1,
    tokenizer: bool = False,
    **config_overrides: Any,
) -> Path:
    """A tiny valid model directory. Equal arguments give equal bytes.

    tokenizer=True adds the tokenizer files of the shared model nano-chat (vocabulary 8192, unless overridden).
    config_overrides: keys of config.json.
    """
    overrides = {"vocab_size": 8192, **config_overrides} if tokenizer else config_overrides
    raw = {**random_config(architecture, **overrides), "torch_dtype": dtype}
    tensors = random_tensors(ModelConfig.from_dict(raw), seed)
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    folder = write_model(path, raw, cast, shards=shards)
    if tokenizer:
        copy_tokenizer(folder)
    return folder


def random_exl2(weight: torch.Tensor, bias: torch.Tensor | None, widths: Sequence[int], seed: int) -> Exl2Weight:
    """weight (N, K) float32 rounded to EXL2 with groups of 32 rows, widths in turn, and a random row order."""
    perm = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    rows = weight.t()[perm].split(32)
    bits = sorted((widths[g % len(widths)] for g in range(len(rows))), reverse=True)
    scale_max = torch.stack([group.abs().max() for group in rows]).mul(2).half()
    codes, scale_codes = [], []
    for group, width, largest in zip(rows, bits, scale_max, strict=True):
        zero = 1 << (width - 1)
        wanted = group.abs().amax(0) / zero
        scale = ((wanted * 256 / largest.float()).sqrt().ceil() - 1).clamp(0, 15)
        step = (scale + 1).square() * (largest.float() / 256)
        codes.append((group / step + zero).round().clamp(0, 2 * zero - 1).byte())
        scale_codes.append(scale.byte())
    return Exl2Weight.from_codes(
        torch.cat(codes),
        torch.stack(scale_codes),
        scale_max,
        [(width, len(group)) for width, group in zip(bits, rows, strict=True)],
        perm,
        None if bias is None else bias.half(),
    )


def write_random_exl2_model(
    path: Path | str,
    architecture: str = "LlamaForCausalLM",
    *,
    seed: int = 0,
    widths: Sequence[int] = (8, 6, 5, 4, 3, 2),
    twin: Path | str | None = None,
    tokenizer: bool = False,
    **config_overrides: Any,
) -> Path:
    """A tiny EXL2 directory as its writer leaves it: split linears, own head, norms of q and k per head.

    twin: where to write, as float16 and fused where the architecture is, the model that its codes decode to.
    """
    overrides = {"vocab_size": 8192, **config_overrides} if tokenizer else config_overrides
    raw = random_config(architecture, **overrides)
    config = ModelConfig.from_dict(raw)
    plain = random_tensors(replace(config, fused=False, tie_word_embeddings=False), seed)
    stored: dict[str, torch.Tensor] = {}
    decoded: dict[str, torch.Tensor] = {}
    for name, tensor in plain.items():
        prefix, _, kind = name.rpartition(".")
        if prefix.endswith("_proj") or prefix == "lm_head":
            if kind == "weight":
                weight = random_exl2(tensor, plain.get(f"{prefix}.bias"), widths, seed + len(stored))
                stored.update(weight.stored_tensors(prefix))
                decoded[name] = weight.dequantize().t().contiguous()
                if weight.bias is not None:
                    decoded[f"{prefix}.bias"] = weight.bias
            continue
        stored[name] = decoded[name] = tensor.half()
        if "self_attn.q_norm" in name:
            stored[name] = tensor.half().expand(config.num_attention_heads, -1).contiguous()
        if "self_attn.k_norm" in name:
            stored[name] = tensor.half().expand(config.num_key_value_heads, -1).contiguous()
    if twin is not None:
        write_model(twin, {**raw, "tie_word_embeddings": False}, fuse(decoded) if config.fused else decoded)
    quantization = {"quant_method": "exl2", "version": "0.3.2", "bits": 4.0, "head_bits": 6}
    folder = write_model(path, {**raw, "quantization_config": quantization}, stored)
    if tokenizer:
        copy_tokenizer(folder)
    return folder


def fuse(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """q, k, v and gate, up joined as Phi-3 stores them."""
    fused = {}
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif name.endswith("gate_proj.weight"):
            up = tensors[name.replace("gate_proj", "up_proj")]
            fused[name.replace("gate_proj", "gate_up_proj")] = torch.cat((tensor, up))
        elif not name.endswith(("k_proj.weight", "v_proj.weight", "up_proj.weight")):
            fused[name] = tensor
    return fused


def copy_tokenizer(folder: Path) -> None:
    """Adds the tokenizer files of the shared model nano-chat."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(NANO_CHAT / name, folder / name)
