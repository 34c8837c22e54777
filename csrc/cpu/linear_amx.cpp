// Linear layers with AVX-512 and AMX (Sapphire Rapids and later): products for many tokens by the tile unit.
#define EXL2_ISA linear_amx
#include "lanes_avx512.h"

namespace exl2 {
namespace EXL2_ISA {

struct Lanes : IntelLanes {
  static constexpr int kTokens = 16;  // rows of a tile; on the exact path, as many sums of floats
  static constexpr int kStageTiles = 1;
  static constexpr bool kTiles = true;
};

}  // namespace EXL2_ISA
}  // namespace exl2

#include "linear_product.h"

namespace exl2 {
const LinearKernels* linear_kernels_amx() { return &EXL2_ISA::kKernels; }
}  // namespace exl2
