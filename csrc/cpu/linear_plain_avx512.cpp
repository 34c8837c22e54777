// Linear layers with AVX-512 where two vectors are multiplied or added a cycle, and no more (Intel): plain products.
#define EXL2_ISA linear_plain_avx512
#include "lanes_avx512.h"

namespace exl2 {
namespace EXL2_ISA {

struct Lanes : IntelLanes {
  // 6 tokens x 2 tiles are 12 integer and 12 float sums of the 32 registers. 2 weights + 6 broadcast activations are
  // 8 loads for 12 products: the two load ports keep ahead of the two multipliers.
  static constexpr int kTokens = 6;
  static constexpr int kStageTiles = 2;
  static constexpr bool kTiles = false;
};

}  // namespace EXL2_ISA
}  // namespace exl2

#include "linear_product.h"

namespace exl2 {
const LinearKernels* linear_kernels_plain_avx512() { return &EXL2_ISA::kKernels; }
}  // namespace exl2
