"""Bit streams: unsigned codes of 2..8 bits in 32-bit words, as EXL2 and GPTQ store them.

Code i of a stream occupies bits i*b .. i*b+b-1, least significant bit first, and stream bit p is bit p % 32 of word
p // 32. EXL2 and GPTQ weights run down the rows of a column, scales and zero points along a row.
The words are int32 because that is what the files hold; they mean unsigned numbers.
Source: spec/exl2-format.md section 4, spec/gptq-format.md section 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exl2_tui.core.errors import DtypeError, ShapeError

WORD_BITS = 32
CODE_BITS = (2, 3, 4, 5, 6, 8)


def _repeat(bits: int) -> tuple[int, int]:
    """(codes, words) after which the pattern of a stream starts again on a word boundary."""
    if bits not in CODE_BITS:
        raise ShapeError(f"codes of {bits} bits: expected one of {CODE_BITS}")
    common = math.gcd(bits, WORD_BITS)
    return WORD_BITS // common, bits // common


def word_rows(rows: int, bits: int) -> int:
    """Words that hold `rows` codes of one column. Raises ShapeError if they would not fill their last word."""
    codes, words = _repeat(bits)
    if rows < 0 or rows % codes:
        raise ShapeError(f"{rows} codes of {bits} bits do not fill whole words: expected a multiple of {codes}")
    return rows // codes * words


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """codes (K, N) uint8, each below 2**bits -> words (K*bits/32, N) int32.

    Raises ShapeError if K does not fill whole words, DtypeError for other dtypes, ValueError for a code out of range.
    """
    if codes.dtype != torch.uint8:
        raise DtypeError(f"codes to pack are {codes.dtype}: expected torch.uint8")
    rows, columns = codes.shape
    per_repeat, words_per_repeat = _repeat(bits)
    repeats = word_rows(rows, bits) // words_per_repeat
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"code {int(codes.max())} does not fit into {bits} bits")
    source = codes.reshape(repeats, per_repeat, columns)
    words = torch.zeros(repeats, words_per_repeat, columns, dtype=torch.int32, device=codes.device)
    for i in range(per_repeat):
        word, shift = divmod(i * bits, WORD_BITS)
        code = source[:, i].to(torch.int32)
        words[:, word] |= code << shift
        if shift + bits > WORD_BITS:
            words[:, word + 1] |= code >> (WORD_BITS - shift)
    return words.flatten(0, 1)


def unpack_rows(words: Tensor, bits: int, rows: int) -> Tensor:
    """words (rows*bits/32, N) int32 -> codes (rows, N) uint8; inverse of pack_rows, any strides.

    Raises ShapeError if the words hold another number of rows, DtypeError for other dtypes.
    """
    if words.dtype != torch.int32:
        raise DtypeError(f"words to unpack are {words.dtype}: expected torch.int32")
    if words.shape[0] != word_rows(rows, bits):
        raise ShapeError(f"{rows} rows of {bits} bits need {word_rows(rows, bits)} word rows, found {words.shape[0]}")
    per_repeat, words_per_repeat = _repeat(bits)
    repeats = rows // per_repeat
    source = words.reshape(repeats, words_per_repeat, words.shape[1])
    codes = torch.empty(repeats, per_repeat, words.shape[1], dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for i in range(per_repeat):
        word, shift = divmod(i * bits, WORD_BITS)
        code = source[:, word] >> shift  # arithmetic: copies of the sign bit come in from above and are masked off
        if shift + bits > WORD_BITS:
            low_bits = WORD_BITS - shift
            code &= (1 << low_bits) - 1
            code |= source[:, word + 1] << low_bits
        codes[:, i] = code.bitwise_and_(mask)
    return codes.flatten(0, 1)


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """codes (G, N) uint8 -> words (G, N*bits/32) int32, the stream of each row running along its columns."""
    return pack_rows(codes.t(), bits).t().contiguous()


def unpack_columns(words: Tensor, bits: int, columns: int) -> Tensor:
    """words (G, columns*bits/32) int32 -> codes (G, columns) uint8; inverse of pack_columns."""
    return unpack_rows(words.t(), bits, columns).t().contiguous()
