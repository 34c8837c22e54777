// One segment of a weight times activations on the tensor cores, which multiply 16 columns and 16 or 32 rows by 8 vectors.
// Several tokens: vectors are fp16, codes are subnormal fp16 numbers (codes.h). One token: its vectors are the digits of
// whole numbers (fixed.h), codes are bytes, sums are exact; unpacking takes half the instructions then, which are what
// decoding has too many of.
#pragma once

#include "fixed.h"
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

__device__ __forceinline__ void multiply(int (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(int (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a0), "r"(a1), "r"(b0));
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

// One token. With halves_together all is in first; else second is what the second half of the rows gives, and its numbers
// have to be put together again (fixed.h).
template <int kBits>
__device__ __forceinline__ void multiply_block(const uint8_t* codes, const uint2& x, int lane, int (&first)[2][4],
                                               int (&second)[2][4]) {
  uint32_t low[low_words(kBits)];
  uint32_t high[2];
  load_lane<kBits>(codes, lane, low, high);
  const EightCodes column[4] = {eight_codes<kBits, 0>(low, high), eight_codes<kBits, 1>(low, high),
                                eight_codes<kBits, 2>(low, high), eight_codes<kBits, 3>(low, high)};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const EightCodes& a = column[2 * h];
    const EightCodes& b = column[2 * h + 1];
    if constexpr (halves_together(kBits)) {
      multiply(first[h], a.first, b.first, a.second, b.second, x.x, x.y);
    } else {
      multiply(first[h], a.first, b.first, x.x);
      multiply(second[h], a.second, b.second, a.second, b.second, x.x, x.y);
    }
  }
}

// Codes come as multiples of 2^-24 where several tokens are multiplied, so totals are kept in that unit.
constexpr float kCodeUnit = 1.f / 16777216.f;

// The staged activations as a lane sees them. Several tokens, or dense weights: the 8 halves of its token and rows. One
// token: 8 digits, the high ones in lanes of column 0 (g) of the mma, the middle ones in 1, zeros in 2, the low ones in 3;
// lanes of other columns repeat some of them, nobody looks at their results.
struct Activations {
  const uint8_t* halves;  // of block 0; blocks are 2 * kBlockRows bytes apart
  const uint8_t* digits;  // of block 0
  int digits_step;        // bytes from block to block
  const void* sums;       // over block 0, of the tokens 2t and 2t + 1, float; of one token int32
  int sums_step;          // from block to block
  float lead;             // one token: what a unit of a sum is in the unit of the lane's total; 0: not this lane's
};

constexpr int kAnyKind = 255;

// What the code for a segment is compiled for. With a kind: of full_blocks, of groups of kOfGroup blocks, so that nothing
// needs to be looked up. kAnyKind: as the header says.
template <int kWidth, int kOf, int kOfGroup = full_blocks(kWidth)>
struct Layout {
  static constexpr int kBits = kWidth;
  static constexpr int kKind = kOf;
  static constexpr int kGroupBlocks = kOfGroup;
  static constexpr int kGroups = groups_of(full_blocks(kWidth), kOfGroup);
  static constexpr bool kFull = kOf != kAnyKind;
  static constexpr uint32_t kCode = layout_of(kWidth, full_blocks(kWidth), kOf, kOfGroup);

  __device__ __forceinline__ static bool fits(const Header& header) { return kFull && header.layout == kCode; }
};

// body(Layout) for a segment.
template <typename Body>
__device__ __forceinline__ void for_layout(const Header& header, Body body) {
  const uint32_t layout = header.layout;
  for_bits(bits_in(header), [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    if constexpr (kBits == 16) {
      if (layout == Layout<16, kDense>::kCode) return body(Layout<16, kDense>{});
    } else {
      if (layout == Layout<kBits, kExl2>::kCode) return body(Layout<kBits, kExl2>{});
      if (layout == Layout<kBits, kGptq>::kCode) return body(Layout<kBits, kGptq>{});
      if (layout == Layout<kBits, kExl2, 1>::kCode) return body(Layout<kBits, kExl2, 1>{});
      if constexpr (full_blocks(kBits) > 2) {
        if (layout == Layout<kBits, kExl2, 2>::kCode) return body(Layout<kBits, kExl2, 2>{});
      }
    }
    body(Layout<kBits, kAnyKind>{});
  });
}

// Totals of 32 columns: [h][0, 1] belong to column 16 h + g and the tokens 2t, 2t + 1, [h][2, 3] to column + 8. Of one
// token: [h][0] and [h][2] alone; lanes with t = 0 hold 256 times the high digits and the middle ones, t = 1 the low ones.
using Totals = float[2][4];

// A segment's groups, one after the other: body(first block, how many, unit, step sizes), where how many is known to the
// compiler if the layout is.
template <typename Layout, typename Body>
__device__ __forceinline__ void for_groups(const Header& header, const uint8_t* stream, Body body) {
  const uint8_t* const scales = stream + sizeof(Header);
  if constexpr (Layout::kFull) {
    using Count = std::integral_constant<int, Layout::kGroupBlocks>;
#pragma unroll 1
    for (int i = 0; i < Layout::kGroups; ++i) {
      body(i * Layout::kGroupBlocks, Count{}, unit_of(header, i), scales + i * scale_bytes(Layout::kKind));
    }
  } else {
    const int blocks = blocks_in(header), each = group_blocks_in(header);
#pragma unroll 1
    for (int first = 0, i = 0; first < blocks; first += each, ++i) {
      body(first, min(each, blocks - first), unit_of(header, i), scales + i * scale_bytes(kind_in(header)));
    }
  }
}

template <typename Layout>
__device__ __forceinline__ const uint8_t* codes_of(const Header& header, const uint8_t* stream) {
  if constexpr (Layout::kFull) {
    return stream + sizeof(Header) + Layout::kGroups * scale_bytes(Layout::kKind);
  } else {
    const int groups = groups_of(blocks_in(header), group_blocks_in(header));
    return stream + sizeof(Header) + groups * scale_bytes(kind_in(header));
  }
}

// body(b) for `count` blocks from `first` on.
template <typename Count, typename Body>
__device__ __forceinline__ void for_blocks(int first, Count count, Body body) {
  if constexpr (std::is_same_v<Count, int>) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) body(first + i);
  } else {
#pragma unroll
    for (int i = 0; i < Count::value; ++i) body(first + i);
  }
}

