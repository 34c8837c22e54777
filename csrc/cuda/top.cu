// The largest logits of one token, in order, by one CUDA block: few hundred bytes instead of all logits cross to the
// host. Equal logits are taken in the order of their ids, NaN counts as largest.
//
// 1. Every thread finds the largest of its share, and of these groups of threads the largest. The k-th largest of the
//    groups' is a bound: k logits reach it.
// 2. The logits that reach the bound, few more than k, are collected and sorted.
// Only if there are too many of them (most of the largest in the shares of few threads), each of the k is looked for on
// its own.
#include "kernels.h"
#include "mail.cuh"

namespace exl2::cuda {
namespace {

constexpr int kThreads = 1024;
static_assert(kMostTop <= kThreads);

// A logit and its id as a number that is larger the earlier it comes; neither 0 nor the largest.
__device__ __forceinline__ uint64_t key_of(float logit, int id) {
  uint32_t bits = __float_as_uint(logit + 0.f);  // -0 becomes 0
  bits = isnan(logit) ? 0xfffffffeu : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(id);
}

__device__ __forceinline__ float logit_of(uint64_t key) {
  const auto bits = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits ^ 0x80000000u : ~bits);
}

// Calls take(key) for every logit in the thread's share: four in a row of every 4 * kThreads, and one of the last few.
template <typename Take>
__device__ __forceinline__ void for_share(const float* logits, int count, Take take) {
  const int quads = count / 4;
#pragma unroll 8
  for (int quad = threadIdx.x; quad < quads; quad += kThreads) {
    const float4 four = reinterpret_cast<const float4*>(logits)[quad];
    take(key_of(four.x, 4 * quad));
    take(key_of(four.y, 4 * quad + 1));
    take(key_of(four.z, 4 * quad + 2));
    take(key_of(four.w, 4 * quad + 3));
  }
  const int last = 4 * quads + static_cast<int>(threadIdx.x);
  if (last < count) take(key_of(logits[last], last));
}

// Bitonic sort of the keys of the first `count` = 2^n <= kThreads threads, largest first; other warps only wait. By the
// whole block. Between threads that are a warp or more apart it goes through `scratch`.
__device__ uint64_t sort_keys(uint64_t key, int count, uint64_t (*scratch)[kThreads]) {
  const int i = threadIdx.x;
  const bool idle = i / 32 * 32 >= count;
  int turn = 0;
  for (int size = 2; size <= count; size *= 2) {
    for (int apart = size / 2; apart > 0; apart /= 2) {
      uint64_t other;
      if (apart < 32) {
        if (idle) continue;
        other = __shfl_xor_sync(0xffffffffu, key, apart);
      } else {  // by turns in two places, so that one barrier is enough
        if (!idle) scratch[turn][i] = key;
        __syncthreads();
        if (idle) continue;
        other = scratch[turn][i ^ apart];
        turn ^= 1;
      }
      const bool falls = (i & size) == 0;
      const bool first = (i & apart) == 0;
      key = falls == first ? max(key, other) : min(key, other);
    }
  }
  return key;
}

// The largest key below `bound`, to every thread.
__device__ uint64_t largest_below(const float* logits, int count, uint64_t bound, uint64_t* scratch) {
  uint64_t best = 0;
  for (int id = threadIdx.x; id < count; id += kThreads) {
    const uint64_t key = key_of(logits[id], id);
    if (key < bound && key > best) best = key;
  }
  __syncthreads();
  scratch[threadIdx.x] = best;
  for (int apart = kThreads / 2; apart > 0; apart /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < apart) {
      scratch[threadIdx.x] = max(scratch[threadIdx.x], scratch[threadIdx.x + apart]);
    }
  }
  __syncthreads();
  return scratch[0];
}

// logits: aligned to 16 bytes.
__global__ void __launch_bounds__(kThreads)
    top_kernel(const float* logits, int count, int k, int64_t* ids, float* values, Mail* mail, uint64_t number) {
  __shared__ uint64_t scratch[2][kThreads];
  __shared__ uint64_t keys[kThreads];
  __shared__ uint64_t bound;
  __shared__ int found;
  const int thread = threadIdx.x;
  if (thread == 0) found = 0;
  keys[thread] = 0;
  uint64_t best = 0;
  for_share(logits, count, [&](uint64_t key) { best = max(best, key); });
  int group = 1;  // threads in a row; of at least 2 k groups, few others reach the bound
  while (group < 32 && kThreads / (2 * group) >= max(2 * k, 32)) group *= 2;
  uint64_t largest = best;
  for (int apart = 1; apart < group; apart *= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, apart));
  if (thread % group == 0) scratch[1][thread / group] = largest;  // sorting begins with the other place
  __syncthreads();
  const uint64_t sorted = sort_keys(scratch[1][thread], kThreads / group, scratch);
  if (thread == k - 1) bound = sorted;
  __syncthreads();
  if (best >= bound) {
    for_share(logits, count, [&](uint64_t key) {
      if (key < bound) return;
      const int place = atomicAdd(&found, 1);
      if (place < kThreads) keys[place] = key;
    });
  }
  __syncthreads();
  auto write = [&](int place, uint64_t key) {
    ids[place] = static_cast<int>(~static_cast<uint32_t>(key));
    values[place] = logit_of(key);
  };
  if (found <= kThreads) {
    int size = 2;
    while (size < found) size *= 2;
    const uint64_t key = sort_keys(keys[thread], size, scratch);
    if (thread < k) write(thread, key);
  } else {
    uint64_t last = ~uint64_t{0};
    for (int place = 0; place < k; ++place) {
      last = largest_below(logits, count, last, keys);
      if (thread == 0) write(place, last);
    }
  }
  __syncthreads();
  if (thread == 0 && mail != nullptr) write_word(&mail->answered, number);
}

}  // namespace

void top_logits(const float* logits, int64_t count, int64_t k, int64_t* ids, float* values, cudaStream_t stream, Mail* mail,
                uint64_t number) {
  top_kernel<<<1, kThreads, 0, stream>>>(logits, static_cast<int>(count), static_cast<int>(k), ids, values, mail, number);
  check(cudaGetLastError(), "top_logits");
}

}  // namespace exl2::cuda
