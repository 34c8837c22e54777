// Halves in fewer bits. Most of what fp16 and bf16 weights say with their exponents is the same in all of them, so on
// the fast path a dense tile holds *narrow halves*: fp16 numbers that share a power of two with their block, and some
// of whose bits are therefore always 0.
//
//   from    exponents in use    always 0                                      bits    off by, of a block's largest
//   fp16    0 to 7              14, 13                                        14      at most 2^-17
//   bf16    0 to 15             14 and the last three of the mantissa, 2-0    12      at most 2^-22
//
// What is smaller than 2^-6 (2^-14) of the block's largest power of two becomes a subnormal, and is rounded to these
// errors; everything else stays what it was.
//
// A block is 64 rows of 16 columns, four *strips* of 16 rows. The first 14 (12) rows of a strip lie as they are, two to
// a line; the bits of the others fill the places of the zeros, so that a strip is 7 (6) lines in place of 8. Of such a
// pair of rows the one lies in the even rows, the other in the odd ones, in these pieces:
//
//   fp16    bits 15, 12 | 11, 10 | 9, 8 | 7, 6 | 5, 4 | 3, 2 | 1, 0    in bits 14, 13 of lines 0 to 6
//   bf16    bits 15, 5-3 | 13, 8-6 | 12, 11-9                          in bits 14, 2-0 of lines 0 to 2, then of 3 to 5
//
// At the head of the tile lies the power of two of each block, as float: NaN if one of its weights is not finite.
#pragma once

#include <limits>
#include <utility>

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

// `mask` of a row that does not lie by itself: in line `line`, its bits moved left by `shift`, right where negative.
struct Piece {
  int line, shift, mask;
};

// What becomes of a type. kMantissa, kExponentBits: its own; kBias: of its exponents, less fp16's. kLargest: exponent
// of the largest narrow halves; kFree: their bits that are always 0. kLines: of a strip. kPieces: of a row that has no
// place of its own.
template <DenseType TYPE>
struct Narrow;

template <>
struct Narrow<DenseType::kF16> {
  static constexpr int kMantissa = 10, kExponentBits = 5, kBias = 0;
  static constexpr int kLargest = 7, kFree = 0x6000, kLines = 7, kPieces = 8;
  static constexpr Piece piece(int i, int /*pair*/) {
    return i == 0 ? Piece{0, -1, 0x8000} : i == 1 ? Piece{0, 1, 0x1000} : Piece{i - 1, 2 * i - 1, 3 << (14 - 2 * i)};
  }
};

template <>
struct Narrow<DenseType::kBF16> {
  static constexpr int kMantissa = 7, kExponentBits = 8, kBias = 127 - 15;
  static constexpr int kLargest = 15, kFree = 0x4007, kLines = 6, kPieces = 6;
  static constexpr Piece piece(int i, int pair) {
    constexpr Piece kInPair[] = {{0, -1, 0x8000}, {0, -3, 7 << 3}, {1, 1, 0x2000},
                                 {1, -6, 7 << 6}, {2, 2, 0x1000},  {2, -9, 7 << 9}};
    return {kInPair[i].line + 3 * pair, kInPair[i].shift, kInPair[i].mask};
  }
};

constexpr int shifted(int bits, int left) { return left < 0 ? bits >> -left : bits << left; }

// --- making them ---

