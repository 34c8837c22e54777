// What the products for many tokens share: chunks of two tiles are unpacked into L1 once and run over all tokens,
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

// --- the integer path ---

// Of each of 2 tiles, together 48 KiB: 1536 rows; of pairs 1024, of words 768. Many rows are worth more than tiles:
// each chunk adds its sums to memory once. Measured (Zen 5, 5 bits, pairs): with 32 KiB 3 % slower, with 4 tiles and 32
// KiB 6 %.
constexpr int kChunkLines = 384;
constexpr int kChunkBlocks = kChunkLines / kSlabQuads;
constexpr int kWordLines = 2 * kSlabQuads;  // of a slab

// Codes lie by blocks: the quads of its slabs, and behind them, of pairs, what is multiplied with the shared numbers.
// Where activations have two bytes, each quad is two lines of int16 with the zero point taken off
// (linear_prompt_words.h).
struct CodeChunk {
  alignas(kLine) uint8_t codes[kSuperTiles][kChunkLines * kLine];
  alignas(kLine) F scales[kSuperTiles][kChunkBlocks];
  alignas(kLine) I zeros[kSuperTiles][kChunkBlocks];
};

// Of each slab and tile.
constexpr int lines_in_chunk(Form form) {
  return form == kTwoBytes ? kWordLines : kSlabQuads + (form == kPairs ? kSlabQuads / 2 : 0);
}

// The exact sum of a block joins the float one.
static EXL2_INLINE void add_block(F& total, I sum, F scale, float x_scale) {
  total = Lanes::fma(Lanes::to_float(sum), Lanes::mul(scale, Lanes::set1(x_scale)), total);
}

// out += total; columns: of the last tile.
template <int TILES, int MB>
static EXL2_INLINE void add_totals(const F (&total)[TILES][MB], float* out, int64_t ldo, int columns) {
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) {
      float* o = out + m * ldo + i * kColumns;
      Lanes::store_partial(o, Lanes::add(Lanes::load_partial(o, n), total[i][m]), n);
    }
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
