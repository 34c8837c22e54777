// Keys and values as they lie in the cache of one layer.
//
//   16 bits  half (G, capacity, D)
//   8 bits   codes (G, capacity, D) and units, half (G, capacity, blocks): element = unit * (code - 128)
//   4 bits   words of 8 codes (G, capacity, D / 8) and units: element = unit * (16 * code - 120)
//
// A block is 32 elements (16 if that is the whole head); its largest one is 127 or 120 units. Element e of a word of 4-bit
// codes is nibble e / 2, behind it by 4 if e is odd: a pair is then two bytes apart, as in a half2.
//
// Coded blocks are stored turned: multiplied with the orthonormal Hadamard matrix, which spreads what sticks out in one
// element over all of them (QuaRot, Ashkboos et al. 2024). Turned queries give the same scores with turned keys, and
// attention over turned values has to be turned once, at its end: nothing is turned per cached token.
//
// exl2_tui/core/model/cuda/cache.py has the same in torch, with the same operations in the same order.
#pragma once

#include "common.cuh"

namespace exl2::cuda {

template <int D>
constexpr int kBlockOf = D < 32 ? D : 32;

template <int kBits, int D>
constexpr int kCachedBytes = D * kBits / 8;  // of a head of one token, without units

// Elements are turned and coded one per lane: block e of a head holds the elements lane + 32 e. By a whole warp.
template <int kBlock>
__device__ __forceinline__ float turn(float value) {
  const int lane = thread_index() % 32;
#pragma unroll
  for (int step = 1; step < kBlock; step *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, value, step);
    value = (lane & step) != 0 ? other - value : value + other;
  }
  return value * (kBlock == 32 ? 0.17677669529663687f : 0.25f);
}

