// Linear layers with AVX-512 where two vectors are multiplied or added a cycle, and no more (Intel): plain products.
#define EXL2_ISA linear_plain_avx512
#include "lanes_avx512.h"

namespace exl2 {
namespace EXL2_ISA {

using Lanes = IntelLanes;

}  // namespace EXL2_ISA
}  // namespace exl2

#include "linear_product.h"

namespace exl2 {
const LinearKernels* linear_kernels_plain_avx512() { return &EXL2_ISA::kKernels; }
}  // namespace exl2
