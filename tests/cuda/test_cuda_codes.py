"""The bit layout of the CUDA kernels, compiled for the CPU: csrc/cuda/codes.h is the same source on both."""

from __future__ import annotations

import ctypes

import pytest
import torch
from support.compiled import compile_cpp

WIDTHS = (2, 3, 4, 5, 6, 8)
SOURCE = r"""
#include "codes.h"
using namespace exl2::cuda;
template <int kBits, int c, int p>
static void one(const uint32_t* low, const uint32_t* high, uint32_t* out) {
  out[c * 4 + p] = pair_bits<kBits, c, p>(low, high);
}
template <int kBits, int c>
static void column(const uint32_t* low, const uint32_t* high, uint32_t* out) {
  one<kBits, c, 0>(low, high, out); one<kBits, c, 1>(low, high, out);
  one<kBits, c, 2>(low, high, out); one<kBits, c, 3>(low, high, out);
}
template <int kBits>
static void all(const uint32_t* low, const uint32_t* high, uint32_t* out) {
  column<kBits, 0>(low, high, out); column<kBits, 1>(low, high, out);
  column<kBits, 2>(low, high, out); column<kBits, 3>(low, high, out);
}
extern "C" void pack(int bits, const uint32_t* codes, uint32_t* low, uint32_t* high) {
  for (int c = 0; c < 4; ++c)
    for (int p = 0; p < 4; ++p) put_pair(bits, low, high, c, p, codes[(c * 4 + p) * 2], codes[(c * 4 + p) * 2 + 1]);
}
extern "C" void unpack(int bits, const uint32_t* low, const uint32_t* high, uint32_t* out) {
  switch (bits) {
    case 2: return all<2>(low, high, out);
    case 3: return all<3>(low, high, out);
    case 4: return all<4>(low, high, out);
    case 5: return all<5>(low, high, out);
    case 6: return all<6>(low, high, out);
    default: return all<8>(low, high, out);
  }
}
template <int kBits, int c>
static void bytes_of(const uint32_t* low, const uint32_t* high, uint32_t* out) {
  const EightCodes codes = eight_codes<kBits, c>(low, high);
  out[2 * c] = codes.first;
  out[2 * c + 1] = codes.second;
}
template <int kBits>
static void all_bytes(const uint32_t* low, const uint32_t* high, uint32_t* out) {
  bytes_of<kBits, 0>(low, high, out); bytes_of<kBits, 1>(low, high, out);
  bytes_of<kBits, 2>(low, high, out); bytes_of<kBits, 3>(low, high, out);
}
extern "C" void unpack_bytes(int bits, const uint32_t* low, const uint32_t* high, uint32_t* out) {
  switch (bits) {
    case 2: return all_bytes<2>(low, high, out);
    case 3: return all_bytes<3>(low, high, out);
    case 4: return all_bytes<4>(low, high, out);
    case 5: return all_bytes<5>(low, high, out);
    case 6: return all_bytes<6>(low, high, out);
    default: return all_bytes<8>(low, high, out);
  }
}
extern "C" int column_shift_of(int bits, int c) { return column_shift(bits, c); }
extern "C" int shift_of(int bits, int p) { return pair_shift(bits, p); }
extern "C" int words_of(int bits) { return low_words(bits) + high_words(bits); }
extern "C" uint32_t stream(const uint32_t* words, int64_t stride, int64_t i, int bits) {
  return stream_code(words, stride, i, bits);
}
"""


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_cpp(tmp_path_factory.mktemp("codes"), SOURCE)
    library.stream.restype = ctypes.c_uint32
    return library


def words(values: list[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(values))(*values)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_of_a_lane_comes_back(codes: ctypes.CDLL, bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    for _ in range(200):
        wanted = torch.randint(0, 1 << bits, (32,), generator=generator).tolist()
        low, high, out = words([0] * 16), words([0] * 2), words([0] * 16)
        codes.pack(bits, words(wanted), low, high)
        codes.unpack(bits, low, high, out)
        for at, word in enumerate(out):
            shift = codes.shift_of(bits, at % 4)
            assert word == wanted[2 * at] << shift | wanted[2 * at + 1] << (16 + shift)


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_come_as_bytes_of_integer_products(codes: ctypes.CDLL, bits: int) -> None:
    """Rows 0, 2, 1, 3, then 4, 6, 5, 7; up to 4 bits the first word has both, the second 16 times as large."""
    generator = torch.Generator().manual_seed(bits)
    for _ in range(200):
        wanted = torch.randint(0, 1 << bits, (4, 8), generator=generator)
        low, high, out = words([0] * 16), words([0] * 2), words([0] * 8)
        codes.pack(bits, words(wanted.flatten().tolist()), low, high)
        codes.unpack_bytes(bits, low, high, out)
        for column, rows in enumerate(wanted):
            first, second = rows[[0, 2, 1, 3]], rows[[4, 6, 5, 7]]
            if bits <= 4:
                second = 16 * second
                first = first + second
            scale = 1 << codes.column_shift_of(bits, column)
            assert list(out[2 * column].to_bytes(4, "little")) == (first * scale).tolist()
            assert list(out[2 * column + 1].to_bytes(4, "little")) == (second * scale).tolist()


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_lane_stores_nothing_but_its_codes(codes: ctypes.CDLL, bits: int) -> None:
    low, high = words([0] * 16), words([0] * 2)
    codes.pack(bits, words([(1 << bits) - 1] * 32), low, high)
    assert (
        sum(word.bit_count() if hasattr(word, "bit_count") else bin(word).count("1") for word in [*low, *high])
        == 32 * bits
    )
    assert codes.words_of(bits) == bits


@pytest.mark.parametrize("bits", WIDTHS)
def test_fields_stay_where_fp16_is_linear(codes: ctypes.CDLL, bits: int) -> None:
    """Bit patterns below 2^11 are multiples of 2^-24: the kernels multiply them as they are."""
    largest = ((1 << bits) - 1) << max(codes.shift_of(bits, p) for p in range(4))
    assert largest < 1 << 11
    pattern = torch.tensor(largest, dtype=torch.int16).view(torch.float16)
    assert float(pattern) == largest * 2.0**-24


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_read_from_the_bit_streams_of_files(codes: ctypes.CDLL, bits: int) -> None:
    from exl2_tui.core.formats.packing import pack_rows

    wanted = torch.randint(0, 1 << bits, (64, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    packed = pack_rows(wanted, bits)
    flat = words([value & 0xFFFFFFFF for value in packed.flatten().tolist()])
    for column in range(8):
        start = ctypes.cast(ctypes.addressof(flat) + 4 * column, ctypes.POINTER(ctypes.c_uint32))
        found = [codes.stream(start, ctypes.c_int64(8), ctypes.c_int64(row), bits) for row in range(64)]
        assert found == wanted[:, column].tolist()
