#include "kernels_table.h"

namespace exl2 {

const Kernels* kernels_avx512() { return &avx512::kTable; }

}  // namespace exl2
