// From a segment's bytes to fp16 operands and step sizes (device side of codes.h and plan.h).
#pragma once

#include <type_traits>

#include "codes.h"
#include "common.cuh"

namespace exl2::cuda {

__device__ __forceinline__ half2 as_half2(uint32_t bits) { return *reinterpret_cast<half2*>(&bits); }

// Header::layout; kernels compare it as a whole.
EXL2_HD constexpr uint32_t layout_of(int bits, int blocks, int kind, int group_blocks) {
  return static_cast<uint32_t>(bits | blocks << 8 | kind << 16 | group_blocks << 24);
}
__device__ __forceinline__ int bits_in(const Header& header) { return header.layout & 0xff; }
__device__ __forceinline__ int blocks_in(const Header& header) { return header.layout >> 8 & 0xff; }
__device__ __forceinline__ int kind_in(const Header& header) { return header.layout >> 16 & 0xff; }
__device__ __forceinline__ int group_blocks_in(const Header& header) { return header.layout >> 24; }

// Of a segment's group.
__device__ __forceinline__ uint16_t unit_of(const Header& header, int group) {
  return static_cast<uint16_t>((group < 2 ? header.units[0] : header.units[1]) >> (16 * (group % 2)));
}

EXL2_HD constexpr int groups_of(int blocks, int group_blocks) { return (blocks + group_blocks - 1) / group_blocks; }

// Blocks of most segments; none has more (MAX_BLOCKS in linear.py).
EXL2_HD constexpr int full_blocks(int bits) { return bits <= 5 ? 4 : bits <= 8 ? 2 : 1; }

// Bytes of a group's step sizes, between the Header and the codes.
EXL2_HD constexpr int scale_bytes(int kind) { return kind == kExl2 ? 16 : kind == kGptq ? 96 : 0; }

// A lane's words of one block, from global or shared memory, in 16-byte (2 bits: 8-byte) loads.
template <int kBits>
__device__ __forceinline__ void load_lane(const uint8_t* block, int lane, uint32_t* low, uint32_t* high) {
  constexpr int kLow = low_words(kBits);
  constexpr int kHigh = high_words(kBits);
  if constexpr (kLow == 2) {
    const uint2 words = reinterpret_cast<const uint2*>(block)[lane];
    low[0] = words.x;
    low[1] = words.y;
  } else {
#pragma unroll
    for (int i = 0; i < kLow / 4; ++i) {
      const uint4 words = reinterpret_cast<const uint4*>(block)[i * 32 + lane];
      low[4 * i] = words.x;
      low[4 * i + 1] = words.y;
      low[4 * i + 2] = words.z;
      low[4 * i + 3] = words.w;
    }
  }
  const uint8_t* upper = block + 128 * kLow;
  if constexpr (kHigh == 1) {
    high[0] = reinterpret_cast<const uint32_t*>(upper)[lane];
  } else if constexpr (kHigh == 2) {
    const uint2 words = reinterpret_cast<const uint2*>(upper)[lane];
    high[0] = words.x;
    high[1] = words.y;
  }
}

// EXL2 step sizes half((code + 1)^2 * unit) of columns g, g + 8, g + 16 and g + 24. unit: half. code_word: uint16 g of a
// group's.
__device__ __forceinline__ void exl2_scales(uint16_t unit, uint32_t code_word, float (&scale)[4]) {
  // Two columns per word. A code in the low bits of the fp16 number 1024 is 1024 + code, or 1024 + 16 * code.
  const uint32_t nibbles = code_word * 0x00010001u;
  const half2 units = __half2half2(__ushort_as_half(unit));
  const half2 shrink = __floats2half2_rn(1.f, 1.f / 16);
  const half2 shift = __floats2half2_rn(-1023.f, -63.f);
#pragma unroll
  for (int c = 0; c < 4; c += 2) {
    const half2 code = __hfma2(as_half2(((nibbles >> (4 * c)) & 0x00f0000fu) | 0x64006400u), shrink, shift);
    const float2 step = __half22float2(__hmul2(__hmul2(code, code), units));
    scale[c] = step.x;
    scale[c + 1] = step.y;
  }
}

__device__ __forceinline__ void exl2_scales(uint16_t unit, const uint8_t* scales, int g, float (&scale)[4]) {
  exl2_scales(unit, reinterpret_cast<const uint16_t*>(scales)[g], scale);
}

__device__ __forceinline__ void gptq_scales(const uint8_t* scales, int g, float (&scale)[4], float (&zero)[4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    scale[c] = half_float(reinterpret_cast<const uint16_t*>(scales)[g + 8 * c]);
    zero[c] = static_cast<float>(scales[64 + g + 8 * c]);
  }
}

// Step size and zero point of columns g, g + 8, g + 16 and g + 24: weight = (code - zero) * scale. unit, scales: a group's.
// Dense weights have neither.
__device__ __forceinline__ void column_scales(int kind, int bits, uint16_t unit, const uint8_t* scales, int g,
                                              float (&scale)[4], float (&zero)[4]) {
  if (kind == kExl2) {
    exl2_scales(unit, scales, g, scale);
#pragma unroll
    for (int c = 0; c < 4; ++c) zero[c] = static_cast<float>(1 << (bits - 1));
  } else {
    gptq_scales(scales, g, scale, zero);
  }
}

// Rows 2p and 2p + 1 of column c minus the zero point, exact in fp16.
template <int kBits, int c, int p>
__device__ __forceinline__ half2 centered(const uint32_t* low, const uint32_t* high, float zero) {
  constexpr int kShift = pair_shift(kBits, p);
  // 1024 + code * 2^shift is exact, and so is what one fused multiply-add makes of it.
  const half2 scaled = as_half2(pair_bits<kBits, c, p>(low, high) | 0x64006400u);
  return __hfma2(scaled, __float2half2_rn(1.f / (1 << kShift)), __float2half2_rn(-1024.f / (1 << kShift) - zero));
}

// Calls body(std::integral_constant<int, bits>) for a width known only at run time.
template <typename Body>
__device__ __forceinline__ void for_bits(int bits, Body body) {
  switch (bits) {
    case 2: body(std::integral_constant<int, 2>{}); break;
    case 3: body(std::integral_constant<int, 3>{}); break;
    case 4: body(std::integral_constant<int, 4>{}); break;
    case 5: body(std::integral_constant<int, 5>{}); break;
    case 6: body(std::integral_constant<int, 6>{}); break;
    case 8: body(std::integral_constant<int, 8>{}); break;
    default: body(std::integral_constant<int, 16>{}); break;
  }
}

}  // namespace exl2::cuda
