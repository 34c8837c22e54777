// The decode step for a cache of 16 bits.
#include "step.cuh"

namespace exl2::cuda {

template void start_step<16, 16>(const Step& step, bool one, int64_t bytes, cudaStream_t stream);

}  // namespace exl2::cuda