// rows: (64, 16) of the type's bits. Sets the block's power of two and its strips.
template <DenseType TYPE>
static void pack_block(const uint16_t* rows, float& scale, uint8_t* out) {
  using N = Narrow<TYPE>;
  constexpr int kHidden = 1 << N::kMantissa, kInfinite = (1 << N::kExponentBits) - 1;
  int top = N::kLargest;
  for (int i = 0; i < kNarrowBlockRows * kColumns; i++) {
    const int exponent = rows[i] >> N::kMantissa & kInfinite;
    top = exponent > top ? exponent : top;
  }
  const uint32_t power = uint32_t(top - N::kLargest - N::kBias + 127) << 23;
  memcpy(&scale, &power, 4);
  if (top == kInfinite) scale = std::numeric_limits<float>::quiet_NaN();
  uint16_t* half = reinterpret_cast<uint16_t*>(out);
  for (int strip = 0; strip < kNarrowBlockRows / kStripRows; strip++, half += N::kLines * 32) {
    uint16_t narrow[kStripRows * kColumns];
    for (int i = 0; i < kStripRows * kColumns; i++) {
      const int bits = rows[strip * kStripRows * kColumns + i], stored = bits >> N::kMantissa & kInfinite;
      const int mantissa = (bits & (kHidden - 1)) | (stored ? kHidden : 0);
      const int exponent = (stored ? stored : 1) + N::kLargest - top;
      const int down = exponent < 1 ? (1 - exponent < 15 ? 1 - exponent : 15) : 0;
      const int rounded = (mantissa + ((1 << down) >> 1)) >> down;
      const int value = rounded + (exponent < 1 ? 0 : (exponent - 1) << N::kMantissa);
      narrow[i] = uint16_t((bits & 0x8000) | value << (10 - N::kMantissa));
    }
    memcpy(half, narrow, size_t(N::kLines) * kLine);
    for (int pair = 0; pair < 8 - N::kLines; pair++) {
      for (int i = 0; i < N::kPieces; i++) {
        const Piece piece = N::piece(i, pair);
        for (int c = 0; c < 2 * kColumns; c++) {
          const int row = narrow[(N::kLines + pair) * 2 * kColumns + c];
          half[piece.line * 2 * kColumns + c] |= uint16_t(shifted(row & piece.mask, piece.shift));
        }
      }
    }
  }
}

// --- reading them ---

// Two rows that do not lie by themselves.
template <DenseType TYPE, int PAIR, int I = 0>
static EXL2_INLINE Lanes::I gather_pair(const Lanes::I* lines, Lanes::I found) {
  if constexpr (I == Narrow<TYPE>::kPieces) {
    return found;
  } else {
    constexpr Piece P = Narrow<TYPE>::piece(I, PAIR);
    Lanes::I moved;
    if constexpr (P.shift > 0) {
      moved = Lanes::shift_right16<P.shift>(lines[P.line]);
    } else {
      moved = Lanes::shift_left16<-P.shift>(lines[P.line]);
    }
    return gather_pair<TYPE, PAIR, I + 1>(lines, Lanes::or_masked_halves<P.mask>(found, moved));
  }
}

// f(Index, row 2i, row 2i + 1) for the pairs i of a strip, in units of the block's power of two.
template <DenseType TYPE, typename Body, int... I>
static EXL2_INLINE void for_each_pair(const uint8_t* strip, Body&& f, std::integer_sequence<int, I...>) {
  constexpr int kLines = Narrow<TYPE>::kLines;
  Lanes::I lines[kLines];
  const auto pair = [&](auto i) EXL2_INLINE_LAMBDA {
    constexpr int PAIR = decltype(i)::value;
    Lanes::F rows[2];
    if constexpr (PAIR < kLines) {
      lines[PAIR] = Lanes::load_line(strip + PAIR * kLine);
      Lanes::rows_of_halves(rows, Lanes::and_halves<0xffff & ~Narrow<TYPE>::kFree>(lines[PAIR]));
    } else {
      Lanes::rows_of_halves(rows, gather_pair<TYPE, PAIR - kLines>(lines, Lanes::zero_i()));
    }
    f(i, rows[0], rows[1]);
  };
  (pair(std::integral_constant<int, I>{}), ...);
}

template <DenseType TYPE, typename Body>
static EXL2_INLINE void for_each_pair(const uint8_t* strip, Body&& f) {
  for_each_pair<TYPE>(strip, f, std::make_integer_sequence<int, kStripRows / 2>{});
}

// Where block `block` of a tile starts, and its power of two.
template <DenseType TYPE>
static EXL2_INLINE const uint8_t* narrow_block(const Header& h, const uint8_t* tile, int64_t block) {
  return tile + h.params_bytes + block * narrow_block_bytes(TYPE);
}

static inline float narrow_scale(const uint8_t* tile, int64_t block) {
  return reinterpret_cast<const float*>(tile)[block];
}

}  // namespace EXL2_ISA
}  // namespace exl2
