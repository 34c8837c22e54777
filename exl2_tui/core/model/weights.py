"""Reads the parts of a model from a checkpoint, whatever form they are stored in, and tells what is missing.

Whoever reads a tensor puts it into its own layout, drops what was read and then says so with release(), so that never
more than one linear is in memory twice, and a source that shows progress knows how far the work is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.linears import EXL2_TENSORS, GPTQ_TENSORS
from exl2_tui.core.checkpoint.place import TensorPlace
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError, UnsupportedError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, LinearWeight
from exl2_tui.core.model.layout import EMBEDDING, LinearSpec, head_linear, model_linears, model_vectors

LINEAR_PARTS = {
    "exl2": (*EXL2_TENSORS, "bias"),
    "gptq": (*GPTQ_TENSORS, "bias"),
    "float": ("weight", "bias"),
}
# Left behind by old exporters; recomputed from the config, never read.
DERIVED_SUFFIXES = (".rotary_emb.inv_freq", ".q_perm", ".q_group_map", ".masked_bias")


class TensorSource(Protocol):
    """What models use of a Checkpoint."""

    @property
    def names(self) -> Iterable[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def tensor(self, name: str) -> Tensor: ...

    def place(self, name: str) -> TensorPlace | None:
        """None: the tensor lies in no file, or not as it is; tensor() has it."""

    def linear_kind(self, prefix: str) -> str | None: ...

    def linear(self, prefix: str, in_features: int, out_features: int, bias: bool | None) -> LinearWeight: ...

    def release(self, name: str) -> None: ...


def read_linear(source: TensorSource, spec: LinearSpec) -> LinearWeight:
    """The weight of one linear, validated against its shape. Raises CheckpointError if it is missing or malformed."""
    is_stored = source.linear_kind(spec.prefix) is not None
    if spec.tied_to is not None and not is_stored:
        return DenseWeight(read_matrix(source, spec.tied_to, spec.out_features, spec.in_features), None)
    if spec.fused is not None and not is_stored:
        whole = replace(spec, prefix=spec.fused.prefix, out_features=spec.fused.out_features, fused=None)
        return _columns(read_linear(source, whole), spec, spec.fused.start)
    return source.linear(spec.prefix, spec.in_features, spec.out_features, spec.bias)


def linear_names(source: TensorSource, spec: LinearSpec) -> tuple[str, ...]:
    """Full names of the tensors that read_linear takes for this linear; none if it is not stored in any form."""
    kind = source.linear_kind(spec.prefix)
    if kind is not None:
        names = (f"{spec.prefix}.{part}" for part in LINEAR_PARTS[kind])
        return tuple(name for name in names if name in source)
    if spec.fused is not None:
        return linear_names(source, replace(spec, prefix=spec.fused.prefix, fused=None))
    return (spec.tied_to,) if spec.tied_to is not None and spec.tied_to in source else ()


def release_linear(source: TensorSource, spec: LinearSpec) -> None:
    """Says that the weight of a linear was copied."""
    for name in linear_names(source, spec):
        source.release(name)


def read_matrix(source: TensorSource, name: str, rows: int, columns: int) -> Tensor:
    """A float matrix such as the embedding (V, C), in its stored dtype."""
    return _float_tensor(source, name, ((rows, columns),))


def locate_matrix(source: TensorSource, name: str, rows: int, columns: int) -> TensorPlace | None:
    """Where a float matrix lies, for a reader of its rows; None where only read_matrix can have it."""
    _check_there(source, name)
    place = source.place(name)
    if place is not None:
        _check_float(name, place.dtype, place.shape, ((rows, columns),))
    return place


def read_norm(source: TensorSource, name: str, heads: int, size: int) -> Tensor:
    """A norm's weight (size,) in its stored dtype; with heads > 1 also (heads, size), as EXL2 files expand it."""
    shapes: tuple[tuple[int, ...], ...] = ((size,), (heads, size)) if heads > 1 else ((size,),)
    return _float_tensor(source, name, shapes)


