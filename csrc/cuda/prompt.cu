// Elementwise kernels of the prompt path: each reads and writes every element once, where torch takes a pass per
// operation (prompt_element.h).
#include "common.cuh"
#include "kernels.h"

namespace exl2::cuda {
namespace {

constexpr int kElementThreads = 256;

__global__ void __launch_bounds__(kElementThreads) rope_kernel(const RopeTask task) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (index < task.pairs()) rope_pair(task, index);
}

__global__ void __launch_bounds__(kElementThreads) silu_kernel(uint16_t* gate, const uint16_t* up, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (index < count) gate[index] = silu_times(gate[index], up[index]);
}

unsigned blocks_for(int64_t count) { return static_cast<unsigned>((count + kElementThreads - 1) / kElementThreads); }

}  // namespace

void prompt_rope(const RopeTask& task, cudaStream_t stream) {
  if (task.pairs() == 0) return;
  rope_kernel<<<blocks_for(task.pairs()), kElementThreads, 0, stream>>>(task);
  check(cudaGetLastError(), "prompt_rope");
}

void prompt_silu(uint16_t* gate, const uint16_t* up, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  silu_kernel<<<blocks_for(count), kElementThreads, 0, stream>>>(gate, up, count);
  check(cudaGetLastError(), "prompt_silu");
}

}  // namespace exl2::cuda
