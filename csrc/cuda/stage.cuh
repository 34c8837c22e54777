// Activations on their way into shared memory, in the packed order of the weight that they will be multiplied by, and
// their sums over blocks of rows. Those of one token become whole numbers there (fixed.h).
#pragma once

#include "arrange.cuh"
#include "exchange.cuh"
#include "fixed.h"
#include "unpack.cuh"

namespace exl2::cuda {

constexpr int kNormRounds = 2;  // of 4 * kWorkers elements that are kept in registers
// Wider residuals wait in shared memory, where sums of strips will be; wider ones still are read twice.
constexpr int kNormFar = 4 * kWorkers * kNormRounds;

// The norm's weights and where the results go, for the 4 elements from i on.
struct NormPlace {
  uint2 weight;  // half (4)
  uint2 rows;    // uint16 (4), if they are in another order

  __device__ __forceinline__ void load(const uint16_t* norm, const uint16_t* inverse, int i) {
    weight = *reinterpret_cast<const uint2*>(norm + i);
    if (inverse != nullptr) rows = *reinterpret_cast<const uint2*>(inverse + i);
  }

  // Returns the largest of them. The choice is made here: made in load(), it would wait for the rows to arrive.
  __device__ __forceinline__ float store(const float4& value, float factor, bool ordered, int i, uint16_t* row) const {
    const uint32_t at = static_cast<uint32_t>(i);
    const uint4 place = ordered ? make_uint4(at, at + 1, at + 2, at + 3)
                                : make_uint4(rows.x & 0xffffu, rows.x >> 16, rows.y & 0xffffu, rows.y >> 16);
    const float2 low = __half22float2(as_half2(weight.x));
    const float2 high = __half22float2(as_half2(weight.y));
    const float4 result = make_float4(value.x * factor * low.x, value.y * factor * low.y, value.z * factor * high.x,
                                      value.w * factor * high.y);
    row[place.x] = half_bits(result.x);
    row[place.y] = half_bits(result.y);
    row[place.z] = half_bits(result.z);
    row[place.w] = half_bits(result.w);
    return fmaxf(fmaxf(fabsf(result.x), fabsf(result.y)), fmaxf(fabsf(result.z), fabsf(result.w)));
  }
};

// Of the elements that a thread keeps in registers.
using NearPlaces = NormPlace[kNormRounds];

__device__ __forceinline__ void load_near(NearPlaces& places, const uint16_t* norm, const uint16_t* inverse, int hidden) {
#pragma unroll
  for (int r = 0; r < kNormRounds; ++r) {
    const int i = 4 * (thread_index() + kWorkers * r);
    if (i < hidden) places[r].load(norm, inverse, i);
  }
}

// What a warp found to be the largest, for split_activations() behind the next sync_workers().
__device__ __forceinline__ void keep_largest(float largest, float* kept) {
  const uint32_t most = __reduce_max_sync(0xffffffffu, bits_of(fminf(largest, kLargestHalf)));
  const int thread = thread_index();
  if (thread % 32 == 0) kept[thread / 32] = float_of(most);
}

__device__ __forceinline__ float square_sum(const float4& v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// The residual, as soon as it is there, normalized. place: of load_near(). kept: where sums will be; scratch, largest: float (kWarps).
template <bool kOne>
__device__ __forceinline__ void stage_normalized(const Step& step, const ShortPacket* residual, uint32_t stamp,
                                                 const uint16_t* norm, const uint16_t* inverse, const NearPlaces& place,
                                                 int64_t in_features, uint16_t* x, float* kept, float* scratch,
                                                 float* largest) {
  const Model& model = step.model;
  const int thread = thread_index();
  const int hidden = static_cast<int>(model.hidden);
#pragma unroll 1
  for (int m = 0; m < (kOne ? 1 : step.tokens); ++m) {
    const ShortPacket* from = residual + m * model.hidden;
    uint16_t* row = x + m * padded_row(in_features);
    uint4 near[kNormRounds] = {};
    float4 value[kNormRounds] = {};
    float squares = 0.f;
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) near[r] = look_at_four(from + i);
    }
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) value[r] = await_four(near[r], from + i, stamp);
      squares += square_sum(value[r]);
    }
    auto far_value = [&](int i) { return await_four(look_at_four(from + i), from + i, stamp); };
    auto* const waiting = reinterpret_cast<float4*>(kept - kNormFar);
    const int end_of_kept = kNormFar + step.batch * kWarps * kStripColumns;
#pragma unroll 2
    for (int i = kNormFar + 4 * thread; i < hidden; i += 4 * kWorkers) {
      const float4 far = far_value(i);
      squares += square_sum(far);
      if (i < end_of_kept) waiting[i / 4] = far;
    }
    const float mean = __fdividef(workers_sum(squares, scratch), static_cast<float>(hidden));
    const float factor = rsqrtf(mean + static_cast<float>(model.eps));
    float most = 0.f;
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) most = fmaxf(most, place[r].store(value[r], factor, inverse == nullptr, i, row));
    }
#pragma unroll 2
    for (int i = kNormFar + 4 * thread; i < hidden; i += 4 * kWorkers) {
      NormPlace far = {};
      far.load(norm, inverse, i);
      const float4 value = i < end_of_kept ? waiting[i / 4] : far_value(i);
      most = fmaxf(most, far.store(value, factor, inverse == nullptr, i, row));
    }
    if constexpr (kOne) keep_largest(most, largest);
    for (int64_t i = hidden + thread; i < in_features; i += kWorkers) row[i] = 0;
    sync_workers();
  }
}

