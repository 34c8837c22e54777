// One segment of a weight times up to 8 tokens on the tensor cores (m16n8k16: 16 columns x 16 rows x 8 tokens).
#pragma once

#include "unpack.cuh"

namespace exl2::cuda {

// Accumulators of 32 columns: [h][0, 1] belong to column 16 h + g and tokens 2t, 2t + 1; [h][2, 3] to column + 8.
using Sums = float[2][4];

__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// first, second: sums over the codes of pairs 0, 1 and of pairs 2, 3, which unpack to bit 0 and bit 4 (codes.h).
template <int kBits>
__device__ __forceinline__ void multiply_block(const uint8_t* codes, const uint4& x, int lane, Sums& first, Sums& second) {
  uint32_t low[low_words(kBits)];
  uint32_t high[2];
  load_lane<kBits>(codes, lane, low, high);
  if constexpr (kBits == 16) {
    multiply(first[0], low[0], low[4], low[1], low[5], x.x, x.y);
    multiply(second[0], low[2], low[6], low[3], low[7], x.z, x.w);
    multiply(first[1], low[8], low[12], low[9], low[13], x.x, x.y);
    multiply(second[1], low[10], low[14], low[11], low[15], x.z, x.w);
  } else {
    multiply(first[0], pair_bits<kBits, 0, 0>(low, high), pair_bits<kBits, 1, 0>(low, high),
             pair_bits<kBits, 0, 1>(low, high), pair_bits<kBits, 1, 1>(low, high), x.x, x.y);
    multiply(second[0], pair_bits<kBits, 0, 2>(low, high), pair_bits<kBits, 1, 2>(low, high),
             pair_bits<kBits, 0, 3>(low, high), pair_bits<kBits, 1, 3>(low, high), x.z, x.w);
    multiply(first[1], pair_bits<kBits, 2, 0>(low, high), pair_bits<kBits, 3, 0>(low, high),
             pair_bits<kBits, 2, 1>(low, high), pair_bits<kBits, 3, 1>(low, high), x.x, x.y);
    multiply(second[1], pair_bits<kBits, 2, 2>(low, high), pair_bits<kBits, 3, 2>(low, high),
             pair_bits<kBits, 2, 3>(low, high), pair_bits<kBits, 3, 3>(low, high), x.z, x.w);
  }
}

// Codes come as multiples of 2^-24, so totals are kept in that unit until the strip ends. Dense weights come as they are.
constexpr float kCodeUnit = 1.f / 16777216.f;

// The staged activations as a lane sees them.
struct Activations {
  const uint16_t* values;  // the 8 of its token in block 0; blocks are kBlockRows apart
  const float* sums;       // over block 0, of the tokens 2t and 2t + 1 (kOne: of the only token)
  int sums_step;           // from block to block
};

EXL2_HD constexpr int full_blocks(int bits) { return bits <= 5 ? 4 : bits <= 8 ? 2 : 1; }  // of most segments

constexpr int kAnyKind = -1;

// total += the segment times the activations, in kCodeUnit. kOne: only token 0 counts. kKind: of the segment, which then
// has full_blocks, so that nothing needs to be looked up; kAnyKind: as its header says.
template <int kBits, bool kOne, int kKind>
__device__ __forceinline__ void multiply_segment(const Header& header, const uint8_t* stream, const Activations& x, int lane,
                                                 Sums& total) {
  Sums first = {};
  Sums second = {};
  float ones[2] = {};
  const uint8_t* codes = stream + sizeof(Header) + scale_bytes(kKind == kAnyKind ? header.kind : kKind);
  const uint16_t* values = x.values + header.first_block * kBlockRows;
  const float* sums = x.sums + header.first_block * (kOne ? 1 : x.sums_step);
  auto block = [&](int b) {
    multiply_block<kBits>(codes + b * 128 * kBits, *reinterpret_cast<const uint4*>(values + b * kBlockRows), lane, first,
                          second);
    if constexpr (kBits == 16) return;
    if constexpr (kOne) {
      ones[0] += sums[b];
    } else {
      const float2 pair = *reinterpret_cast<const float2*>(sums + b * x.sums_step);
      ones[0] += pair.x;
      ones[1] += pair.y;
    }
  };
  if constexpr (kKind != kAnyKind) {
#pragma unroll
    for (int b = 0; b < full_blocks(kBits); ++b) block(b);
  } else {
#pragma unroll 1
    for (int b = 0; b < header.blocks; ++b) block(b);
  }

  constexpr int kStep = kOne ? 2 : 1;
  if constexpr (kBits == 16) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 4; i += kStep) total[h][i] += first[h][i] + second[h][i];
    }
  } else {
    constexpr float kSecond = 1.f / (1 << pair_shift(kBits, 2));
    float scale[4];
    float zero[4];
    if constexpr (kKind == kExl2) {
      exl2_scales(header.unit, stream + sizeof(Header), lane / 4, scale);
#pragma unroll
      for (int c = 0; c < 4; ++c) zero[c] = 1 << (kBits - 1);
    } else if constexpr (kKind == kGptq) {
      gptq_scales(stream + sizeof(Header), lane / 4, scale, zero);
    } else {
      column_scales(header, stream + sizeof(Header), lane / 4, scale, zero);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < 4; i += kStep) {
        const int c = 2 * h + i / 2;
        const float sum = fmaf(second[h][i], kSecond, first[h][i]);
        total[h][i] = fmaf(scale[c], fmaf(-kCodeUnit * zero[c], ones[i % 2], sum), total[h][i]);
      }
    }
  }
}

}  // namespace exl2::cuda