// The code of every lane's element and the unit of the block. Divisions would be calls: see docs/cuda.md.
template <int kBits, int kBlock>
__device__ __forceinline__ uint32_t code_of(float value, uint16_t& unit) {
  float largest = fabsf(value);
#pragma unroll
  for (int step = 1; step < kBlock; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  unit = half_bits(largest * (kBits == 8 ? 1.f / 127.f : 1.f / 120.f));
  const float step = half_float(unit);
  float inverse = __fdividef(1.f, step);
  inverse = __fmaf_rn(__fmaf_rn(-step, inverse, 1.f), inverse, inverse);  // to the last bit
  const float units = __fmul_rn(value, step > 0.f ? inverse : 0.f);
  if constexpr (kBits == 8) {
    return static_cast<uint32_t>(static_cast<int>(fminf(fmaxf(rintf(units), -127.f), 127.f)) + 128);
  } else {
    return static_cast<uint32_t>(fminf(fmaxf(rintf(__fmul_rn(__fadd_rn(units, 120.f), 0.0625f)), 0.f), 15.f));
  }
}

__device__ __forceinline__ constexpr int nibble_shift(int element) { return element / 2 % 4 * 4 + element % 2 * 16; }

// A head of one token.
template <int kBits, int D>
struct CachedRow {
  static constexpr int kBlock = kBlockOf<D>;
  uint8_t* codes;
  uint16_t* units;

  // Block e, turned if it is to be coded, by a whole warp.
  __device__ __forceinline__ void store(int e, float value) const {
    const int lane = thread_index() % 32;
    const int i = lane + 32 * e;
    if constexpr (kBits == 16) {
      if (i < D) reinterpret_cast<uint16_t*>(codes)[i] = half_bits(value);
    } else {
      uint16_t unit;
      uint32_t code = code_of<kBits, kBlock>(value, unit);
      if constexpr (kBits == 8) {
        if (i < D) codes[i] = static_cast<uint8_t>(code);
      } else {
        code <<= nibble_shift(lane);
#pragma unroll
        for (int step = 1; step < 8; step *= 2) code |= __shfl_xor_sync(0xffffffffu, code, step);
        if (i < D && lane % 8 == 0) reinterpret_cast<uint32_t*>(codes)[i / 8] = code;
      }
      if (lane == 0) units[e] = unit;
    }
  }

  // What store() was given, rounded; kBits is 8 or 4.
  __device__ __forceinline__ float load(int e) const {
    const int lane = thread_index() % 32;
    const int i = lane + 32 * e;
    if (i >= D) return 0.f;
    const float unit = half_float(units[e]);
    if constexpr (kBits == 8) return unit * static_cast<float>(codes[i] - 128);
    const uint32_t word = reinterpret_cast<const uint32_t*>(codes)[i / 8];
    return unit * static_cast<float>(static_cast<int>(word >> nibble_shift(lane) & 15) * 16 - 120);
  }
};

__device__ __forceinline__ uint32_t half_words(half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }

__device__ __forceinline__ half2 half_pair(uint32_t words) { return *reinterpret_cast<const half2*>(&words); }

// kRun elements of a row in a row, from `first` on, as they were loaded: 8, 4 or 2, and `first` a multiple of that.
template <int kBits, int kRun>
struct Run {
  static constexpr int kWords = kRun * kBits >= 32 ? kRun * kBits / 32 : 1;
  uint32_t words[kWords];
  uint16_t unit;

  template <int D>
  __device__ __forceinline__ void load(const CachedRow<kBits, D>& row, int first) {
    const uint8_t* const from = row.codes + first * kBits / 32 * 4;  // the word that holds them, if it holds more
    if constexpr (kWords == 4) {
      const uint4 found = __ldcg(reinterpret_cast<const uint4*>(from));
      words[0] = found.x, words[1] = found.y, words[2] = found.z, words[3] = found.w;
    } else if constexpr (kWords == 2) {
      const uint2 found = __ldcg(reinterpret_cast<const uint2*>(from));
      words[0] = found.x, words[1] = found.y;
    } else {
      words[0] = __ldcg(reinterpret_cast<const uint32_t*>(from));
    }
    if constexpr (kBits != 16) unit = __ldcg(row.units + first / kBlockOf<D>);
  }

  // Pairs of elements as half2.
  __device__ __forceinline__ void halves(int first, uint32_t (&to)[kRun / 2]) const {
    if constexpr (kBits == 16) {
#pragma unroll
      for (int i = 0; i < kRun / 2; ++i) to[i] = words[i];
      return;
    }
    const half2 scale = __half2half2(__ushort_as_half(unit));
    const half2 middle = half_pair(kBits == 8 ? 0x64806480u : 0x64786478u);  // 1024 + 128, 1024 + 120
#pragma unroll
    for (int i = 0; i < kRun / 2; ++i) {
      uint32_t pair;  // codes as the last bits of halves from 1024 on
      if constexpr (kBits == 8) {
        const uint32_t word = kRun == 2 ? words[0] >> (first % 4 * 8) : words[i / 2];
        pair = __byte_perm(word, 0x64646464u, i % 2 == 0 ? 0x4140 : 0x4342);
      } else {
        const uint32_t word = kRun == 8 ? words[0] : words[0] >> (first % 8 * 2);
        pair = ((i == 0 ? word << 4 : word >> (4 * i - 4)) & 0x00f000f0u) | 0x64006400u;
      }
      to[i] = half_words(__hmul2(__hsub2(half_pair(pair), middle), scale));
    }
  }
};

// Keys or values of one kv head.
template <int kBits, int D>
struct CachedHead {
  static constexpr int kBytes = kCachedBytes<kBits, D>;
  static constexpr int kUnits = kBits == 16 ? 0 : (D + 31) / 32;
  uint8_t* codes;
  uint16_t* units;

  // first_row: (kv head) * capacity.
  __device__ __forceinline__ CachedHead(void* codes, uint16_t* units, int64_t first_row)
      : codes(static_cast<uint8_t*>(codes) + first_row * kBytes), units(kUnits == 0 ? nullptr : units + first_row * kUnits) {}

  __device__ __forceinline__ CachedRow<kBits, D> row(int token) const {
    return {codes + static_cast<int64_t>(token) * kBytes, units + static_cast<int64_t>(token) * kUnits};
  }
};

}  // namespace exl2::cuda