// Activations that the phase before leaves in packed order, as soon as they are there, and of several tokens their sums
// (see sum_blocks): 8 threads share a block. size: of them; in_features of the weight may be more.
template <bool kOne>
__device__ __forceinline__ void stage_packed(const Step& step, const HalfPacket* input, uint32_t stamp, int64_t size,
                                             int64_t in_features, uint16_t* x, float* ones, float* largest) {
  constexpr int kAtOnce = 6;
  const int thread = thread_index();
  const int tokens = kOne ? 1 : step.tokens;
  const int end = static_cast<int>(in_features);
  half2 most = {};
#pragma unroll 1
  for (int m = 0; m < tokens; ++m) {
    const HalfPacket* from = input + m * in_features;
    uint16_t* const row = x + m * padded_row(in_features);
#pragma unroll 1
    for (int start = 0; start < end; start += 4 * kWorkers * kAtOnce) {
      const int first = start + 4 * thread;
      uint4 found[kAtOnce] = {};
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int i = first + 4 * kWorkers * r;
        if (i < end) found[r] = look_at_four(from + i);
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int i = first + 4 * kWorkers * r;
        float sum = 0.f;
        if (i < end) {
          const uint2 four = await_four(found[r], from + i, stamp, static_cast<int>(size) - i);
          *reinterpret_cast<uint2*>(row + i) = four;
          if constexpr (kOne) {
            most = __hmax2(most, __hmax2(__habs2(as_half2(four.x)), __habs2(as_half2(four.y))));
            continue;
          }
          const float2 low = __half22float2(as_half2(four.x));
          const float2 high = __half22float2(as_half2(four.y));
          sum = (low.x + low.y) + (high.x + high.y);
        }
        if constexpr (!kOne) {
#pragma unroll
          for (int apart = 1; apart < 8; apart *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
          if (i < end && thread % 8 == 0) ones[i / kBlockRows * ones_step(tokens) + m] = sum;
        }
      }
    }
  }
  if constexpr (kOne) keep_largest(fmaxf(__low2float(most), __high2float(most)), largest);
  sync_workers();
}

// Sums of the staged activations over each block of rows, float (blocks, ones_step), which the zero points of codes are
// multiplied by. Once per phase, for all strips. Four threads share a block.
__device__ __forceinline__ void sum_blocks(const Step& step, int64_t in_features, const uint16_t* x, float* ones) {
  const int thread = thread_index();
  const int blocks = static_cast<int>(in_features) / kBlockRows;
#pragma unroll 1
  for (int m = 0; m < step.tokens; ++m) {
    const uint16_t* row = x + m * padded_row(in_features);
#pragma unroll 1
    for (int first = 0; first < 4 * blocks; first += kWorkers) {
      const int i = first + thread;
      float sum = 0.f;
      if (i < 4 * blocks) {
        const uint4 words = *reinterpret_cast<const uint4*>(row + 8 * i);
        const float2 a = __half22float2(as_half2(words.x));
        const float2 b = __half22float2(as_half2(words.y));
        const float2 c = __half22float2(as_half2(words.z));
        const float2 d = __half22float2(as_half2(words.w));
        sum = ((a.x + a.y) + (b.x + b.y)) + ((c.x + c.y) + (d.x + d.y));
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (i < 4 * blocks && i % 4 == 0) ones[i / 4 * ones_step(step.tokens) + m] = sum;
    }
  }
  sync_workers();
}

// Where a lane's eight rows of a block lie, when they are whole numbers: the high and the middle digits in the 16 bytes
// that were the eight halves, the low ones in eight bytes elsewhere.
//
// Makes them of the staged activations of one token, with their sums over blocks, int32 (blocks). Returns what a unit is
// worth. largest: float (kWarps), of keep_largest().
__device__ __forceinline__ float split_activations(int64_t in_features, uint16_t* x, uint8_t* lowest, int32_t* ones,
                                                   const float* largest) {
  const int thread = thread_index();
  const FixedPoint fixed(float_of(__reduce_max_sync(0xffffffffu, bits_of(largest[thread % kWarps]))));
  const int lanes = static_cast<int>(in_features) / 8;
  constexpr int kAtOnce = 3;
#pragma unroll 1
  for (int first = 0; first < lanes; first += kAtOnce * kWorkers) {
    uint4 halves[kAtOnce] = {};
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int i = first + thread + kWorkers * r;
      if (i < lanes) halves[r] = *reinterpret_cast<const uint4*>(x + 8 * i);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int i = first + thread + kWorkers * r;
      if (first + kWorkers * r >= lanes) break;
      const float2 a = __half22float2(as_half2(halves[r].x));
      const float2 b = __half22float2(as_half2(halves[r].y));
      const float2 c = __half22float2(as_half2(halves[r].z));
      const float2 d = __half22float2(as_half2(halves[r].w));
      const float eight[8] = {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
      const Digits digits = split_digits(eight, fixed.scale);
      int32_t sum = digits.sum;
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (i < lanes) {
        *reinterpret_cast<uint4*>(x + 8 * i) = make_uint4(digits.high[0], digits.high[1], digits.middle[0], digits.middle[1]);
        *reinterpret_cast<uint2*>(lowest + 8 * i) = make_uint2(digits.low[0], digits.low[1]);
        if (i % 4 == 0) ones[i / 4] = sum;
      }
    }
  }
  sync_workers();
  return fixed.unit;
}

}  // namespace exl2::cuda
