"""Writing a finished model: shards from the layer files of a job, and the source's other files beside them.

Follows the writer checklist, spec/exl2-format.md sections 9, 11 and 13.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.checksums import SUMS_FILE, write_sums
from exl2_tui.core.checkpoint.safetensors import TensorSource, open_file, write_file
from exl2_tui.core.errors import JobError
from exl2_tui.core.formats import Exl2Weight
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM, layer_norms
from exl2_tui.core.model.weights import read_matrix, read_norm
from exl2_tui.core.quant import kernels
from exl2_tui.core.quant.recipes import QuantizedLayer
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.quant.workdir import disk_error, write_durably

MIB = 1 << 20
MAX_SIDE_FILE = 64 * MIB
_LEFT_OUT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", SUMS_FILE)


def layer_tensors(model: SourceModel, layer: int, done: QuantizedLayer) -> dict[str, Tensor]:
    """Everything a file holds of one block, in model order: norms float16, linears packed."""
    tensors = {name: _norm(model, name, *shape, done.norms) for name, shape in layer_norms(model.config, layer).items()}
    for linear in done.linears:
        tensors.update(packed(model, linear.prefix, done))
    return tensors


def packed(model: SourceModel, prefix: str, done: QuantizedLayer) -> dict[str, Tensor]:
    """The stored tensors of one quantized linear."""
    solution = next(linear.solution for linear in done.linears if linear.prefix == prefix)
    bias = next(linear.bias for linear in done.linears if linear.prefix == prefix)
    weight = Exl2Weight.from_codes(
        solution.codes.cpu(),
        solution.scale_codes.cpu(),
        solution.scale_max.cpu(),
        solution.groups,
        solution.perm.cpu(),
        None if bias is None else checked_half(bias.cpu(), f"{prefix}.bias"),
        kernels.pack_rows,
    )
    return weight.stored_tensors(prefix)


def embedding_tensors(model: SourceModel) -> dict[str, Tensor]:
    """The embedding, float16 (V, C)."""
    matrix = read_matrix(model.checkpoint, EMBEDDING, model.config.vocab_size, model.config.hidden_size)
    return {EMBEDDING: checked_half(matrix, EMBEDDING)}


def head_tensors(model: SourceModel, done: QuantizedLayer) -> dict[str, Tensor]:
    """The final norm and the quantized head."""
    norm = _norm(model, FINAL_NORM, 1, model.config.hidden_size, done.norms)
    return {FINAL_NORM: norm, **packed(model, "lm_head", done)}


def checked_half(tensor: Tensor, name: str) -> Tensor:
    """float16, refusing what it cannot hold."""
    half = tensor.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise JobError("the tensor holds values that are not finite in float16", tensor=name)
    return half


def _norm(model: SourceModel, name: str, heads: int, size: int, replaced: Mapping[str, Tensor]) -> Tensor:
    tensor = replaced.get(name)
    if tensor is None:
        tensor = read_norm(model.checkpoint, name, heads, size)
    half = checked_half(tensor, name)
    return half.expand(heads, size).contiguous() if heads > 1 and half.dim() == 1 else half


def write_model(target: Path, parts: list[Path], source: Path, shard_mib: int, quantization: Mapping[str, Any]) -> int:
    """Collects the tensors of `parts` into shards in `target`, with the source's side files.

    A tensor that a later part holds again replaces the earlier one. quantization becomes quantization_config. Returns
    the bytes of the directory. The caller owns `target`: an earlier model in it is replaced.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").unlink(missing_ok=True)
        for file in (*target.glob("output*.safetensors"), *target.glob(".output*.partial")):
            file.unlink()
        shards = list(_shards(parts, shard_mib))
        sums = {}
        for number, tensors in enumerate(shards, 1):
            single = len(shards) == 1
            name = "output.safetensors" if single else f"output-{number:05d}-of-{len(shards):05d}.safetensors"
            sums[name] = write_file(target / name, tensors)
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.endswith(_LEFT_OUT) and file.stat().st_size <= MAX_SIDE_FILE:
                shutil.copyfile(file, target / file.name)
        write_sums(target, sums)
        write_config(target, source, quantization)
    except OSError as error:
        raise disk_error(target, error) from None
    return sum(file.stat().st_size for file in target.iterdir() if file.is_file())


def write_config(target: Path, source: Path, quantization: Mapping[str, Any]) -> None:
    """The source's config.json with quantization_config, written last so that a directory without it is incomplete."""
    config = json.loads((source / "config.json").read_bytes())
    config["quantization_config"] = dict(quantization)
    write_durably(target / "config.json", json.dumps(config, indent=4).encode())


def _shards(parts: list[Path], shard_mib: int) -> Iterator[dict[str, TensorSource]]:
    """Tensors in model order, cut where a shard would exceed the limit. Nothing is read before it is written."""
    limit = shard_mib * MIB
    files = [open_file(part) for part in parts]
    last = {name: file for file in files for name in file.tensors}
    shard: dict[str, TensorSource] = {}
    size = 0
    for file in files:
        for name, info in sorted(file.tensors.items(), key=lambda item: item[1].offset):
            owner = last.pop(name, None)
            if owner is None:
                continue
            if limit and shard and size + info.nbytes > limit:
                yield shard
                shard, size = {}, 0
            shard[name] = owner.source(name)
            size += info.nbytes
    yield shard
