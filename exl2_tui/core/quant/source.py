"""The model to convert, one block at a time, and two models compared the same way."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint, open_file
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import QuantizationError, UnsupportedError
from exl2_tui.core.model.block import Block
from exl2_tui.core.model.causal_lm import build_block, build_embedding, build_final_norm, build_head
from exl2_tui.core.model.layout import LinearSpec, layer_linears, model_linears
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.rope import RopeTable, rope_table
from exl2_tui.core.model.weights import take_inventory
from exl2_tui.core.quant.halves import HALF_MAX, Half, batches, halves, to_half

_QUANTIZED = ("_proj.weight", "lm_head.weight")
LOGITS_AT_ONCE = 256
"""Tokens whose logits are held at a time: 256 x 128,000 float32 are 131 MB."""


class SourceModel:
    """Parts of a model in float32, built when asked for and dropped by the caller."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.checkpoint = Checkpoint.open(path)
        self.config = ModelConfig.from_dir(path)
        self.path = path
        self.device = device
        self._inventory = take_inventory(self.checkpoint, self.config)
        self._inventory.check()

    def require_float(self) -> None:
        """Raises unless every linear is unquantized and fits the format."""
        for spec in model_linears(self.config):
            kind = self.checkpoint.linear_kind(spec.prefix)
            if kind not in ("float", None):
                raise UnsupportedError(
                    f"this model is already quantized ({kind})",
                    file=self.path,
                    tensor=spec.prefix,
                    hint="Convert the original float16 or bfloat16 model instead.",
                )
            if spec.in_features % 32 or spec.in_features > 65536:
                raise QuantizationError(
                    f"the layer has {spec.in_features} input features, EXL2 needs a multiple of 32 up to 65536",
                    tensor=f"{spec.prefix}.weight",
                    hint="Keep this model in its original precision, or use a GPTQ converter that pads.",
                )

    def inspect(self, cancel: CancelToken | None = None) -> Generator[int, None, None]:
        """Reads every tensor once; yields how many are fine. Raises QuantizationError, naming the first that is not.

        A damaged tensor would otherwise be found hours later, by what it does to the layers behind it.
        """
        for count, name in enumerate(self._inventory.used, 1):
            if cancel is not None:
                cancel.check()
            if self.checkpoint.info(name).dtype in ("F16", "BF16", "F32"):
                _require_finite(self.checkpoint.tensor(name), name, kept_half=not name.endswith(_QUANTIZED))
            if count % 16 == 0:
                yield count

    @property
    def decoder_weights(self) -> int:
        """Weights that the bits-per-weight target is about: all linears of all blocks."""
        return sum(spec.in_features * spec.out_features for spec in self.decoder_linears())

    def decoder_linears(self) -> list[LinearSpec]:
        layers = range(self.config.num_hidden_layers)
        return [spec for layer in layers for spec in layer_linears(self.config, layer)]

    def embed(self, ids: Tensor) -> Tensor:
        """ids (R, T) -> hidden states (R, T, C) float16."""
        embedding = build_embedding(self.config, self.checkpoint, self.device, torch.float32)
        states = torch.empty(*ids.shape, self.config.hidden_size, dtype=torch.float16, device=self.device)
        for row, wanted in zip(states, ids.to(self.device), strict=True):  # all at once would be large in float32
            row.copy_(to_half(embedding.forward(wanted), "model.embed_tokens"))
        return states

    def block(self, layer: int) -> Block:
        return build_block(self.config, self.checkpoint, layer, self.device, torch.float32)

    def halves(self, layer: int, tokens: int) -> tuple[Half, Half]:
        """The halves of a block, for rows of `tokens` tokens."""
        return halves(self.block(layer), layer, self.rope(tokens))

    def rope(self, tokens: int) -> RopeTable:
        return rope_table(self.config, tokens, 0, tokens, self.device)

    def final_norm(self) -> RMSNorm:
        return build_final_norm(self.config, self.checkpoint, self.device, torch.float32)

    def head(self) -> Linear:
        return build_head(self.config, self.checkpoint, self.device, torch.float32)

    def close(self) -> None:
        self.checkpoint.close()


