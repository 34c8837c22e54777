// Linear layers with AVX-512 where two vectors are multiplied a cycle and two more added (Zen 5): products of sums.
#define EXL2_ISA linear_avx512
#include "lanes_avx512.h"

namespace exl2 {
namespace EXL2_ISA {

struct Lanes : Avx512Lanes {
  static constexpr bool kSums = true;
  static constexpr int kDecodeAhead = 24576;  // linear_ahead.h
  static constexpr bool kAskInCall = true;
  static constexpr bool kAskIntoL2 = false;
};

}  // namespace EXL2_ISA
}  // namespace exl2

#include "linear_product.h"

namespace exl2 {
const LinearKernels* linear_kernels_avx512() { return &EXL2_ISA::kKernels; }
}  // namespace exl2