@dataclass(frozen=True, slots=True)
class Inventory:
    """How the tensors that are there differ from those the config asks for, by full name.

    used: what the model reads. unused: harmless, but worth telling, since a wrong architecture shows here.
    """

    missing: tuple[str, ...]
    used: tuple[str, ...]
    unused: tuple[str, ...]

    def check(self, path: Path | None = None, hint: str | None = None) -> None:
        """Raises CheckpointError if anything is missing; hint: a better one than the general."""
        if not self.missing:
            return
        first = ", ".join(self.missing[:3]) + (", ..." if len(self.missing) > 3 else "")
        verb = "tensor is" if len(self.missing) == 1 else "tensors are"
        raise CheckpointError(
            f"{len(self.missing)} {verb} missing: {first}",
            file=path,
            hint=hint or "The download may be incomplete, or config.json belongs to another model.",
        )


def take_inventory(source: TensorSource, config: ModelConfig) -> Inventory:
    """Compares names only; shapes and dtypes are checked when a tensor is read."""
    missing = [name for name in model_vectors(config) if name not in source]
    used = {name: None for name in model_vectors(config) if name in source}
    for spec in model_linears(config):
        names = linear_names(source, spec)
        used.update(dict.fromkeys(names))
        missing.extend(_missing_parts(spec, names))
    unused = (name for name in source.names if name not in used and not name.endswith(DERIVED_SUFFIXES))
    return Inventory(tuple(missing), tuple(used), tuple(unused))


def whole_names(source: TensorSource, config: ModelConfig, used: Iterable[str]) -> Iterator[str]:
    """Those of `used` that are read as a whole where the embedding stays in its file; a tied head is made of it."""
    is_tied = EMBEDDING in linear_names(source, head_linear(config))
    return (name for name in used if name != EMBEDDING or is_tied)


def _missing_parts(spec: LinearSpec, names: tuple[str, ...]) -> Iterator[str]:
    if not names:
        yield f"{spec.prefix}.weight"
    elif spec.bias and not any(name.endswith(".bias") for name in names):
        yield f"{spec.prefix}.bias"


def _columns(weight: LinearWeight, spec: LinearSpec, start: int) -> LinearWeight:
    """The outputs start ... start + spec.out_features - 1 of a fused linear."""
    stop = start + spec.out_features
    bias = None if weight.bias is None else weight.bias[start:stop]
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.weight[start:stop], bias)
    if isinstance(weight, Exl2Weight):
        raise UnsupportedError("an EXL2 layer is stored fused, but EXL2 files keep q, k, v apart", tensor=spec.prefix)
    if start % 32 or stop % 32:
        raise UnsupportedError(
            f"a fused GPTQ layer can be split at multiples of 32 outputs, not at {start} and {stop}", tensor=spec.prefix
        )
    return replace(
        weight,
        qweight=weight.qweight[:, start:stop].contiguous(),
        qzeros=weight.qzeros[:, start * weight.bits // 32 : stop * weight.bits // 32].contiguous(),
        scales=weight.scales[:, start:stop].contiguous(),
        bias=bias,
    )


def _float_tensor(source: TensorSource, name: str, shapes: tuple[tuple[int, ...], ...]) -> Tensor:
    _check_there(source, name)
    tensor = source.tensor(name)
    _check_float(name, tensor.dtype, tuple(tensor.shape), shapes)
    return tensor


def _check_there(source: TensorSource, name: str) -> None:
    if name not in source:
        raise CheckpointError("the tensor is missing", tensor=name)


def _check_float(name: str, dtype: torch.dtype, shape: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
    if not dtype.is_floating_point:
        raise CheckpointError(f"expected a float dtype, found {dtype}", tensor=name)
    if shape not in shapes:
        expected = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise CheckpointError(f"expected shape {expected}, found {shape}", tensor=name)