def parts_of(model: SourceModel, files: Sequence[Path]) -> Checkpoint:
    """A finished model as the files of its layers hold it, before they are collected into one directory."""
    owners = {name: file for file in map(open_file, files) for name in file.tensors}
    return Checkpoint(model.path, model.checkpoint.config, owners)


def _require_finite(tensor: Tensor, name: str, *, kept_half: bool) -> None:
    """Raises QuantizationError for NaN and infinity, and for what float16 cannot hold where the file keeps that."""
    least, most = (float(value) for value in torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
    if not math.isfinite(least) or not math.isfinite(most):
        count = int((~torch.isfinite(tensor)).sum())
        raise QuantizationError(
            f"{count} of {tensor.numel()} values are not finite (NaN or infinite)",
            tensor=name,
            hint="The source model is damaged: download it again.",
        )
    if kept_half and max(-least, most) > HALF_MAX:
        raise QuantizationError(
            f"a value of {max(-least, most):.4g} does not fit into float16, in which an EXL2 file keeps this tensor",
            tensor=name,
            hint="This model cannot be stored as EXL2; keep it in its original precision.",
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against the original: mean KL divergence per token (nats), share of equal top-1, both perplexities."""

    kl: float
    top1: float
    perplexity: float
    original_perplexity: float
    tokens: int

    @property
    def broken(self) -> bool:
        """Numbers nobody would want: see docs/quantizing.md. Kept far from what 2 bits do to a small model."""
        values = (self.kl, self.perplexity)
        return not all(map(math.isfinite, values)) or self.perplexity > 20 * self.original_perplexity

    def to_json(self) -> dict[str, Any]:
        """As a finished model's quantization_config holds it."""
        return {
            "kl_divergence": round(self.kl, 6),
            "top1_agreement": round(self.top1, 6),
            "perplexity": round(self.perplexity, 4),
            "original_perplexity": round(self.original_perplexity, 4),
            "tokens": self.tokens,
            "status": "broken" if self.broken else "ok",
        }


@torch.no_grad()
def compare(
    original: SourceModel, candidate: SourceModel, rows: Tensor, cancel: CancelToken | None = None
) -> Generator[int, None, Comparison]:
    """Runs rows (R, T) through both models in step, one block of each in memory; yields the layers done."""
    ours, theirs = original.embed(rows), candidate.embed(rows)
    for layer in range(original.config.num_hidden_layers):
        for model, states in ((original, ours), (candidate, theirs)):
            block, rope = model.block(layer), model.rope(rows.shape[1])
            for part, x in batches(states, cancel):
                # A broken candidate must be reported as such, not stop the evaluation.
                states[part] = block.forward(x, rope).clamp(-65504, 65504).half()
        yield layer + 1
    return compare_states(original, candidate, ours, theirs, rows, cancel)


@torch.no_grad()
def compare_states(
    original: SourceModel,
    candidate: SourceModel,
    ours: Tensor,
    theirs: Tensor,
    rows: Tensor,
    cancel: CancelToken | None = None,
) -> Comparison:
    """The comparison from final hidden states (R, T, C) of both models for rows (R, T)."""
    heads = [(model.final_norm(), model.head()) for model in (original, candidate)]
    divergence = entropy = cross = 0.0
    same = count = 0
    for row, ids in enumerate(rows):
        if cancel is not None:
            cancel.check()
        for start in range(0, len(ids) - 1, LOGITS_AT_ONCE):
            end = min(start + LOGITS_AT_ONCE, len(ids) - 1)
            targets = ids[start + 1 : end + 1].to(original.device)
            p, q = (
                functional.log_softmax(head.forward(norm.forward(states[row, start:end].float())), dim=-1)
                for (norm, head), states in zip(heads, (ours, theirs), strict=True)
            )
            divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            entropy -= float(p.gather(1, targets[:, None]).sum(dtype=torch.float64))
            cross -= float(q.gather(1, targets[:, None]).sum(dtype=torch.float64))
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            count += end - start
    return Comparison(divergence / count, same / count, _exp(cross / count), _exp(entropy / count), count)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
