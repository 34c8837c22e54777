// From a block's bytes to fp16 operands, and from a group's stored scales to step sizes (device side of codes.h).
#pragma once

#include <type_traits>

#include "codes.h"
#include "common.cuh"

namespace exl2::cuda {

__device__ __forceinline__ half2 as_half2(uint32_t bits) { return *reinterpret_cast<half2*>(&bits); }
__device__ __forceinline__ uint32_t as_bits(half2 value) { return *reinterpret_cast<uint32_t*>(&value); }

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

// Rows 2p and 2p + 1 of column c: code - 2^(bits-1), exact in fp16; for 16 bits the weights themselves.
template <int kBits>
__device__ __forceinline__ half2 unpack_pair(const uint32_t* low, const uint32_t* high, int c, int p) {
  if constexpr (kBits == 16) {
    return as_half2(low[4 * c + p]);
  } else {
    const half2 scaled = as_half2(pair_bits<kBits>(low, high, c, p));
    const int shift = pair_shift(kBits, p);
    const float offset = 1024.f / (1 << shift) + (1 << (kBits - 1));
    if (shift == 0) return __hsub2(scaled, __float2half2_rn(offset));
    return __hfma2(scaled, __float2half2_rn(1.f / (1 << shift)), __float2half2_rn(-offset));
  }
}

// Step size and remaining zero point of columns g, g + 8, g + 16, g + 24 of a strip, by the rules of each format:
// weight = (unpacked code - zero) * scale. `scales` and `groups` as in plan.h, already moved to the strip.
__device__ __forceinline__ void strip_scales(int64_t kind, int64_t zero_shift, const void* scales, const void* groups,
                                             int group, int g, float* scale, float* zero) {
  if (kind == kExl2) {
    const uint32_t nibbles = static_cast<const uint16_t*>(scales)[group * 8 + g];
    const float unit = __half2float(static_cast<const half*>(groups)[group]);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float code = static_cast<float>(((nibbles >> (4 * c)) & 15) + 1);
      scale[c] = __half2float(__float2half_rn(code * code * unit));
      zero[c] = 0.f;
    }
  } else if (kind == kGptq) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int at = group * kStripColumns + g + 8 * c;
      scale[c] = __half2float(static_cast<const half*>(scales)[at]);
      zero[c] = static_cast<float>(static_cast<int>(static_cast<const uint8_t*>(groups)[at]) - static_cast<int>(zero_shift));
    }
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      scale[c] = 1.f;
      zero[c] = 0.f;
    }
  }
}

// Bytes of one strip's `scales` and, for EXL2, of all groups' units, for GPTQ of the strip's zero points.
EXL2_HD int64_t strip_scale_bytes(const Linear& w) { return w.n_groups * (w.kind == kExl2 ? 16 : w.kind == kGptq ? 64 : 0); }
EXL2_HD int64_t strip_group_bytes(const Linear& w) { return w.n_groups * (w.kind == kExl2 ? 2 : w.kind == kGptq ? 32 : 0); }

__device__ __forceinline__ const void* strip_scales_at(const Linear& w, int64_t strip) {
  return static_cast<const uint8_t*>(w.scales) + strip * strip_scale_bytes(w);
}
__device__ __forceinline__ const void* strip_groups_at(const Linear& w, int64_t strip) {
  return static_cast<const uint8_t*>(w.groups) + (w.kind == kGptq ? strip * strip_group_bytes(w) : 0);
}

__device__ __forceinline__ void group_scales(const Linear& w, int64_t strip, int group, int g, float* scale, float* zero) {
  strip_scales(w.kind, w.zero_shift, strip_scales_at(w, strip), strip_groups_at(w, strip), group, g, scale, zero);
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
