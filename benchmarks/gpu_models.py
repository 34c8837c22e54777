"""Model directories of real shapes whose random weights are made on a GPU: EXL2 and GPTQ, one file per layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from random_models import Shape, exl2_linear
from torch import Tensor

from exl2_tui.core.checkpoint.safetensors import write_file
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM, LinearSpec, head_linear, layer_linears, layer_norms

CONTEXT = 4096
GPTQ_GROUP = 128
SHAPES = {
    "1.1B": Shape(2048, 5632, 22, 32, 4),
    "7B": Shape(4096, 11008, 32, 32, 32),
    "8B": Shape(4096, 14336, 32, 32, 8, 128256),
    "34B": Shape(8192, 22016, 48, 64, 8),
    "70B": Shape(8192, 28672, 80, 64, 8),
    "tiny": Shape(256, 512, 2, 4, 2, 512),
}


@dataclass(frozen=True)
class Case:
    """One file to measure.

    format: "exl2", "exl2-g32" (groups of 32 rows instead of 128, which real files often have), "gptq" (4 bits, groups
    in order) or "gptq-act" (act-order).
    """

    shape: str
    format: str
    bits: float

    @classmethod
    def parse(cls, text: str) -> Case:
        """ "7B:exl2:4.0" or "7B:gptq-act". Raises ValueError, saying what is wrong."""
        shape, _, rest = text.partition(":")
        kind, _, bits = rest.partition(":")
        if shape not in SHAPES:
            raise ValueError(f'"{text}": the shape is none of {", ".join(SHAPES)}')
        if kind not in ("exl2", "exl2-g32", "gptq", "gptq-act"):
            raise ValueError(f'"{text}": the format is none of exl2, exl2-g32, gptq, gptq-act')
        if kind.startswith("exl2") != bool(bits):
            raise ValueError(f'"{text}": EXL2 needs bits per weight, such as 7B:exl2:4.0, and GPTQ has 4')
        return cls(shape, kind, float(bits or 4))

    def __str__(self) -> str:
        return f"{self.shape}:{self.format}" + (f":{self.bits:g}" if self.is_exl2 else "")

    @property
    def is_exl2(self) -> bool:
        return self.format.startswith("exl2")

    @property
    def weight_bytes(self) -> int:
        """About what the file holds."""
        shape = SHAPES[self.shape]
        kv = shape.hidden * shape.kv_heads // shape.heads
        layer = shape.hidden * (2 * shape.hidden + 2 * kv + 3 * shape.ffn)
        head = shape.vocab * shape.hidden
        bits = self.bits if self.is_exl2 else 4.2
        return int(shape.layers * layer * bits / 8 + head * (2.75 if self.is_exl2 else 4))


def write_model(path: Path, case: Case, device: torch.device, seed: int = 0) -> Path:
    """The directory of a case: config.json and a *.safetensors file per layer. The same seed gives the same model."""
    shape = SHAPES[case.shape]
    config = shape.config(CONTEXT)
    parsed = ModelConfig.from_dict(config)
    generator = torch.Generator(device=device).manual_seed(seed)
    path.mkdir(parents=True)
    for index, tensors in enumerate(_files(parsed, case, generator)):
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_file(path / f"model-{index:05d}.safetensors", on_cpu, durable=False)
    if not case.is_exl2:
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GPTQ_GROUP,
            "desc_act": case.format == "gptq-act",
            "sym": True,
            "checkpoint_format": "gptq",
        }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


def _files(config: ModelConfig, case: Case, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """The tensors of every layer, then those outside."""
    hidden = config.hidden_size

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=generator.device).mul_(0.02).half()

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=torch.float16)

    for index in range(config.num_hidden_layers):
        tensors = {name: ones(size) for name, (_, size) in layer_norms(config, index).items()}
        perms: dict[str, Tensor] = {}
        for spec in layer_linears(config, index):
            # q, k, v and gate, up share a Hessian and therefore an order in real files.
            own = spec.prefix.endswith(("o_proj", "down_proj"))
            key = spec.prefix if own else spec.prefix.rsplit(".", 1)[0]
            if key not in perms:
                perms[key] = torch.randperm(spec.in_features, generator=generator, device=generator.device)
            if case.is_exl2:
                group = 32 if case.format == "exl2-g32" else 128
                tensors |= exl2_linear(spec, case.bits, perms[key], generator, group)
            else:
                tensors |= _gptq_linear(spec, perms[key] if case.format == "gptq-act" else None, generator)
        yield tensors
    head = head_linear(config)
    outside = {EMBEDDING: normal(config.vocab_size, hidden), FINAL_NORM: ones(hidden)}
    if case.is_exl2:
        perm = torch.randperm(hidden, generator=generator, device=generator.device)
        yield outside | exl2_linear(head, 6.0, perm, generator)
    else:
        yield outside | {f"{head.prefix}.weight": normal(config.vocab_size, hidden)}


def _gptq_linear(spec: LinearSpec, order: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
    """4 bits, symmetric, as AutoGPTQ stores them. order: the input features by falling importance."""
    rows, columns, device = spec.in_features, spec.out_features, generator.device
    groups = rows // GPTQ_GROUP
    g_idx = torch.arange(rows, device=device) // GPTQ_GROUP
    if order is not None:
        g_idx = torch.empty_like(g_idx).index_copy_(0, order, g_idx)
    words = torch.randint(-(1 << 31), 1 << 31, (rows // 8, columns), generator=generator, device=device)
    scales = torch.rand((groups, columns), generator=generator, device=device).add_(0.5).mul_(0.004)
    return {
        f"{spec.prefix}.qweight": words.to(torch.int32),
        f"{spec.prefix}.qzeros": torch.full((groups, columns // 8), 0x77777777, dtype=torch.int32),
        f"{spec.prefix}.scales": scales.half(),
        f"{spec.prefix}.g_idx": g_idx.to(torch.int32),
    }
