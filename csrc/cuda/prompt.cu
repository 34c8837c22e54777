// What a prompt's tokens go through between the matrix products, one CUDA block per token. Each kernel reads and writes
// every element once, where torch takes a pass per operation. Results that feed a linear are written in the packed order
// of its rows: a row is staged in shared memory, from where it can be gathered.
#include "common.cuh"
#include "kernels.h"

namespace exl2::cuda {
namespace {

constexpr int kRowThreads = 256;

template <int kCount>
__global__ void __launch_bounds__(kRowThreads) rope_kernel(const RopeTask task) {
  const int32_t count = task.pairs() / kCount;
  for (int32_t i = threadIdx.x; i < count; i += kRowThreads) rope_pairs<kCount>(task, blockIdx.x, i);
}

// Calls eight(i) for every eighth element of a row, so that 16 bytes can be moved at once; one(i) for every element if
// rows are not aligned for that. By the whole CUDA block.
template <typename Eight, typename One>
__device__ __forceinline__ void for_eights(int size, Eight eight, One one) {
  if (size % 8 == 0) {
    for (int i = 8 * threadIdx.x; i < size; i += 8 * kRowThreads) eight(i);
  } else {
    for (int i = threadIdx.x; i < size; i += kRowThreads) one(i);
  }
}

__device__ __forceinline__ uint32_t silu_pair(uint32_t gate, uint32_t up) {
  const uint32_t low = silu_times(static_cast<uint16_t>(gate), static_cast<uint16_t>(up));
  return low | static_cast<uint32_t>(silu_times(static_cast<uint16_t>(gate >> 16), static_cast<uint16_t>(up >> 16))) << 16;
}

// A staged row of `size` halves, written in the order of its consumer. By the whole CUDA block, after a barrier.
__device__ __forceinline__ void write_row(const PackedRows& rows, const uint16_t* staged, int size) {
  uint4* const out = reinterpret_cast<uint4*>(rows.out + blockIdx.x * rows.width);
  for (int i = threadIdx.x; i < rows.width / 8; i += kRowThreads) {
    uint32_t half[8];
    if (rows.perm != nullptr) {
      const int4 low = __ldg(reinterpret_cast<const int4*>(rows.perm) + 2 * i);
      const int4 high = __ldg(reinterpret_cast<const int4*>(rows.perm) + 2 * i + 1);
      const int from[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) half[e] = staged[from[e]];
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e) half[e] = 8 * i + e < size ? staged[8 * i + e] : 0;
    }
    out[i] = make_uint4(half[0] | half[1] << 16, half[2] | half[3] << 16, half[4] | half[5] << 16, half[6] | half[7] << 16);
  }
}

__global__ void __launch_bounds__(kRowThreads) norm_kernel(float* residual, const uint16_t* delta, const uint16_t* weight,
                                                           int hidden, float eps, const PackedRows rows) {
  extern __shared__ __align__(16) uint16_t staged[];
  __shared__ float scratch[kRowThreads / 32];
  float* const x = residual + static_cast<int64_t>(blockIdx.x) * hidden;
  float squares = 0.f;
  for (int i = 4 * threadIdx.x; i < hidden; i += 4 * kRowThreads) {
    float4 v = *reinterpret_cast<const float4*>(x + i);
    if (delta != nullptr) {
      const uint2 added = *reinterpret_cast<const uint2*>(delta + static_cast<int64_t>(blockIdx.x) * hidden + i);
      v.x += half_float(static_cast<uint16_t>(added.x));
      v.y += half_float(static_cast<uint16_t>(added.x >> 16));
      v.z += half_float(static_cast<uint16_t>(added.y));
      v.w += half_float(static_cast<uint16_t>(added.y >> 16));
      *reinterpret_cast<float4*>(x + i) = v;
    }
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = squares;
  __syncthreads();
  const float sum = warp_sum(threadIdx.x % 32 < kRowThreads / 32 ? scratch[threadIdx.x % 32] : 0.f);
  const float factor = rsqrtf(sum / static_cast<float>(hidden) + eps);
  for (int i = 4 * threadIdx.x; i < hidden; i += 4 * kRowThreads) {  // what this thread has just written
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    const uint2 w = *reinterpret_cast<const uint2*>(weight + i);
    staged[i] = half_bits(v.x * factor * half_float(static_cast<uint16_t>(w.x)));
    staged[i + 1] = half_bits(v.y * factor * half_float(static_cast<uint16_t>(w.x >> 16)));
    staged[i + 2] = half_bits(v.z * factor * half_float(static_cast<uint16_t>(w.y)));
    staged[i + 3] = half_bits(v.w * factor * half_float(static_cast<uint16_t>(w.y >> 16)));
  }
  __syncthreads();
  write_row(rows, staged, hidden);
}

__global__ void __launch_bounds__(kRowThreads) order_kernel(const uint16_t* x, int size, const PackedRows rows) {
  extern __shared__ __align__(16) uint16_t staged[];
  const uint16_t* const row = x + static_cast<int64_t>(blockIdx.x) * size;
  for_eights(size, [&](int i) { *reinterpret_cast<uint4*>(staged + i) = *reinterpret_cast<const uint4*>(row + i); },
             [&](int i) { staged[i] = row[i]; });
  __syncthreads();
  write_row(rows, staged, size);
}

__global__ void __launch_bounds__(kRowThreads) silu_kernel(const uint16_t* gate, const uint16_t* up, int size,
                                                           const PackedRows rows) {
  extern __shared__ __align__(16) uint16_t staged[];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * size;
  for_eights(
      size,
      [&](int i) {
        const uint4 g = *reinterpret_cast<const uint4*>(gate + row + i);
        const uint4 u = *reinterpret_cast<const uint4*>(up + row + i);
        *reinterpret_cast<uint4*>(staged + i) =
            make_uint4(silu_pair(g.x, u.x), silu_pair(g.y, u.y), silu_pair(g.z, u.z), silu_pair(g.w, u.w));
      },
      [&](int i) { staged[i] = silu_times(gate[row + i], up[row + i]); });
  __syncthreads();
  write_row(rows, staged, size);
}

// Shared memory for a row of `size` halves; more than 48 KiB has to be asked for.
template <typename Kernel>
int row_bytes(Kernel kernel, int64_t size) {
  const int bytes = static_cast<int>(2 * size);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "a row in shared memory");
  return bytes;
}

}  // namespace

