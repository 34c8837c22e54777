// Launches the kernel of a decode step. The only place that knows which GPUs it is compiled for.
#pragma once

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#include "step.cuh"
#else
// Turing lacks cp.async, mbarrier and mma.m16n8k16. has_step() keeps this from being launched.
#include "arrange.cuh"
namespace exl2::cuda {
template <bool kOne, int kHeadDim, int kKeyBits, int kValueBits>
__global__ void step_kernel(const __grid_constant__ Step) {
  __trap();
}
}  // namespace exl2::cuda
#endif

namespace exl2::cuda {

template <bool kOne, int kHeadDim, int kKeyBits, int kValueBits>
void launch(const Step& step, int64_t bytes, cudaStream_t stream) {
  const auto kernel = step_kernel<kOne, kHeadDim, kKeyBits, kValueBits>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory limit");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(step.model.grid));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, step), "decode step");
}

// Compiled in a file of its own for each kind of cache. For one token the usual sizes of heads have kernels of their own:
// where all sizes share one, each has to do with the registers that the hungriest leaves.
template <int kKeyBits, int kValueBits>
void start_step(const Step& step, bool one, int64_t bytes, cudaStream_t stream) {
  if (!one) return launch<false, 0, kKeyBits, kValueBits>(step, bytes, stream);
  if (step.model.head_dim == 128) return launch<true, 128, kKeyBits, kValueBits>(step, bytes, stream);
  if (step.model.head_dim == 64) return launch<true, 64, kKeyBits, kValueBits>(step, bytes, stream);
  launch<true, 0, kKeyBits, kValueBits>(step, bytes, stream);
}

}  // namespace exl2::cuda
