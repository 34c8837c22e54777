"""Packs linears for the GPU: strips of 32 columns, blocks of 32 rows, as csrc/cuda/plan.h describes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from exl2_tui.core.errors import UnsupportedError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight, LinearWeight
from exl2_tui.core.formats.packing import unpack_columns

STRIP_COLUMNS = 32
BLOCK_ROWS = 32
KINDS = {"exl2": 0, "gptq": 1, "float": 2}


@dataclass(frozen=True, eq=False)
class CudaLinear:
    """One packed linear. Fields mirror struct Linear of csrc/cuda/plan.h; None becomes a null pointer.

    perm (K,) int64: input feature of each packed row, None where rows are in order. in_features is K rounded up to 32.
    """

    kind: str
    codes: Tensor
    blocks: Tensor
    scales: Tensor | None
    groups: Tensor | None
    inverse: Tensor | None
    perm: Tensor | None
    bias: Tensor | None
    in_features: int
    out_features: int
    strip_bytes: int
    n_groups: int
    max_bits: int
    zero_shift: int

    @property
    def nbytes(self) -> int:
        tensors = (self.codes, self.blocks, self.scales, self.groups, self.inverse, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def plan(self) -> bytes:
        """struct Linear of csrc/cuda/plan.h: six pointers and nine int64."""
        pointers = (self.codes, self.blocks, self.scales, self.groups, self.inverse, self.bias)
        return struct.pack(
            "<6Q9q",
            *(0 if tensor is None else tensor.data_ptr() for tensor in pointers),
            self.in_features,
            self.out_features,
            _strips(self.out_features),
            self.strip_bytes,
            self.blocks.shape[0],
            self.n_groups,
            self.max_bits,
            self.zero_shift,
            KINDS[self.kind],
        )

    def plan_tensor(self) -> Tensor:
        """The plan as a uint8 CPU tensor, what the ops take."""
        return torch.frombuffer(bytearray(self.plan()), dtype=torch.uint8)

    def dequantize(self, out: Tensor) -> Tensor:
        """(N, K) float16 with the input features in packed order, written into the front of `out`."""
        matrix = out.view(-1)[: self.out_features * self.in_features].view(self.out_features, self.in_features)
        torch.ops.exl2_cuda.dequantize(self.plan_tensor(), matrix)
        return matrix


def pack_linear(weight: LinearWeight, device: torch.device) -> CudaLinear:
    """Repacks a weight on the GPU. Raises UnsupportedError for a layout that the kernels do not take.

    GPTQ with unequal groups (an act-order file whose groups are no multiples of 32 rows) is decoded to fp16.
    """
    if isinstance(weight, Exl2Weight):
        return _pack_exl2(weight, device)
    if isinstance(weight, GptqWeight):
        if all(rows % BLOCK_ROWS == 0 for rows in weight.group_rows):
            return _pack_gptq(weight, device)
        return _pack_dense(DenseWeight(weight.dequantize().t().contiguous(), weight.bias), device)
    return _pack_dense(weight, device)


def _pack_exl2(weight: Exl2Weight, device: torch.device) -> CudaLinear:
    if weight.in_features % BLOCK_ROWS or any(group.rows % BLOCK_ROWS for group in weight.groups):
        raise UnsupportedError("an EXL2 group whose rows are no multiple of 32 cannot run on the GPU")
    table: list[tuple[int, int, bool]] = []
    first_words: list[int] = []
    for index, group in enumerate(weight.groups):
        count = group.rows // BLOCK_ROWS
        table += [(group.bits, index, block == count - 1) for block in range(count)]
        first_words += [group.word_row + block * group.bits for block in range(count)]
    codes = unpack_columns(weight.q_scale, 4, weight.padded_out)  # (G, N)
    strips = _strips(weight.padded_out)
    nibbles = codes.view(len(weight.groups), strips, 4, 8).permute(1, 0, 3, 2).to(torch.int32)
    shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    scales = (nibbles << shifts).sum(-1, dtype=torch.int32).to(torch.int16)
    perm, inverse = _permutation(weight.perm, device)
    return _repack(
        weight,
        table,
        device,
        words=weight.q_weight.to(device),
        first_words=torch.tensor(first_words, dtype=torch.int32, device=device),
        columns=weight.padded_out,
        scales=scales.contiguous().to(device),
        groups=(weight.q_scale_max.float() / 256).half().to(device),
        perm=perm,
        inverse=inverse,
    )


def _pack_gptq(weight: GptqWeight, device: torch.device) -> CudaLinear:
    table: list[tuple[int, int, bool]] = []
    for index, rows in enumerate(weight.group_rows):
        count = rows // BLOCK_ROWS
        table += [(weight.bits, index, block == count - 1) for block in range(count)]
    by_strip = (weight.scales.shape[0], _strips(weight.out_features), STRIP_COLUMNS)
    perm, inverse = (None, None) if weight.perm is None else _permutation(weight.perm, device)
    return _repack(
        weight,
        table,
        device,
        words=weight.qweight.to(device),
        source_perm=None if perm is None else perm.to(torch.int32),
        columns=weight.out_features,
        scales=weight.scales.view(by_strip).transpose(0, 1).contiguous().to(device),
        groups=weight.zeros.clamp(max=255).to(torch.uint8).view(by_strip).transpose(0, 1).contiguous().to(device),
        perm=perm,
        inverse=inverse,
        zero_shift=1 << (weight.bits - 1),
    )


def _pack_dense(weight: DenseWeight, device: torch.device) -> CudaLinear:
    rows = weight.in_features
    blocks = -(-rows // BLOCK_ROWS)
    table = [(16, 0, block == blocks - 1) for block in range(blocks)]
    words = weight.weight.to(device=device, dtype=torch.float16).contiguous()
    return _repack(weight, table, device, words=words, columns=weight.out_features, rows=rows)


def _repack(
    weight: LinearWeight,
    table: list[tuple[int, int, bool]],
    device: torch.device,
    *,
    words: Tensor,
    columns: int,
    first_words: Tensor | None = None,
    source_perm: Tensor | None = None,
    scales: Tensor | None = None,
    groups: Tensor | None = None,
    perm: Tensor | None = None,
    inverse: Tensor | None = None,
    zero_shift: int = 0,
    rows: int | None = None,
) -> CudaLinear:
    """table: bits, group and whether it ends its group, of every block of 32 packed rows."""
    entries = bytearray()
    offset = 0
    for bits, group, ends in table:
        entries += struct.pack("<IHBB", offset // 16, group, bits, ends)
        offset += bits * STRIP_COLUMNS * BLOCK_ROWS // 8
    out_features = weight.out_features
    packed = CudaLinear(
        kind=weight.kind,
        codes=torch.empty(_strips(columns) * offset, dtype=torch.uint8, device=device),
        blocks=torch.frombuffer(entries, dtype=torch.int64).to(device),
        scales=scales,
        groups=groups,
        inverse=inverse,
        perm=perm,
        bias=None if weight.bias is None else weight.bias.to(device=device, dtype=torch.float16),
        in_features=len(table) * BLOCK_ROWS,
        out_features=out_features,
        strip_bytes=offset,
        n_groups=0 if scales is None else 1 + table[-1][1],
        max_bits=max(bits for bits, _, _ in table),
        zero_shift=zero_shift,
    )
    torch.ops.exl2_cuda.repack(
        packed.plan_tensor(),
        words.data_ptr(),
        0 if first_words is None else first_words.data_ptr(),
        0 if source_perm is None else source_perm.data_ptr(),
        packed.in_features if rows is None else rows,
        columns,
        packed.codes,
    )
    torch.cuda.current_stream(device).synchronize()  # the source tensors may go
    return packed


def _permutation(perm: Tensor, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """(perm, inverse) on the GPU, or nothing for the identity."""
    if bool((perm == torch.arange(len(perm))).all()):
        return None, None
    return perm.to(device), torch.argsort(perm).to(device=device, dtype=torch.int32)


def _strips(columns: int) -> int:
    return -(-columns // STRIP_COLUMNS)
