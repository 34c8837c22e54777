"""Models of real shapes with random weights, for speed: EXL2 and fp16 directories for us, GGUF files for llama.cpp.

Random codes are as fast or slow as trained ones; they only talk nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.safetensors import write_file
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.formats.exl2 import padded_columns
from exl2_tui.core.model.layout import EMBEDDING, LinearSpec, model_linears, model_vectors

GROUP = 128
WIDTHS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Shape:
    """A Llama model: hidden size, ffn size, layers, heads, kv heads, vocabulary."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 32000

    def config(self, context: int) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": context,
            "tie_word_embeddings": False,
        }


SHAPES = {
    "1.1B": Shape(2048, 5632, 22, 32, 4),
    "7B": Shape(4096, 11008, 32, 32, 32),
}


def write_exl2(path: Path, shape: Shape, bits: float, head_bits: int, context: int, seed: int = 0) -> Path:
    """An EXL2 directory whose layers average `bits` bits per weight, all overhead counted; head_bits: of the head."""
    config = shape.config(context)
    parsed = ModelConfig.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {
        name: torch.ones(shape.hidden, dtype=torch.float16) for name in model_vectors(parsed) if name != EMBEDDING
    }
    tensors[EMBEDDING] = torch.randn(shape.vocab, shape.hidden, generator=generator).mul_(0.02).half()
    perms: dict[tuple[str, int], Tensor] = {}
    for spec in model_linears(parsed):
        # q, k, v and gate, up share a Hessian and therefore a permutation in real files.
        block = spec.prefix.rsplit(".", 1)[0]
        key = (spec.prefix if spec.prefix.endswith(("o_proj", "down_proj")) else block, spec.in_features)
        perm = perms.setdefault(key, torch.randperm(spec.in_features, generator=generator))
        target = float(head_bits) if spec.prefix == "lm_head" else bits
        tensors |= exl2_linear(spec, target, perm, generator)
    return _write(path, config, tensors)


def write_dense(path: Path, shape: Shape, context: int, seed: int = 0) -> Path:
    """A float16 directory."""
    config = shape.config(context)
    parsed = ModelConfig.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.ones(shape.hidden, dtype=torch.float16) for name in model_vectors(parsed) if name != EMBEDDING
    }
    tensors[EMBEDDING] = torch.randn(shape.vocab, shape.hidden, generator=generator).mul_(0.02).half()
    for spec in model_linears(parsed):
        weight = torch.randn(spec.out_features, spec.in_features, generator=generator).mul_(0.02).half()
        tensors[f"{spec.prefix}.weight"] = weight
    return _write(path, config, tensors)


def exl2_linear(spec: LinearSpec, bits: float, perm: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The stored tensors of one linear of `bits` bits per weight, by full name, on the generator's device."""
    rows, columns = spec.in_features, padded_columns(spec.out_features)
    widths = list(_group_widths(rows, bits - (4 / GROUP + 32 / columns)))
    starts, words = [], 0
    for width in widths:
        starts += [width, words]
        words += width * GROUP // 32
    groups = len(widths)

    def random_words(*shape: int) -> Tensor:
        places = {"generator": generator, "device": generator.device}
        return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64, **places).to(torch.int32)

    return {
        f"{spec.prefix}.q_weight": random_words(words, columns),
        f"{spec.prefix}.q_scale": random_words(groups, columns // 8),
        f"{spec.prefix}.q_scale_max": torch.tensor([0.05 / (1 << (width - 1)) for width in widths]).half(),
        f"{spec.prefix}.q_groups": torch.tensor(starts).to(torch.int16),
        f"{spec.prefix}.q_invperm": torch.argsort(perm).to(torch.int32),
    }


def _group_widths(rows: int, bits: float) -> Iterator[int]:
    """Widths of the groups of GROUP rows, wide ones first, that average `bits` with the two widths around it."""
    groups = rows // GROUP
    upper = next((width for width in WIDTHS if width >= bits), WIDTHS[-1])
    lower = max((width for width in WIDTHS if width <= bits), default=WIDTHS[0])
    wide = 0 if upper == lower else round(groups * (bits - lower) / (upper - lower))
    yield from [upper] * wide
    yield from [lower] * (groups - wide)


def _write(path: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    write_file(path / "output.safetensors", tensors, durable=False)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


def write_gguf(path: Path, shape: Shape, context: int, seed: int = 0) -> Path:
    """A float16 GGUF file of the same shape, one tensor in memory at a time. Needs the package gguf."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_file_type(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"t{i}".encode() for i in range(3, shape.vocab))])
    writer.add_token_scores([0.0] * shape.vocab)
    writer.add_token_types([2, 3, 3, *[1] * (shape.vocab - 3)])
    kv = shape.hidden // shape.heads * shape.kv_heads
    matrices = {"token_embd": (shape.vocab, shape.hidden), "output": (shape.vocab, shape.hidden)}
    for i in range(shape.layers):
        matrices |= {
            f"blk.{i}.attn_q": (shape.hidden, shape.hidden),
            f"blk.{i}.attn_k": (kv, shape.hidden),
            f"blk.{i}.attn_v": (kv, shape.hidden),
            f"blk.{i}.attn_output": (shape.hidden, shape.hidden),
            f"blk.{i}.ffn_gate": (shape.ffn, shape.hidden),
            f"blk.{i}.ffn_up": (shape.ffn, shape.hidden),
            f"blk.{i}.ffn_down": (shape.hidden, shape.ffn),
        }
    norms = ["output_norm", *(f"blk.{i}.{name}_norm" for i in range(shape.layers) for name in ("attn", "ffn"))]
    for name in norms:
        writer.add_tensor_info(f"{name}.weight", (shape.hidden,), np.dtype("float32"), shape.hidden * 4)
    for name, size in matrices.items():
        writer.add_tensor_info(f"{name}.weight", size, np.dtype("float16"), size[0] * size[1] * 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.hidden, dtype=np.float32))
    numbers = np.random.default_rng(seed)
    for size in matrices.values():
        writer.write_tensor_data((numbers.standard_normal(size, dtype=np.float32) * 0.02).astype(np.float16))
    writer.close()
    return path


def quantize_gguf(source: Path, target: Path, kind: str, threads: int) -> Path:
    """llama.cpp's own quantization of a GGUF file; kind as "Q4_K_M". Needs the package llama-cpp-python."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) != 0:
        raise SystemExit(f"llama.cpp could not quantize {source} to {kind}")
    return target
