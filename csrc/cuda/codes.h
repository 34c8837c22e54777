// Where the bits of a code lie inside the words that one lane holds, and how two codes at a time become fp16 operands.
// Integer logic only, for host and device: the CPU tests run exactly what the kernels run.
//
// A lane holds 4 columns (c) x 4 pairs of rows (p: rows 2p, 2p+1). The first row of a pair lies in the low half of a
// word and the second, at the same place, in the high half. One AND masks both, and that is all: an fp16 number below
// 2^-13 is linear in its bit pattern (subnormals and the first binade), so bits v < 2^11 are the number v * 2^-24, and
// tensor cores multiply it exactly. Codes of pairs 0 and 1 end up at bit 0, those of 2 and 3 at bit 4 (16 times as
// large), so that one shift serves two pairs; sums of the two kinds are kept apart and put together at the end.
// Widths that are no power of two are two planes: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2 bits.
// For the tensor cores' integer products the same words are codes of 8 bits (eight_codes).
//
//   bits   low plane (words per lane)                           high plane (words per lane)
//   2, 3   2: two columns per word,                             3: 1 word,  bit c + 4 (p / 2) + 8 (p & 1)
//          pair p at 2 (c & 1) + 4 (p / 2) + 8 (p & 1)
//   4-6    4: one column per word, pair p at 4 (p / 2) + 8 (p & 1)
//                                                               5: 1 word,  bit c + 4 (p / 2) + 8 (p & 1)
//                                                               6: 2 words, bits 2 (c & 1) + 4 (p / 2) + 8 (p & 1)
//   8      8: two words per column, pair p at 8 (p & 1) of word p / 2
//   16     16: four words per column, fp16 weights in row order
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define EXL2_HD __host__ __device__ __forceinline__
#else
#define EXL2_HD inline
#endif