template <typename Layout>
__device__ __forceinline__ void scales_of(const Header& header, uint16_t unit, const uint8_t* scales, int lane,
                                          float (&scale)[4], float (&zero)[4]) {
  column_scales(Layout::kFull ? Layout::kKind : kind_in(header), Layout::kBits, unit, scales, lane / 4, scale, zero);
}

__device__ __forceinline__ Header read_header(const uint8_t* stream) {
  const uint4 words = *reinterpret_cast<const uint4*>(stream);
  return {words.x, words.y, words.z, words.w};
}

// One token times codes.
template <typename Layout>
__device__ __forceinline__ void multiply_one(const Header& header, const uint8_t* stream, const Activations& x, int lane,
                                             Totals& total) {
  constexpr int kBits = Layout::kBits;
  const uint8_t* codes = codes_of<Layout>(header, stream);
  const uint8_t* digits = x.digits + header.first_block * x.digits_step;
  const int32_t* sums = static_cast<const int32_t*>(x.sums) + header.first_block;
  for_groups<Layout>(header, stream, [&](int begin, auto count, uint16_t unit, const uint8_t* scales) {
    int first[2][4] = {};
    int second[2][4] = {};
    int32_t ones = 0;
    for_blocks(begin, count, [&](int b) {
      multiply_block<kBits>(codes + b * 128 * kBits, *reinterpret_cast<const uint2*>(digits + b * x.digits_step), lane,
                            first, second);
      ones += sums[b];
    });
    float scale[4];
    float zero[4];
    scales_of<Layout>(header, unit, scales, lane, scale, zero);
    const float all = static_cast<float>(ones) * x.lead;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int h = c / 2;
      const int i = c % 2 * 2;
      int high = first[h][i];
      int low = first[h][i + 1];
      if constexpr (!halves_together(kBits)) {
        high += second[h][i] << kSecondShift;
        low += second[h][i + 1] << kSecondShift;
      }
      const float sum = static_cast<float>(256 * high + low) * (1.f / (1 << column_shift(kBits, c)));
      total[h][i] = fmaf(scale[c], fmaf(-zero[c], all, sum), total[h][i]);
    }
  });
}

// Several tokens times codes, or any times dense weights; totals of codes are in kCodeUnit. kOne: only token 0 counts.
template <typename Layout, bool kOne>
__device__ __forceinline__ void multiply_halves(const Header& header, const uint8_t* stream, const Activations& x, int lane,
                                                Totals& total) {
  constexpr int kBits = Layout::kBits;
  const uint8_t* codes = codes_of<Layout>(header, stream);
  const uint8_t* halves = x.halves + header.first_block * (2 * kBlockRows);
  const float* sums = static_cast<const float*>(x.sums) + header.first_block * x.sums_step;
  for_groups<Layout>(header, stream, [&](int begin, auto count, uint16_t unit, const uint8_t* scales) {
    Sums first = {};
    Sums second = {};
    float ones[2] = {};
    for_blocks(begin, count, [&](int b) {
      multiply_block<kBits>(codes + b * 128 * kBits, *reinterpret_cast<const uint4*>(halves + b * 2 * kBlockRows), lane,
                            first, second);
      if constexpr (kBits == 16) return;
      const float2 pair = *reinterpret_cast<const float2*>(sums + b * x.sums_step);
      ones[0] += pair.x;
      ones[1] += pair.y;
    });

    if constexpr (kBits == 16) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; i += kOne ? 2 : 1) total[h][i] += first[h][i] + second[h][i];
      }
    } else {
      constexpr float kSecond = 1.f / (1 << pair_shift(kBits, 2));
      float scale[4];
      float zero[4];
      scales_of<Layout>(header, unit, scales, lane, scale, zero);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = 2 * h + i / 2;
          const float sum = fmaf(second[h][i], kSecond, first[h][i]);
          total[h][i] = fmaf(scale[c], fmaf(-kCodeUnit * zero[c], ones[i % 2], sum), total[h][i]);
        }
      }
    }
  });
}

// total += the segment times the activations.
template <typename Layout, bool kOne>
__device__ __forceinline__ void multiply_segment(const Header& header, const uint8_t* stream, const Activations& x, int lane,
                                                 Totals& total) {
  if constexpr (kOne && Layout::kBits != 16) {
    multiply_one<Layout>(header, stream, x, lane, total);
  } else {
    multiply_halves<Layout, kOne>(header, stream, x, lane, total);
  }
}

}  // namespace exl2::cuda
