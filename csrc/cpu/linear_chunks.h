// What both products for many tokens share: chunks of two tiles are unpacked into L1 once and run over all tokens,
// kTokens x kStageTiles at a time.
#pragma once

#include "linear_codes.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kStageTiles = Lanes::kStageTiles;
constexpr int kSuperTiles = 2;  // tiles unpacked together

// f(Index<mb>{}) for mb = 1..kTokens: the number of tokens as a constant.
template <int MB = kTokens, typename Body>
static EXL2_INLINE void for_tokens(int64_t mb, Body&& f) {
  if (mb == MB) return f(Index<MB>{});
  if constexpr (MB > 1) for_tokens<MB - 1>(mb, f);
}

// Where the columns of `count` tiles end: 16 * count, less in the last tile of the matrix.
static inline int last_columns(const Header& h, int64_t tile, int64_t count) {
  return int(min64(kColumns, h.out_features - (tile + count - 1) * kColumns));
}

}  // namespace EXL2_ISA
}  // namespace exl2
