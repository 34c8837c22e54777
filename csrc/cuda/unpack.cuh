// From a segment's bytes to fp16 operands and step sizes (device side of codes.h and plan.h).
#pragma once

#include <type_traits>

#include "codes.h"
#include "common.cuh"

namespace exl2::cuda {

__device__ __forceinline__ half2 as_half2(uint32_t bits) { return *reinterpret_cast<half2*>(&bits); }

// Bytes between a Header and the codes.
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

// Step size and zero point of columns g, g + 8, g + 16, g + 24: weight = (code - zero) * scale. `scales` as behind a
// Header. Dense weights have neither.
__device__ __forceinline__ void column_scales(const Header& header, const uint8_t* scales, int g, float (&scale)[4],
                                              float (&zero)[4]) {
  if (header.kind == kExl2) {
    const uint32_t nibbles = reinterpret_cast<const uint16_t*>(scales)[g];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float code = static_cast<float>(((nibbles >> (4 * c)) & 15) + 1);
      scale[c] = __half2float(__float2half_rn(code * code * header.unit));
      zero[c] = header.zero;
    }
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      scale[c] = half_float(reinterpret_cast<const uint16_t*>(scales)[g + 8 * c]);
      zero[c] = static_cast<float>(scales[64 + g + 8 * c]);
    }
  }
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
