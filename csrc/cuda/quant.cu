// The quantizer's inner loops: one thread per column, all rows in turn (quant_column.h). Neighbouring threads read
// neighbouring columns, and all of them the same coupling, so what is read repeatedly stays in L1.
#include "common.cuh"
#include "kernels.h"
#include "quant_column.h"

namespace exl2::cuda {
namespace {

constexpr int kColumnThreads = 64;  // few per CUDA block: a layer's columns should reach every multiprocessor

__global__ void __launch_bounds__(kColumnThreads) round_kernel(const RoundTask task) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (column < task.columns) round_column(task, column);
}

__global__ void __launch_bounds__(kColumnThreads) search_kernel(const SearchTask task, float* costs) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  const int64_t m = blockIdx.y;
  if (column < task.columns) costs[m * task.columns + column] = search_column(task, m, column);
}

unsigned column_blocks(int64_t columns) { return static_cast<unsigned>((columns + kColumnThreads - 1) / kColumnThreads); }

}  // namespace

void quant_round(const RoundTask& task, cudaStream_t stream) {
  if (task.columns == 0) return;
  round_kernel<<<column_blocks(task.columns), kColumnThreads, 0, stream>>>(task);
  check(cudaGetLastError(), "quant_round");
}

void quant_search(const SearchTask& task, float* costs, cudaStream_t stream) {
  if (task.columns == 0 || task.maxima == 0) return;
  const dim3 grid(column_blocks(task.columns), static_cast<unsigned>(task.maxima));
  search_kernel<<<grid, kColumnThreads, 0, stream>>>(task, costs);
  check(cudaGetLastError(), "quant_search");
}

}  // namespace exl2::cuda
