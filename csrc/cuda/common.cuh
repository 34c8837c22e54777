// Small device helpers shared by the kernels.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace exl2::cuda {

constexpr float kLargestHalf = 65504.f;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

__device__ __forceinline__ float half_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Rounded to fp16; what is too large becomes the largest number, not infinity.
__device__ __forceinline__ uint16_t half_bits(float value) {
  return __half_as_ushort(__float2half_rn(fminf(fmaxf(value, -kLargestHalf), kLargestHalf)));
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// threadIdx.x, read anew. What the compiler derives from threadIdx.x itself it keeps through all phases of a step: there
// are not enough registers for that, and local memory is far away where shared memory leaves L1 little room.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// Barrier of the warps that multiply; the feeders have no part in it.
__device__ __forceinline__ void sync_workers() { asm volatile("bar.sync 1, %0;" ::"n"(32 * kWarps) : "memory"); }

// Sum over those warps, to every thread. `scratch`: one float per warp, free again at the next sync_workers().
__device__ __forceinline__ float workers_sum(float value, float* scratch) {
  const int thread = thread_index();
  value = warp_sum(value);
  if (thread % 32 == 0) scratch[thread / 32] = value;
  sync_workers();
  return warp_sum(thread % 32 < kWarps ? scratch[thread % 32] : 0.f);
}

}  // namespace exl2::cuda
