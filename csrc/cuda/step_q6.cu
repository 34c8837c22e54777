// The decode step for a cache of 8 bits for keys and 4 for values.
#include "start_step.cuh"

namespace exl2::cuda {

template void start_step<8, 4>(const Step& step, bool one, int64_t bytes, cudaStream_t stream);

}  // namespace exl2::cuda
