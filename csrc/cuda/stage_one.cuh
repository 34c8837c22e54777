// The activations of one token on their way into shared memory, for codes: as whole numbers (fixed.h), in the packed order
// of the weight, with their sums over blocks of rows.
#pragma once

#include "fixed.h"
#include "stage.cuh"

namespace exl2::cuda {

// Where a lane's eight rows of a block lie: the high and the middle digits in 16 bytes from input on, the low ones in 8.
struct Digitized {
  uint8_t* input;
  uint8_t* lowest;
  int32_t* ones;

  // Rows 8 i ... 8 i + 7, by all lanes of a warp; `there`: of the four lanes of a block alike.
  __device__ __forceinline__ void put(int i, bool there, const float (&eight)[8], float scale) const {
    const Digits digits = split_digits(eight, scale);
    int32_t sum = digits.sum;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (!there) return;
    *reinterpret_cast<uint4*>(input + 16 * i) =
        make_uint4(digits.high[0], digits.high[1], digits.middle[0], digits.middle[1]);
    *reinterpret_cast<uint2*>(lowest + 8 * i) = make_uint2(digits.low[0], digits.low[1]);
    if (i % 4 == 0) ones[i / 4] = sum;
  }
};

// The residual, as soon as it is there, times the norm's weights. What its mean square makes of it is a factor of all
// results alike, so nobody waits for that sum. place: of load_near(); values: float (in_features), for its packed order;
// scratch, largest: float (kWarps). Returns what a unit of the numbers is worth.
__device__ __forceinline__ float digitize_normalized(const Step& step, const ShortPacket* from, uint32_t stamp,
                                                     const uint16_t* norm, const uint16_t* inverse, const NearPlaces& place,
                                                     int in_features, const Digitized& to, float* values, float* scratch,
                                                     float* largest) {
  const int thread = thread_index();
  const int hidden = static_cast<int>(step.model.hidden);
  float squares = 0.f;
  float most = 0.f;
  auto take = [&](const NormPlace& at, const float4& value, int i) {
    squares += square_sum(value);
    const float4 result = at.times(value);
    most = fmaxf(most, fmaxf(fmaxf(fabsf(result.x), fabsf(result.y)), fmaxf(fabsf(result.z), fabsf(result.w))));
    at.store(result, inverse == nullptr, i, values);
  };
  uint4 near[kNormRounds] = {};
#pragma unroll
  for (int r = 0; r < kNormRounds; ++r) {
    const int i = 4 * (thread + kWorkers * r);
    if (i < hidden) near[r] = look_at_four(from + i);
  }
#pragma unroll
  for (int r = 0; r < kNormRounds; ++r) {
    const int i = 4 * (thread + kWorkers * r);
    if (i < hidden) take(place[r], await_four(near[r], from + i, stamp), i);
  }
#pragma unroll 2
  for (int i = 4 * (thread + kWorkers * kNormRounds); i < hidden; i += 4 * kWorkers) {
    NormPlace far = {};
    far.load(norm, inverse, i);
    take(far, await_four(look_at_four(from + i), from + i, stamp), i);
  }
  for (int i = hidden + thread; i < in_features; i += kWorkers) values[i] = 0.f;
  const uint32_t most_bits = __reduce_max_sync(0xffffffffu, bits_of(most));
  squares = warp_sum(squares);
  if (thread % 32 == 0) {
    largest[thread / 32] = float_of(most_bits);
    scratch[thread / 32] = squares;
  }
  sync_workers();
  const FixedPoint fixed(float_of(__reduce_max_sync(0xffffffffu, bits_of(largest[thread % kWarps]))));
#pragma unroll 1
  for (int first = thread / 32 * 32; first < in_features / 8; first += kWorkers) {
    const int i = first + thread % 32;
    const bool there = i < in_features / 8;
    float eight[8] = {};
    if (there) {
      const float4 low = *reinterpret_cast<const float4*>(values + 8 * i);
      const float4 high = *reinterpret_cast<const float4*>(values + 8 * i + 4);
      eight[0] = low.x, eight[1] = low.y, eight[2] = low.z, eight[3] = low.w;
      eight[4] = high.x, eight[5] = high.y, eight[6] = high.z, eight[7] = high.w;
    }
    to.put(i, there, eight, fixed.scale);
  }
  const float mean = __fdividef(warp_sum(thread % 32 < kWarps ? scratch[thread % 32] : 0.f), static_cast<float>(hidden));
  sync_workers();
  return fixed.unit * rsqrtf(mean + static_cast<float>(step.model.eps));
}

// Activations that the phase before leaves in packed order, as soon as they are there: every warp fetches what it will
// multiply, and waits for no other. size: of them; in_features of the weight may be more. Returns what a unit of this
// warp's numbers is worth.
__device__ __forceinline__ float digitize_packed(const HalfPacket* from, uint32_t stamp, int size, const Share& share,
                                                 const Digitized& to) {
  constexpr int kAtOnce = 6;
  const int lane = thread_index() % 32;
  const int begin = share.first_block * kBlockRows;
  const int end = share.last_block * kBlockRows;
  half2 most = {};
#pragma unroll 1
  for (int start = begin; start < end; start += 4 * 32 * kAtOnce) {
    uint4 found[kAtOnce] = {};
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int i = start + 4 * (lane + 32 * r);
      if (i < end) found[r] = look_at_four(from + i);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      const int i = start + 4 * (lane + 32 * r);
      if (i >= end) continue;
      const uint2 four = await_four(found[r], from + i, stamp, size - i);
      *reinterpret_cast<uint2*>(to.input + 2 * i) = four;
      most = __hmax2(most, __hmax2(__habs2(as_half2(four.x)), __habs2(as_half2(four.y))));
    }
  }
  const float largest = fmaxf(__low2float(most), __high2float(most));
  const FixedPoint fixed(float_of(__reduce_max_sync(0xffffffffu, bits_of(largest))));
  __syncwarp();
#pragma unroll 1
  for (int first = begin / 8; first < end / 8; first += 32) {
    const int i = first + lane;
    const bool there = i < end / 8;
    const uint4 halves = there ? *reinterpret_cast<const uint4*>(to.input + 16 * i) : uint4{};
    const float2 a = __half22float2(as_half2(halves.x));
    const float2 b = __half22float2(as_half2(halves.y));
    const float2 c = __half22float2(as_half2(halves.z));
    const float2 d = __half22float2(as_half2(halves.w));
    const float eight[8] = {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
    to.put(i, there, eight, fixed.scale);
  }
  __syncwarp();
  return fixed.unit;
}

}  // namespace exl2::cuda
