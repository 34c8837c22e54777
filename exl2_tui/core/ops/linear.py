"""Linears repacked for the native kernels: from any LinearWeight to one blob, and the product with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.errors import DtypeError, ShapeError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight, LinearWeight
from exl2_tui.core.ops import native, reference
from exl2_tui.core.ops.native import Isa
from exl2_tui.core.ops.room import WeightRoom

_KINDS = {"exl2": 0, "gptq": 1, "float": 2}


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """y (M, out_features) = x (M, in_features) W + bias, in the form the kernels want.

    blob uint8, 64-byte aligned, self-describing (csrc/cpu/linear.h). Where native kernels are switched off, it is
    empty and `source` keeps the weight as it was. exact: activations stay float32 instead of becoming integers.
    """

    blob: Tensor
    in_features: int
    out_features: int
    bits_per_weight: float
    kind: str
    exact: bool
    isa: Isa | None
    source: LinearWeight | None = None

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.blob.nbytes if self.source is None else self.source.nbytes


def pack_linear(
    weight: LinearWeight,
    exact: bool = False,
    *,
    threads: int = 1,
    isa: Isa | None = None,
    room: WeightRoom | None = None,
) -> PackedLinear:
    """Repacks a validated weight; its tensors are not needed afterwards.

    exact keeps activations in float32 (else int8, finer where that shows). isa: another than the one in use, for
    tests. room: where it goes, beside a model's other weights. Raises ExtensionError if `isa` cannot run here.
    """
    common = (weight.in_features, weight.out_features, weight.bits_per_weight, weight.kind, exact)
    if isa is None and not native.capabilities().native:
        return PackedLinear(torch.empty(0, dtype=torch.uint8), *common, None, weight)
    code = native.isa_code(isa)
    sizes, tensors = _source(weight, exact)
    ops, kind = native.ops(), _KINDS[weight.kind]
    blob = (room or WeightRoom()).take(int(ops.linear_bytes(kind, sizes, tensors, code)))
    ops.linear_pack(kind, sizes, tensors, blob, code, threads)
    return PackedLinear(blob, *common, native.ISAS[code])


def quant_matmul(x: Tensor, weight: PackedLinear, out: Tensor | None = None, *, threads: int = 1) -> Tensor:
    """out = x @ dequantized weight + bias.

    x (M, K) float32, contiguous; out (M, N) float32, contiguous, overwritten (made if None). Returns out.
    Raises ShapeError or DtypeError for anything else. Source: reference.quant_matmul; exact weights differ from it by
    the order of summation, others by the rounding of activations to 8 bits (tests/ops/test_linear*.py).
    """
    if x.dtype != torch.float32:
        raise DtypeError(f"x must be float32, found {x.dtype}")
    if x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ShapeError(f"x must be (M, {weight.in_features}), found {tuple(x.shape)}")
    if out is None:
        out = torch.empty(x.shape[0], weight.out_features)
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise DtypeError(f"out must be contiguous float32, found {out.dtype}")
    if out.shape != (x.shape[0], weight.out_features):
        raise ShapeError(f"out must be {(x.shape[0], weight.out_features)}, found {tuple(out.shape)}")
    if weight.source is not None:
        return out.copy_(reference.quant_matmul(x, weight.source))
    if x.shape[0]:
        code = native.isa_code(weight.isa)
        native.ops().linear_multiply(x.contiguous(), weight.blob, weight.out_features, out, code, threads)
    return out


def _source(weight: LinearWeight, exact: bool) -> tuple[list[int], list[Tensor]]:
    """Sizes and tensors as csrc/bindings_linear_cpu.cpp lists them."""
    none = torch.empty(0)
    sizes = [weight.in_features, weight.out_features, weight.out_features, int(exact)]
    bias = none if weight.bias is None else weight.bias
    if isinstance(weight, Exl2Weight):
        sizes[1] = weight.padded_out
        tensors = [weight.q_weight, weight.q_scale, weight.q_scale_max, weight.q_groups, weight.perm.int(), bias]
    elif isinstance(weight, GptqWeight):
        sizes.append(weight.bits)
        rows = torch.tensor(weight.group_rows, dtype=torch.int32)
        perm = none if weight.perm is None else weight.perm.int()
        tensors = [weight.qweight, weight.zeros.int(), weight.scales, rows, perm, bias]
    else:
        assert isinstance(weight, DenseWeight)
        tensors = [weight.weight, bias.float()]
    return sizes, [tensor.contiguous() for tensor in tensors]
