#include "quant_solver.h"

namespace exl2 {

const QuantKernels* quant_kernels_avx512() { return &avx512::kQuantTable; }

}  // namespace exl2
