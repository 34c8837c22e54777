"""One GPTQ linear layer as its file stores it, and its exact meaning.

    tensor    dtype                     shape           content
    qweight   int32                     (K*b/32, N)     codes, packed down the rows, in the order of the inputs
    qzeros    int32                     (G, N*b/32)     zero points, packed along the columns
    scales    float16                   (G, N)          step size
    g_idx     int32                     (K,)            group of each input feature; absent if in order
    bias      float16                   (N,)            only where the layer has one

Version 1 files hold zero point - 1, version 2 files the zero point itself.
Source: spec/gptq-format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from exl2_tui.core.formats.fault import Expected, Fault, layout_fault
from exl2_tui.core.formats.packing import unpack_columns, unpack_rows, word_rows

GPTQ_BITS = (2, 3, 4, 8)
FEATURE_MULTIPLE = 32
CHUNK_ELEMENTS = 1 << 22

_ONES = {2: (0x55555555,), 4: (0x11111111,), 8: (0x01010101,)}
# "One in every 3-bit field" is 49249249 92492492 24924924; GPTQModel subtracts these three when it writes version 1.
_ONES_GPTQMODEL_3BIT = (0x24924924, 0x92492492, 0x49249249)


@dataclass(frozen=True, eq=False)
class GptqWeight:
    """K x N weights of one width with a zero point and a scale per group and column.

    group_size: rows per group where g_idx does not say otherwise (the last group may be shorter). v2: qzeros hold the
    zero points themselves. gptqmodel: written by GPTQModel, which packs version 1 zeros of 3 bits in its own way.
    Tensors may be views of a mapped file; nothing here writes to them.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor | None
    bias: Tensor | None
    bits: int
    group_size: int
    v2: bool
    gptqmodel: bool = False

    kind: Literal["gptq"] = "gptq"

    @property
    def in_features(self) -> int:
        return self.qweight.shape[0] * 32 // self.bits

    @property
    def out_features(self) -> int:
        return self.qweight.shape[1]

    @property
    def nbytes(self) -> int:
        """Stored bytes, bias and g_idx included."""
        tensors = (self.qweight, self.qzeros, self.scales, self.g_idx, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, without the bias."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return 8 * (self.nbytes - bias) / (self.in_features * self.out_features)

    @cached_property
    def zeros(self) -> Tensor:
        """(G, N) int16: true zero points, 0..2**bits."""
        if self.v2:
            return unpack_columns(self.qzeros, self.bits, self.out_features).short()
        if self.bits == 3 and not self.gptqmodel:
            return unpack_columns(self.qzeros, self.bits, self.out_features).short() + 1
        # Adding to the whole word lets a carry undo the borrow of a writer's subtraction where a zero point is 0.
        ones = _ONES_GPTQMODEL_3BIT if self.bits == 3 else _ONES[self.bits]
        pattern = torch.tensor(ones, dtype=torch.int64).to(torch.int32)
        words = self.qzeros + pattern.repeat(self.qzeros.shape[1] // len(ones))  # int32 addition wraps
        return unpack_columns(words, self.bits, self.out_features).short()

    @cached_property
    def row_groups(self) -> Tensor:
        """(K,) int64: group of each input feature."""
        if self.g_idx is None:
            return torch.arange(self.in_features) // self.group_size
        return self.g_idx.long()

    @cached_property
    def group_rows(self) -> tuple[int, ...]:
        """Rows of each group, G numbers. With `perm` applied the groups lie one after another in this size."""
        return tuple(torch.bincount(self.row_groups, minlength=self.scales.shape[0]).tolist())

    @cached_property
    def perm(self) -> Tensor | None:
        """(K,) int64 input feature of each row once rows are sorted by group (stable); None if they already are."""
        if bool((self.row_groups.diff() >= 0).all()):
            return None
        return torch.argsort(self.row_groups, stable=True)

    def codes(self) -> Tensor:
        """(K, N) uint8: the unsigned codes, in the order of the input features."""
        return unpack_rows(self.qweight, self.bits, self.in_features)

    def dequantize(self) -> Tensor:
        """(K, N) float16: fp16(scale * (code - zero)), each row by its own group. Decodes a few million at a time."""
        features, outputs = self.in_features, self.out_features
        weight = torch.empty(features, outputs, dtype=torch.float16)
        rows_at_once = max(1, CHUNK_ELEMENTS // (outputs * FEATURE_MULTIPLE)) * FEATURE_MULTIPLE
        zeros, scales = self.zeros.half(), self.scales  # whole numbers up to 256 are exact in fp16
        for row in range(0, features, rows_at_once):
            rows = min(rows_at_once, features - row)
            words = self.qweight[word_rows(row, self.bits) : word_rows(row + rows, self.bits)]
            group = self.row_groups[row : row + rows]
            values = unpack_rows(words, self.bits, rows).half().sub_(zeros[group])
            torch.mul(values, scales[group], out=weight[row : row + rows])
        return weight

    def validate(self, file: Path | str | None = None, prefix: str = "") -> None:
        """Raises CheckpointError unless the tensors describe one well-formed layer."""
        fault = self._shape_fault() or self._value_fault()
        if fault is not None:
            raise fault.error(file, prefix)

    def _shape_fault(self) -> Fault | None:
        if self.bits not in GPTQ_BITS:
            return Fault("qweight", f"codes of {GPTQ_BITS} bits", self.bits)
        for name, tensor in (("qweight", self.qweight), ("scales", self.scales)):
            if tensor.dim() != 2 or tensor.numel() == 0:
                return Fault(name, "a matrix that is not empty", tuple(tensor.shape))
        features, outputs, groups = self.in_features, self.out_features, self.scales.shape[0]
        if outputs % FEATURE_MULTIPLE or features % FEATURE_MULTIPLE:
            return Fault("qweight", "multiples of 32 for inputs and outputs", (features, outputs))
        layout = [
            Expected("qweight", self.qweight, torch.int32, (word_rows(features, self.bits), outputs)),
            Expected("scales", self.scales, torch.float16, (groups, outputs)),
            Expected("qzeros", self.qzeros, torch.int32, (groups, outputs * self.bits // 32)),
        ]
        if self.g_idx is not None:
            layout.append(Expected("g_idx", self.g_idx, torch.int32, (features,)))
        if self.bias is not None:
            layout.append(Expected("bias", self.bias, torch.float16, (outputs,)))
        fault = layout_fault(layout)
        if fault is not None:
            return fault
        if self.group_size < 1 or -(-features // self.group_size) > groups:
            return Fault(
                "scales", f"{-(-features // max(1, self.group_size))} groups of {self.group_size} rows", groups
            )
        return None

    def _value_fault(self) -> Fault | None:
        groups = self.scales.shape[0]
        if self.g_idx is not None and (int(self.g_idx.min()) < 0 or int(self.g_idx.max()) >= groups):
            found = f"{int(self.g_idx.min())} to {int(self.g_idx.max())}"
            return Fault("g_idx", f"group numbers from 0 to {groups - 1}", found)
        if not bool(self.scales.isfinite().all()):
            return Fault("scales", "finite numbers in float16", "infinity or not a number")
        return None
