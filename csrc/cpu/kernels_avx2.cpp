#include "kernels_table.h"

namespace exl2 {

const Kernels* kernels_avx2() { return &avx2::kTable; }

}  // namespace exl2
