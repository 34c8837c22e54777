"""Models of real shapes with random weights, for speed: EXL2 and fp16 directories for us, GGUF files for llama.cpp.

Random codes are as fast or slow as trained ones; they only talk nonsense.
"""

from __future__ import annotations

import json
import shutil
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

    @classmethod
    def parse(cls, text: str) -> Shape:
        """ "2048,5632,2,32,4,8192": the numbers in the order of the fields."""
        return cls(*map(int, text.split(",")))

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


def write_exl2(path: Path, shape: Shape, bits: float, head_bits: float, context: int, seed: int = 0) -> Path:
    """An EXL2 directory whose layers average `bits` bits per weight, all overhead counted; head_bits: of the head.

    A linear can only come near a width, by a group of rows more or less; what one misses the next ones make up for.
    """
    config = shape.config(context)
    parsed = ModelConfig.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {
        name: torch.ones(shape.hidden, dtype=torch.float16) for name in model_vectors(parsed) if name != EMBEDDING
    }
    tensors[EMBEDDING] = torch.randn(shape.vocab, shape.hidden, generator=generator).mul_(0.02).half()
    perms: dict[tuple[str, int], Tensor] = {}
    owed = 0.0
    for spec in model_linears(parsed):
        # q, k, v and gate, up share a Hessian and therefore a permutation in real files.
        block = spec.prefix.rsplit(".", 1)[0]
        key = (spec.prefix if spec.prefix.endswith(("o_proj", "down_proj")) else block, spec.in_features)
        perm = perms.setdefault(key, torch.randperm(spec.in_features, generator=generator))
        weights = spec.in_features * spec.out_features
        wanted = (head_bits if spec.prefix == "lm_head" else bits) * weights / 8 + owed
        linear = exl2_linear(spec, wanted * 8 / weights, perm, generator)
        owed = wanted - sum(tensor.nbytes for tensor in linear.values())
        tensors |= linear
    return _write(path, config, tensors)


def write_dense(path: Path, shape: Shape, context: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """A directory of floats."""
    config = shape.config(context)
    parsed = ModelConfig.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.ones(shape.hidden, dtype=dtype) for name in model_vectors(parsed) if name != EMBEDDING}
    tensors[EMBEDDING] = torch.randn(shape.vocab, shape.hidden, generator=generator).mul_(0.02).to(dtype)
    for spec in model_linears(parsed):
        weight = torch.randn(spec.out_features, spec.in_features, generator=generator).mul_(0.02).to(dtype)
        tensors[f"{spec.prefix}.weight"] = weight
    return _write(path, config, tensors)


def write_convertible(path: Path, shape: Shape, context: int, tokenizer_of: Path) -> Path:
    """A float16 directory with the tokenizer of another model, whose vocabulary must not be larger."""
    write_dense(path, shape, context)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer_of / name).is_file():
            shutil.copyfile(tokenizer_of / name, path / name)
    return path


def exl2_linear(
    spec: LinearSpec, bits: float, perm: Tensor, generator: torch.Generator, group: int = GROUP
) -> dict[str, Tensor]:
    """The stored tensors of one linear of about `bits` bits per weight, all of them counted, by full name, on the
    generator's device."""
    rows, columns = spec.in_features, padded_columns(spec.out_features)
    groups = rows // group
    overhead = groups * (columns // 2 + 2 + 4) + 4 * rows
    widths = _group_widths(groups, bits - overhead * 8 / (rows * columns))
    starts, words = [], 0
    for width in widths:
        starts += [width, words]
        words += width * group // 32

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


def _group_widths(groups: int, bits: float) -> list[int]:
    """Widths of the groups, wide ones first, that come nearest to `bits` on average with the two widths around it."""
    upper = next((width for width in WIDTHS if width >= bits), WIDTHS[-1])
    lower = max((width for width in WIDTHS if width <= bits), default=WIDTHS[0])
    wide = 0 if upper == lower else round(groups * (bits - lower) / (upper - lower))
    return [upper] * wide + [lower] * (groups - wide)


def _write(path: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    write_file(path / "output.safetensors", tensors, durable=False)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path
