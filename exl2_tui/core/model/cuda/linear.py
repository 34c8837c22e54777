"""Packs linears for the GPU: strips of 32 columns, segments of up to 4 blocks of 32 rows (csrc/cuda/plan.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from exl2_tui.core.errors import UnsupportedError
from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight, LinearWeight
from exl2_tui.core.formats.packing import unpack_columns

STRIP_COLUMNS = 32
BLOCK_ROWS = 32
BLOCK_CODES = STRIP_COLUMNS * BLOCK_ROWS
MOST_ROWS = 8  # of a product with the packed weight
WARPS = 16  # that share the rows of a strip
KINDS = {"exl2": 0, "gptq": 1, "float": 2}
HEADER_BYTES = 16
SCALE_BYTES = {"exl2": 16, "gptq": 96, "float": 0}  # of a group
MANY_WARPS = WARPS * 3 // 4
MAX_BLOCKS = {2: 4, 3: 4, 4: 4, 5: 4, 6: 2, 8: 2, 16: 1}  # of a segment, by width: about 2 KiB


@dataclass(frozen=True)
class Segment:
    """Blocks first_block ... first_block + blocks - 1 of packed rows, all of one width.

    They belong to the groups from `group` on, of group_blocks each.
    """

    bits: int
    group: int
    first_block: int
    blocks: int
    group_blocks: int

    def nbytes(self, kind: str) -> int:
        """In one strip, header included."""
        groups = -(-self.blocks // self.group_blocks)
        return HEADER_BYTES + groups * SCALE_BYTES[kind] + self.bits * self.blocks * BLOCK_CODES // 8


def share_segments(count: int) -> list[int]:
    """How the warps share a strip of `count` segments: where those of each begin, and where the last ones end.

    The slowest warp decides, and a segment takes about as long whatever its width. Where nearly all warps are needed
    anyway, the last ones take as many as any: with some idle ones the step was faster than with all a little less busy.
    """
    most = -(-count // WARPS)
    if most * MANY_WARPS < count:
        return [max(0, count - most * (WARPS - warp)) for warp in range(WARPS + 1)]
    return [count * warp // WARPS for warp in range(WARPS + 1)]


def cut_segments(groups: Sequence[tuple[int, int]]) -> list[Segment]:
    """groups: width and number of blocks of every group of rows, in packed order. Small ones share a segment."""
    total = sum(blocks for _, blocks in groups)
    result: list[Segment] = []
    start = 0
    for index, (bits, blocks) in enumerate(groups):
        most = min(MAX_BLOCKS[bits], max(1, total // WARPS))  # short columns: smaller pieces, one for each warp
        last = result[-1] if result else None
        if last and (last.bits, last.group_blocks) == (bits, blocks) and last.blocks + blocks <= most:
            result[-1] = replace(last, blocks=last.blocks + blocks)
        else:
            for first in range(0, blocks, most):
                size = min(most, blocks - first)
                result.append(Segment(bits, index, start + first, size, size))
        start += blocks
    return result


@dataclass(frozen=True, eq=False)
class CudaLinear:
    """One packed linear. Fields mirror struct Linear of csrc/cuda/plan.h; None becomes a null pointer.

    codes (strips * strip_bytes,) uint8. table (n_segments, 4) int32: struct Segment. starts: where segments begin in a
    strip and where the last one ends, in bytes; offsets the same on the GPU, int32, in 16 bytes; block_starts the same
    in blocks of rows.
    perm (K,) int32: input feature of each packed row, None where rows are in order; inverse: inverse_of it. in_features
    is K rounded up to 32.
    """

    kind: str
    codes: Tensor
    table: Tensor
    offsets: Tensor
    starts: tuple[int, ...]
    block_starts: tuple[int, ...]
    inverse: Tensor | None
    perm: Tensor | None
    bias: Tensor | None
    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        tensors = (self.codes, self.table, self.offsets, self.inverse, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def strips(self) -> int:
        return -(-self.out_features // STRIP_COLUMNS)

    @cached_property
    def slot_bytes(self) -> int:
        """The largest segment."""
        return max(end - start for start, end in pairwise(self.starts))

    def plan(self, offset: int = 0, turn: int = 0) -> bytes:
        """struct Linear of csrc/cuda/plan.h.

        offset: the CUDA block of the decode kernel that computes strip 0. turn: the warp that has the first share of a
        strip's rows.
        """
        pointers = (self.codes, self.table, self.offsets, self.inverse, self.bias)
        fields = struct.pack(
            "<5Q7q",
            *(0 if tensor is None else tensor.data_ptr() for tensor in pointers),
            self.in_features,
            self.out_features,
            self.strips,
            self.starts[-1],
            len(self.starts) - 1,
            KINDS[self.kind],
            offset,
        )
        shares = list(self._shares())
        return fields + b"".join(struct.pack("<4H2I", *shares[(warp - turn) % WARPS]) for warp in range(WARPS))

    def _shares(self) -> Iterator[tuple[int, ...]]:
        """struct Share of every warp."""
        count = len(self.starts) - 1
        for begin, end in pairwise(share_segments(count)):
            last = min(begin + 1, count)
            blocks = self.block_starts[begin], self.block_starts[end]
            yield begin, end, *blocks, self.starts[begin] // 16, self.starts[last] // 16

    @cached_property
    def plan_tensor(self) -> Tensor:
        """The plan as a uint8 CPU tensor, what the ops take. Prompts need it too often to make it every time."""
        return torch.frombuffer(bytearray(self.plan()), dtype=torch.uint8)

    def dequantize(self, out: Tensor) -> Tensor:
        """(N, K) float16 with the input features in packed order, written into the front of `out`."""
        matrix = out.view(-1)[: self.out_features * self.in_features].view(self.out_features, self.in_features)
        torch.ops.exl2_cuda.dequantize(self.plan_tensor, matrix)
        return matrix

    def multiply(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """rows (T, K) float16 in packed order, T <= MOST_ROWS -> (T, N) in dtype, float16 or float32."""
        out = rows.new_empty(len(rows), self.out_features, dtype=dtype)
        torch.ops.exl2_cuda.plain_product(self.plan_tensor, rows, out)
        return out


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
    first_words: list[int] = []
    for group in weight.groups:
        first_words += [group.word_row + block * group.bits for block in range(group.rows // BLOCK_ROWS)]
    codes = unpack_columns(weight.q_scale, 4, weight.padded_out)  # (G, N)
    nibbles = codes.view(len(weight.groups), _strips(weight.padded_out), 4, 8).permute(1, 0, 3, 2).to(torch.int32)
    shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    scales = (nibbles << shifts).sum(-1, dtype=torch.int32).to(torch.int16)
    perm, inverse = _permutation(weight.perm, device)
    return _repack(
        weight,
        [(group.bits, group.rows // BLOCK_ROWS) for group in weight.groups],
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
    columns = _strips(weight.out_features) * STRIP_COLUMNS
    padding = (0, columns - weight.out_features)

    def by_strip(values: Tensor) -> Tensor:
        strips = torch.nn.functional.pad(values, padding).view(values.shape[0], -1, STRIP_COLUMNS)
        return strips.transpose(0, 1).contiguous().to(device)

    perm, inverse = (None, None) if weight.perm is None else _permutation(weight.perm, device)
    return _repack(
        weight,
        [(weight.bits, rows // BLOCK_ROWS) for rows in weight.group_rows],
        device,
        words=weight.qweight.to(device),
        source_perm=perm,
        columns=weight.out_features,
        scales=by_strip(weight.scales),
        groups=by_strip(weight.zeros.clamp(max=255).to(torch.uint8)),
        perm=perm,
        inverse=inverse,
    )


def _pack_dense(weight: DenseWeight, device: torch.device) -> CudaLinear:
    rows = weight.in_features
    words = weight.weight.to(device=device, dtype=torch.float16).contiguous()
    return _repack(weight, [(16, -(-rows // BLOCK_ROWS))], device, words=words, columns=weight.out_features, rows=rows)


def _repack(
    weight: LinearWeight,
    widths: Sequence[tuple[int, int]],
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
    rows: int | None = None,
) -> CudaLinear:
    """widths: see cut_segments. The other tensors are RepackSource of csrc/cuda/kernels.h."""
    packed = empty_linear(weight.kind, widths, weight.out_features, device, inverse, perm, weight.bias)

    def address(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    torch.ops.exl2_cuda.repack(
        packed.plan_tensor,
        words.data_ptr(),
        address(first_words),
        address(source_perm),
        address(scales),
        address(groups),
        len(widths),
        packed.in_features if rows is None else rows,
        columns,
        packed.codes,
    )
    torch.cuda.current_stream(device).synchronize()  # the source tensors may go
    return packed


def empty_linear(
    kind: str,
    widths: Sequence[tuple[int, int]],
    out_features: int,
    device: torch.device,
    inverse: Tensor | None = None,
    perm: Tensor | None = None,
    bias: Tensor | None = None,
) -> CudaLinear:
    """A linear whose codes are not written yet."""
    segments = cut_segments(widths)
    starts = (0, *accumulate(segment.nbytes(kind) for segment in segments))
    table = bytearray()
    for segment, start in zip(segments, starts, strict=False):
        place, layout = (start // 16, segment.first_block), (segment.bits, segment.blocks, segment.group_blocks)
        table += struct.pack("<IIHBBI", *place, segment.group, *layout)
    return CudaLinear(
        kind=kind,
        codes=torch.empty(_strips(out_features) * starts[-1], dtype=torch.uint8, device=device),
        table=torch.frombuffer(table, dtype=torch.int32).view(-1, 4).to(device),
        offsets=torch.tensor(starts, dtype=torch.int64).div_(16, rounding_mode="floor").to(torch.int32).to(device),
        starts=starts,
        block_starts=(0, *accumulate(segment.blocks for segment in segments)),
        inverse=inverse,
        perm=perm,
        bias=None if bias is None else bias.to(device=device, dtype=torch.float16),
        in_features=sum(blocks for _, blocks in widths) * BLOCK_ROWS,
        out_features=out_features,
    )


def _permutation(perm: Tensor, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """(perm, inverse) on the GPU, or nothing for the identity."""
    if bool((perm == torch.arange(len(perm))).all()):
        return None, None
    return perm.to(device=device, dtype=torch.int32), inverse_of(perm).to(device)


def inverse_of(perm: Tensor) -> Tensor:
    """perm (K,), a permutation -> (K,) uint16, in the int16 that torch can compare."""
    if len(perm) > 1 << 16:
        raise UnsupportedError(
            "a linear layer of more than 65,536 input features in another order cannot run on the GPU"
        )
    return torch.argsort(perm).to(torch.uint16).view(torch.int16)


def _strips(columns: int) -> int:
    return -(-columns // STRIP_COLUMNS)
