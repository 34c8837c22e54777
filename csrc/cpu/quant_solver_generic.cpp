#include "quant_solver.h"

namespace exl2 {

const QuantKernels* quant_kernels_generic() { return &generic::kQuantTable; }

}  // namespace exl2