namespace exl2::cuda {

// Words of the low and of the high plane per lane.
EXL2_HD constexpr int low_words(int bits) { return bits <= 3 ? 2 : bits <= 6 ? 4 : bits == 8 ? 8 : 16; }
EXL2_HD constexpr int high_words(int bits) { return bits == 3 || bits == 5 ? 1 : bits == 6 ? 2 : 0; }
EXL2_HD constexpr int low_bits(int bits) { return bits <= 3 ? 2 : bits <= 6 ? 4 : bits; }

// Bit position, within a half word, of pair p of column c.
EXL2_HD constexpr int low_position(int bits, int c, int p) {
  return (bits <= 3 ? 2 * (c & 1) : 0) + 4 * (p >> 1) + 8 * (p & 1);
}
EXL2_HD constexpr int high_position(int bits, int c, int p) {
  return (bits == 6 ? 2 * (c & 1) : c) + 4 * (p >> 1) + 8 * (p & 1);
}
EXL2_HD constexpr int low_word(int bits, int c) { return bits <= 3 ? c >> 1 : c; }
EXL2_HD constexpr int high_word(int bits, int c) { return bits == 6 ? c >> 1 : 0; }

// Power of two by which pair_bits leaves the codes scaled.
EXL2_HD constexpr int pair_shift(int bits, int p) { return bits <= 6 ? 4 * (p >> 1) : 0; }

// Right shift, left if negative.
template <int kShift>
EXL2_HD uint32_t shifted(uint32_t word) {
  if constexpr (kShift < 0) {
    return word << -kShift;
  } else {
    return word >> kShift;
  }
}

// Puts codes q0, q1 of pair p, column c into a lane's words (cleared before).
EXL2_HD void put_pair(int bits, uint32_t* low, uint32_t* high, int c, int p, uint32_t q0, uint32_t q1) {
  if (bits == 16) {
    low[4 * c + p] = q0 | q1 << 16;
  } else if (bits == 8) {
    low[2 * c + (p >> 1)] |= (q0 | q1 << 16) << (8 * (p & 1));
  } else {
    const uint32_t mask = (1u << low_bits(bits)) - 1;
    low[low_word(bits, c)] |= ((q0 & mask) | (q1 & mask) << 16) << low_position(bits, c, p);
    if (high_words(bits) != 0) {
      const int upper = low_bits(bits);
      high[high_word(bits, c)] |= ((q0 >> upper) | (q1 >> upper) << 16) << high_position(bits, c, p);
    }
  }
}

// The two codes, times 2^pair_shift, in the halves of a word; the rest is zero. Not for 16 bits.
template <int kBits, int c, int p>
EXL2_HD uint32_t pair_bits(const uint32_t* low, const uint32_t* high) {
  if constexpr (kBits == 8) {
    return (low[2 * c + (p >> 1)] >> (8 * (p & 1))) & 0x00ff00ffu;
  } else {
    constexpr int kAt = pair_shift(kBits, p);
    constexpr uint32_t kLowMask = ((1u << low_bits(kBits)) - 1) * 0x00010001u << kAt;
    uint32_t pair = shifted<low_position(kBits, c, p) - kAt>(low[low_word(kBits, c)]) & kLowMask;
    if constexpr (high_words(kBits) != 0) {
      constexpr int kUpper = low_bits(kBits) + kAt;
      constexpr uint32_t kHighMask = ((1u << (kBits - low_bits(kBits))) - 1) * 0x00010001u << kUpper;
      pair |= shifted<high_position(kBits, c, p) - kUpper>(high[high_word(kBits, c)]) & kHighMask;
    }
    return pair;
  }
}

// Power of two by which the codes of column c are scaled among eight_codes.
EXL2_HD constexpr int column_shift(int bits, int c) { return bits == 2 ? 2 * (c & 1) : 0; }

// Whether eight_codes has both halves of a lane's rows in one word.
EXL2_HD constexpr bool halves_together(int bits) { return bits <= 4; }

// The codes of column c in bytes: of rows 0, 2, 1, 3 in the first word, of rows 4, 6, 5, 7 in the second. Up to 4 bits
// the second are 16 times as large, and lie in the first word too: one mask less. Not for 16 bits.
struct EightCodes {
  uint32_t first;
  uint32_t second;
};

template <int kBits, int c>
EXL2_HD EightCodes eight_codes(const uint32_t* low, const uint32_t* high) {
  if constexpr (kBits == 8) {
    return {low[2 * c], low[2 * c + 1]};
  } else {
    auto half = [&](auto which) {
      constexpr int h = decltype(which)::value;
      constexpr int kAt = column_shift(kBits, c);
      constexpr uint32_t kBytes = halves_together(kBits) ? 0x11111111u : 0x01010101u;
      constexpr uint32_t kLowMask = ((1u << low_bits(kBits)) - 1) * kBytes << kAt;
      uint32_t codes = shifted<low_position(kBits, c, 2 * h) - kAt>(low[low_word(kBits, c)]) & kLowMask;
      if constexpr (high_words(kBits) != 0) {
        constexpr int kUpper = low_bits(kBits) + kAt;
        constexpr uint32_t kHighMask = ((1u << (kBits - low_bits(kBits))) - 1) * kBytes << kUpper;
        codes |= shifted<high_position(kBits, c, 2 * h) - kUpper>(high[high_word(kBits, c)]) & kHighMask;
      }
      return codes;
    };
    const uint32_t first = half(std::integral_constant<int, 0>{});
    if constexpr (halves_together(kBits)) {
      return {first, first & 0xf0f0f0f0u};
    } else {
      return {first, half(std::integral_constant<int, 1>{})};
    }
  }
}

// Code i of a little-endian bit stream that runs down the word rows of one column (both file formats).
EXL2_HD uint32_t stream_code(const uint32_t* column, int64_t stride, int64_t i, int bits) {
  const int64_t bit = i * bits;
  const uint32_t* word = column + (bit >> 5) * stride;
  const int offset = static_cast<int>(bit & 31);
  uint32_t value = word[0] >> offset;
  if (offset + bits > 32) value |= word[stride] << (32 - offset);
  return value & ((1u << bits) - 1);
}

}  // namespace exl2::cuda
