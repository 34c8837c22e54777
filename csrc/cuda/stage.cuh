// Activations on their way into shared memory as halves, in the packed order of the weight that they will be multiplied by,
// and their sums over blocks of rows: of several tokens, or for dense weights. Otherwise: stage_one.cuh.
#pragma once

#include "arrange.cuh"
#include "exchange.cuh"
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

  __device__ __forceinline__ float4 times(const float4& value) const {
    const float2 low = __half22float2(as_half2(weight.x));
    const float2 high = __half22float2(as_half2(weight.y));
    return make_float4(value.x * low.x, value.y * low.y, value.z * high.x, value.w * high.y);
  }

  // To a row of floats or of halves. The choice is made here: made in load(), it would wait for the rows to arrive.
  template <typename To>
  __device__ __forceinline__ void store(const float4& value, bool ordered, int i, To* row) const {
    const uint32_t at = static_cast<uint32_t>(i);
    const uint4 place = ordered ? make_uint4(at, at + 1, at + 2, at + 3)
                                : make_uint4(rows.x & 0xffffu, rows.x >> 16, rows.y & 0xffffu, rows.y >> 16);
    const auto stored = [](float number) {
      if constexpr (std::is_same_v<To, float>) {
        return number;
      } else {
        return half_bits(number);
      }
    };
    row[place.x] = stored(value.x);
    row[place.y] = stored(value.y);
    row[place.z] = stored(value.z);
    row[place.w] = stored(value.w);
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

__device__ __forceinline__ float square_sum(const float4& v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// The residual, as soon as it is there, normalized. place: of load_near(). kept: where sums will be; scratch: float
// (kWarps).
template <bool kOne>
__device__ __forceinline__ void stage_normalized(const Step& step, const ShortPacket* residual, uint32_t stamp,
                                                 const uint16_t* norm, const uint16_t* inverse, const NearPlaces& place,
                                                 int64_t in_features, uint16_t* x, float* kept, float* scratch) {
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
    auto store = [&](const NormPlace& at, const float4& value, int i) {
      const float4 scaled = make_float4(value.x * factor, value.y * factor, value.z * factor, value.w * factor);
      at.store(at.times(scaled), inverse == nullptr, i, row);
    };
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) store(place[r], value[r], i);
    }
#pragma unroll 2
    for (int i = kNormFar + 4 * thread; i < hidden; i += 4 * kWorkers) {
      NormPlace far = {};
      far.load(norm, inverse, i);
      store(far, i < end_of_kept ? waiting[i / 4] : far_value(i), i);
    }
    for (int64_t i = hidden + thread; i < in_features; i += kWorkers) row[i] = 0;
    sync_workers();
  }
}

// Activations that the phase before leaves in packed order, as soon as they are there, and of several tokens their sums
// (see sum_blocks): 8 threads share a block. size: of them; in_features of the weight may be more.
template <bool kOne>
__device__ __forceinline__ void stage_packed(const Step& step, const HalfPacket* input, uint32_t stamp, int64_t size,
                                             int64_t in_features, uint16_t* x, float* ones) {
  constexpr int kAtOnce = 6;
  const int thread = thread_index();
  const int tokens = kOne ? 1 : step.tokens;
  const int end = static_cast<int>(in_features);
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
          if constexpr (kOne) continue;
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

}  // namespace exl2::cuda
