#include "quant_solver.h"

namespace exl2 {

const QuantKernels* quant_kernels_avx2() { return &avx2::kQuantTable; }

}  // namespace exl2
