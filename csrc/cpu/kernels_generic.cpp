#include "kernels_table.h"

namespace exl2 {

const Kernels* kernels_generic() { return &generic::kTable; }

}  // namespace exl2
