// The decode step for a cache of 16 bits, and whether there is one for a GPU.
#include "start_step.cuh"

namespace exl2::cuda {

template void start_step<16, 16>(const Step& step, bool one, int64_t bytes, cudaStream_t stream);

bool has_step() {
  cudaFuncAttributes found;
  check(cudaFuncGetAttributes(&found, step_kernel<true, 0, 16, 16>), "the decode step");
  return found.ptxVersion >= 80;  // also on a newer GPU, for which the driver compiled what is there for an older one
}

}  // namespace exl2::cuda
