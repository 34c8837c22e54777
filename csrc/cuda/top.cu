// The largest logits of one token, in order, by one CUDA block: few hundred bytes instead of all logits cross to the
// host. Equal logits are taken in the order of their ids, NaN counts as largest.
//
// 1. Every thread finds the largest of its share. The k-th largest of these is a bound: k logits reach it.
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

// Bitonic sort of count = 2^n <= kThreads keys, largest first. By the whole block.
__device__ void sort_keys(uint64_t* keys, int count) {
  const int i = threadIdx.x;
  for (int size = 2; size <= count; size *= 2) {
    for (int apart = size / 2; apart > 0; apart /= 2) {
      __syncthreads();
      const int other = i ^ apart;
      if (other > i && i < count) {
        const bool falls = (i & size) == 0;
        const uint64_t a = keys[i];
        const uint64_t b = keys[other];
        if ((a < b) == falls) {
          keys[i] = b;
          keys[other] = a;
        }
      }
    }
  }
  __syncthreads();
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

__global__ void __launch_bounds__(kThreads)
    top_kernel(const float* logits, int count, int k, int64_t* ids, float* values, Mail* mail, uint64_t number) {
  __shared__ uint64_t keys[kThreads];
  __shared__ int found;
  const int thread = threadIdx.x;
  if (thread == 0) found = 0;
  uint64_t best = 0;
#pragma unroll 8
  for (int id = thread; id < count; id += kThreads) best = max(best, key_of(logits[id], id));
  keys[thread] = best;
  sort_keys(keys, kThreads);
  const uint64_t bound = keys[k - 1];
  __syncthreads();
  keys[thread] = 0;
  __syncthreads();
#pragma unroll 8
  for (int id = thread; id < count; id += kThreads) {
    const uint64_t key = key_of(logits[id], id);
    if (key < bound) continue;
    const int place = atomicAdd(&found, 1);
    if (place < kThreads) keys[place] = key;
  }
  __syncthreads();
  auto write = [&](int place, uint64_t key) {
    const auto id = static_cast<int>(~static_cast<uint32_t>(key));
    ids[place] = id;
    values[place] = logits[id];
  };
  if (found <= kThreads) {
    int size = 2;
    while (size < found) size *= 2;
    sort_keys(keys, size);
    if (thread < k) write(thread, keys[thread]);
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
