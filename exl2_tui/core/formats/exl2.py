"""One EXL2 linear layer as its file stores it, and its exact meaning.

    tensor        dtype    shape                 content
    q_weight      int32    (R, N)                codes, groups of rows one after another, each with its own width
    q_scale       int32    (G, N/8)              4-bit scale codes
    q_scale_max   float16  (G,)                  scale of code 15, per group
    q_groups      int16    (2G,)                 bits and first word row of each group (unsigned)
    q_invperm     int32    (K,)                  packed row of each input feature
    bias          float16  (N,)                  only where the layer has one

N is out_features rounded up to 32. What the architecture expects of a layer is not known here.
Source: spec/exl2-format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exl2_tui.core.errors import CheckpointError, QuantizationError
from exl2_tui.core.formats.fault import Expected, Fault, layout_fault
from exl2_tui.core.formats.packing import CODE_BITS, pack_columns, pack_rows, unpack_columns, unpack_rows, word_rows

ROW_MULTIPLE = 32
COLUMN_MULTIPLE = 32
SCALE_BITS = 4
MAX_ROWS = 65536  # the reference narrows row numbers to 16 bits
MIN_WRITTEN_SCALE = 2.0**-16  # below, one code step (scale / 256) rounds to zero in fp16
CHUNK_ELEMENTS = 1 << 22  # weights decoded at once: some 30 MB of scratch, whatever the layer's size


class Group(NamedTuple):
    """Consecutive packed rows that share a width and a scale per column."""

    bits: int
    rows: int
    start_row: int
    word_row: int


def padded_columns(out_features: int) -> int:
    """Columns stored for a layer of `out_features`."""
    return -(-out_features // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def scale_steps(q_scale_max: Tensor, q_scale: Tensor) -> Tensor:
    """Step size S (G, N) float16 from q_scale_max (G,) float16 and q_scale (G, N/8) int32.

    S = fp16((c+1)^2 * fp16(max/256)), both roundings as the quantizer saw them: max/256 is mostly an fp16 subnormal.
    """
    codes = unpack_columns(q_scale, SCALE_BITS, q_scale.shape[1] * 8)
    return scale_steps_of_codes(q_scale_max, codes)


def scale_steps_of_codes(q_scale_max: Tensor, scale_codes: Tensor) -> Tensor:
    """Step size S (G, N) float16 from q_scale_max (G,) float16 and scale codes 0..15 (G, N) uint8."""
    unit = (q_scale_max.float() / 256).half().float()
    squares = (scale_codes.float() + 1).square_()
    return (squares * unit[:, None]).half()  # exact in float32, so this rounds once


@dataclass(frozen=True, eq=False)
class Exl2Weight:
    """K x N weights of mixed 2- to 8-bit codes. Tensors may be views of a mapped file; nothing here writes to them.

    bias (out_features,) float16 or None: without the padding it has on disk.
    """

    q_weight: Tensor
    q_scale: Tensor
    q_scale_max: Tensor
    q_groups: Tensor
    q_invperm: Tensor
    bias: Tensor | None
    out_features: int

    kind: Literal["exl2"] = "exl2"

    @property
    def in_features(self) -> int:
        return self.q_invperm.shape[0]

    @property
    def padded_out(self) -> int:
        """Columns stored: out_features rounded up to 32."""
        return self.q_weight.shape[1]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Groups in packed-row order. Rows may be wrong, even negative, until validate() has passed."""
        numbers = [number & 0xFFFF for number in self.q_groups.tolist()]
        widths, starts = numbers[0::2], numbers[1::2]
        groups: list[Group] = []
        row = 0
        for bits, start, end in zip(widths, starts, [*starts[1:], self.q_weight.shape[0]], strict=True):
            rows = (end - start) * 32 // bits if bits else 0
            groups.append(Group(bits, rows, row, start))
            row += rows
        return tuple(groups)

    @cached_property
    def perm(self) -> Tensor:
        """(K,) int64: input feature of each packed row. Of a valid weight."""
        # Not by an assignment with an index: while a model was loaded that took 0.75 ms instead of the 9 us it takes by
        # itself, a quarter of the time.
        rows = torch.arange(self.in_features)
        return torch.empty_like(rows).scatter_(0, self.q_invperm.long(), rows)

    @property
    def stored_bits(self) -> int:
        """Bits of the five tensors, the measure of quantized size; a bias is not counted."""
        tensors = (self.q_weight, self.q_scale, self.q_scale_max, self.q_groups, self.q_invperm)
        return 8 * sum(tensor.nbytes for tensor in tensors)

    @property
    def bpw(self) -> float:
        """Stored bits per weight, padding counted as weights."""
        return self.stored_bits / (self.in_features * self.padded_out)

    @property
    def bits_per_weight(self) -> float:
        return self.bpw

    @property
    def nbytes(self) -> int:
        return self.stored_bits // 8 + (0 if self.bias is None else self.bias.nbytes)

    def row_groups(self) -> Tensor:
        """(K,) int64: group of each packed row."""
        rows = torch.tensor([group.rows for group in self.groups])
        return torch.repeat_interleave(torch.arange(len(rows)), rows)

    def scale_steps(self) -> Tensor:
        """(G, padded_out) float16: step size of each group and column."""
        return scale_steps(self.q_scale_max, self.q_scale)

    def codes(self, group: Group) -> Tensor:
        """(group.rows, padded_out) uint8: the unsigned codes of one group, in packed-row order."""
        words = self.q_weight[group.word_row : group.word_row + word_rows(group.rows, group.bits)]
        return unpack_rows(words, group.bits, group.rows)

    def dequantize(self) -> Tensor:
        """(K, out_features) float16, W[k, n] the weight of input feature k; bit-exact as in section 6 of the spec.

        Decodes a few million weights at a time: scratch memory stays near 30 MB beside the result.
        """
        steps = self.scale_steps()[:, : self.out_features]
        row_groups = self.row_groups()
        weight = torch.empty(self.in_features, self.out_features, dtype=torch.float16)
        chunk_rows = max(1, CHUNK_ELEMENTS // (self.padded_out * ROW_MULTIPLE)) * ROW_MULTIPLE
        for bits, section in groupby(self.groups, key=lambda group: group.bits):
            members = list(section)
            word_row, row = members[0].word_row, members[0].start_row
            end_row = members[-1].start_row + members[-1].rows
            while row < end_row:
                rows = min(chunk_rows, end_row - row)
                words = self.q_weight[word_row : word_row + word_rows(rows, bits), : self.out_features]
                # The whole numbers are exact in fp16 and torch rounds an fp16 product once.
                values = unpack_rows(words, bits, rows).half().sub_(1 << (bits - 1))
                values.mul_(steps[row_groups[row : row + rows]])
                weight.index_copy_(0, self.perm[row : row + rows], values)
                word_row, row = word_row + word_rows(rows, bits), row + rows
        return weight

    def validate(self, file: Path | str | None = None, prefix: str = "") -> None:
        """Raises CheckpointError unless the tensors describe one well-formed layer of out_features columns."""
        fault = self._shape_fault() or self._group_fault() or self._value_fault()
        if fault is not None:
            raise fault.error(file, prefix)

    def _shape_fault(self) -> Fault | None:
        for name, tensor, rank in (("q_weight", self.q_weight, 2), ("q_scale_max", self.q_scale_max, 1)):
            if tensor.dim() != rank:
                return Fault(name, f"{rank} dimensions", tuple(tensor.shape))
        rows, groups = self.q_weight.shape[0], self.q_scale_max.shape[0]
        columns = padded_columns(self.out_features)
        if groups > self.q_invperm.numel() // ROW_MULTIPLE:
            return Fault("q_scale_max", f"at most one group per {ROW_MULTIPLE} input features", groups)
        layout = [
            Expected("q_weight", self.q_weight, torch.int32, (rows, columns)),
            Expected("q_scale_max", self.q_scale_max, torch.float16, (groups,)),
            Expected("q_scale", self.q_scale, torch.int32, (groups, columns // 8)),
            Expected("q_groups", self.q_groups, torch.int16, (2 * groups,)),
            Expected("q_invperm", self.q_invperm, torch.int32, (self.q_invperm.numel(),)),
        ]
        if self.bias is not None:
            layout.append(Expected("bias", self.bias, torch.float16, (self.out_features,)))
        return layout_fault(layout)

    def _group_fault(self) -> Fault | None:
        """Groups must tile the words from row 0, with falling widths, and add up to the input features."""
        groups = self.groups
        if groups[0].word_row != 0:
            return Fault("q_groups", "the first group at word row 0", groups[0].word_row)
        ends = [*(group.word_row for group in groups[1:]), self.q_weight.shape[0]]
        previous = max(CODE_BITS)
        for index, (group, end) in enumerate(zip(groups, ends, strict=True)):
            words = end - group.word_row
            if group.bits not in CODE_BITS:
                return Fault("q_groups", f"group {index} to have bits in {CODE_BITS}", group.bits)
            if group.bits > previous:
                return Fault("q_groups", f"widths that never rise, group {index} at most {previous}", group.bits)
            if words <= 0:
                return Fault("q_groups", f"group {index} to start before word row {end}", group.word_row)
            if words % group.bits:  # 32 rows of b bits are b words
                found = f"{words} word rows of {group.bits} bits"
                return Fault("q_groups", f"group {index} to hold a multiple of {ROW_MULTIPLE} rows", found)
            previous = group.bits
        rows = groups[-1].start_row + groups[-1].rows
        if rows != self.in_features:
            return Fault("q_groups", f"groups of {self.in_features} rows together, as q_invperm has", rows)
        return None

    def _value_fault(self) -> Fault | None:
        # A group of nothing but zeros may carry scale 0: the reference adds 1e-12 to it, which fp16 does not hold.
        sane = self.q_scale_max.isfinite() & (self.q_scale_max >= 0)
        if not bool(sane.all()):
            return Fault("q_scale_max", "finite scales of 0 or more", float(self.q_scale_max[~sane][0]))
        lowest, highest = self.q_invperm.aminmax()
        inside = int(lowest) >= 0 and int(highest) < self.in_features
        if not inside or int(torch.bincount(self.q_invperm).max()) > 1:
            return Fault("q_invperm", f"every number from 0 to {self.in_features - 1} once", "a number twice or beyond")
        return None

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale_codes: Tensor,
        scale_max: Tensor,
        groups: Sequence[tuple[int, int]],
        perm: Tensor,
        bias: Tensor | None = None,
        pack: Callable[[Tensor, int], Tensor] = pack_rows,
    ) -> Exl2Weight:
        """Packs a quantized layer so that the reference program loads it.

        codes (K, N) uint8 in packed-row order; scale_codes (G, N) uint8, 0..15; scale_max (G,) float16; groups
        (bits, rows) in packed-row order; perm (K,) input feature of each packed row; bias (N,) float16 or None.
        pack: pack_rows, or what does the same faster. Columns are padded to 32 with weights that decode to zero. Raises
        QuantizationError for what a file must not hold. Source: spec section 13.
        """
        features, out_features = codes.shape
        if features % ROW_MULTIPLE or not 0 < features <= MAX_ROWS:
            raise QuantizationError(f"expected input features in multiples of 32 up to {MAX_ROWS}, found {features}")
        if not bool((scale_max >= MIN_WRITTEN_SCALE).all()):
            raise QuantizationError(f"expected group scales of at least 2**-16, found {float(scale_max.min())}")
        if not torch.equal(torch.sort(perm.long()).values, torch.arange(features)):
            raise QuantizationError(f"expected a permutation of {features} input features, found other numbers")
        padding = padded_columns(out_features) - out_features
        words: list[Tensor] = []
        group_numbers: list[int] = []
        row = word_row = 0
        for bits, rows in groups:
            if bits not in CODE_BITS or rows <= 0 or rows % ROW_MULTIPLE:
                raise QuantizationError(f"expected groups of a multiple of 32 rows, found {rows} rows of {bits} bits")
            zero = 1 << (bits - 1)
            block = torch.nn.functional.pad(codes[row : row + rows], (0, padding), value=zero)
            words.append(pack(block, bits))
            group_numbers += [bits, word_row]
            row, word_row = row + rows, word_row + words[-1].shape[0]
        if word_row > 0xFFFF:
            raise QuantizationError(f"expected at most 65535 word rows, which q_groups can number, found {word_row}")
        unsigned_groups = torch.tensor(group_numbers, dtype=torch.int32)
        weight = cls(
            q_weight=torch.cat(words),
            q_scale=pack_columns(torch.nn.functional.pad(scale_codes, (0, padding)), SCALE_BITS),
            q_scale_max=scale_max.half().contiguous(),
            q_groups=unsigned_groups.to(torch.int16),
            q_invperm=torch.argsort(perm.long()).to(torch.int32),
            bias=None if bias is None else bias.half().contiguous(),
            out_features=out_features,
        )
        try:
            weight.validate()
        except CheckpointError as error:
            raise QuantizationError(f"the layer does not fit the file format: {error}") from error
        return weight

    def stored_tensors(self, prefix: str) -> dict[str, Tensor]:
        """The layer's tensors by their full names, as a file holds them (bias padded)."""
        tensors = {
            f"{prefix}.q_weight": self.q_weight,
            f"{prefix}.q_scale": self.q_scale,
            f"{prefix}.q_scale_max": self.q_scale_max,
            f"{prefix}.q_groups": self.q_groups,
            f"{prefix}.q_invperm": self.q_invperm,
        }
        if self.bias is not None:
            padding = self.padded_out - self.out_features
            tensors[f"{prefix}.bias"] = torch.nn.functional.pad(self.bias, (0, padding))
        return tensors