void prompt_rope(const RopeTask& task, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(task.tokens);
  if (task.in_fours()) {
    rope_kernel<4><<<blocks, kRowThreads, 0, stream>>>(task);
  } else {
    rope_kernel<1><<<blocks, kRowThreads, 0, stream>>>(task);
  }
  check(cudaGetLastError(), "prompt_rope");
}

void prompt_norm(float* residual, const uint16_t* delta, const uint16_t* weight, int64_t hidden, float eps,
                 const PackedRows& rows, cudaStream_t stream) {
  const int bytes = row_bytes(norm_kernel, hidden);
  norm_kernel<<<static_cast<unsigned>(rows.tokens), kRowThreads, bytes, stream>>>(residual, delta, weight,
                                                                                static_cast<int>(hidden), eps, rows);
  check(cudaGetLastError(), "prompt_norm");
}

void prompt_order(const uint16_t* x, int64_t size, const PackedRows& rows, cudaStream_t stream) {
  const int bytes = row_bytes(order_kernel, size);
  order_kernel<<<static_cast<unsigned>(rows.tokens), kRowThreads, bytes, stream>>>(x, static_cast<int>(size), rows);
  check(cudaGetLastError(), "prompt_order");
}

void prompt_silu(const uint16_t* gate, const uint16_t* up, int64_t size, const PackedRows& rows, cudaStream_t stream) {
  const int bytes = row_bytes(silu_kernel, size);
  silu_kernel<<<static_cast<unsigned>(rows.tokens), kRowThreads, bytes, stream>>>(gate, up, static_cast<int>(size), rows);
  check(cudaGetLastError(), "prompt_silu");
}

}  // namespace exl2::cuda
