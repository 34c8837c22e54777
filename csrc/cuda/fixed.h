// A token's activations as whole numbers of three bytes, for the tensor cores' integer products: csrc/cuda/product.cuh.
// Arithmetic for host and device: the CPU tests run what the kernels run.
//
// Each x of a lane's first four rows becomes the whole number nearest to x times a power of two, at most 2^22; each of
// its second four, with a sixteenth of that power, at most 2^18, minus the number of the row four before: codes of up to
// 4 bits unpack to words that hold both rows, a + 16 b and 16 b (codes.h), and (a + 16 b) u + 16 b (v - u) = a u + 16 b v.
// The largest activation is exact, and what is 2^7 times smaller still is; below that the error is up to 2^-18 of the
// largest, where fp16 would round that one by 2^-11 of it. The bytes are signed digits, from -128 to 127:
// 65536 a + 256 b + c.
#pragma once

#include <cstdint>
#include <cstring>

#include "codes.h"

namespace exl2::cuda {

constexpr int kSecondShift = 4;  // of the power of two, from the first four rows to the second

EXL2_HD uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
#endif
}

EXL2_HD float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

// Bytes of a (0 to 3) and b (4 to 7) that the hexadecimal digits of `which` name, the last digit for the lowest.
EXL2_HD uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, which);
#else
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) picked |= static_cast<uint32_t>(both >> (8 * (which >> (4 * i) & 7)) & 0xff) << (8 * i);
  return picked;
#endif
}

// What activations are multiplied by, and what one of their units is worth. largest: of their absolute values, which may
// be up to twice as large.
struct FixedPoint {
  float scale;
  float unit;

  EXL2_HD explicit FixedPoint(float largest) {
    const uint32_t found = bits_of(largest) >> 23;
    const uint32_t exponent = found < 22 ? 22 : found;
    scale = float_of((275 - exponent) << 23);
    unit = float_of((exponent - 21) << 23);
  }
};

// Eight rows of a lane: for each digit the words of rows 0, 2, 1, 3 and 4, 6, 5, 7; the sum, in units.
struct Digits {
  uint32_t high[2];
  uint32_t middle[2];
  uint32_t low[2];
  int32_t sum;
};

EXL2_HD Digits split_digits(const float (&x)[8], float scale) {
  // Adding this rounds to whole numbers: 2^22 plus the number is in the lower bits then.
  constexpr float kRound = 12582912.f;
  constexpr uint32_t kShown = 0x4b400000;    // its bits
  constexpr uint32_t kDigits = 0x00808080;  // makes all digits at least 0
  Digits digits = {};
  uint32_t number[4] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float times = h == 0 ? scale : scale * (1.f / (1 << kSecondShift));
    int32_t sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#ifdef __CUDA_ARCH__
      const float rounded = __fmaf_rn(x[4 * h + i], times, kRound);
#else
      const float rounded = x[4 * h + i] * times + kRound;  // the product is exact
#endif
      const uint32_t nearest = bits_of(rounded) - kShown;
      sum += static_cast<int32_t>(nearest);
      number[i] = nearest + kDigits - (h == 0 ? 0 : number[i] - kDigits);
    }
    digits.sum += h == 0 ? sum : sum * (1 << kSecondShift);
    const uint32_t upper02 = pick_bytes(number[0], number[2], 0x5162);  // middle of both, high of both
    const uint32_t upper13 = pick_bytes(number[1], number[3], 0x5162);
    const uint32_t lower02 = pick_bytes(number[0], number[2], 0x0040);
    const uint32_t lower13 = pick_bytes(number[1], number[3], 0x0040);
    digits.high[h] = pick_bytes(upper02, upper13, 0x5410) ^ 0x80808080u;
    digits.middle[h] = pick_bytes(upper02, upper13, 0x7632) ^ 0x80808080u;
    digits.low[h] = pick_bytes(lower02, lower13, 0x5410) ^ 0x80808080u;
  }
  return digits;
}

}  // namespace exl2::cuda
