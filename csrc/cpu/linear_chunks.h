// What the products for many tokens share: chunks of two tiles are unpacked into L1 once and run over all tokens,
// kTokens x kStageTiles at a time.
#pragma once

#include "linear_codes.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kStageTiles = Lanes::kStageTiles;
constexpr int kSuperTiles = 2;  // tiles unpacked together

// Where the sums of some tokens and columns go, and what they are added to: the bias first, then what is there.
struct Sums {
  float* out;
  int64_t ldo;
  const float* from;
  int64_t ld_from;

  static Sums first(float* out, int64_t ldo, const float* bias) { return {out, ldo, bias, 0}; }
  Sums more() const { return {out, ldo, out, ldo}; }
  Sums at(int64_t token, int64_t column) const {
    return {out + token * ldo + column, ldo, from + token * ld_from + column, ld_from};
  }
  F load(int64_t token, int64_t column, int n) const { return Lanes::load_partial(from + token * ld_from + column, n); }
  void store(int64_t token, int64_t column, F sum, int n) const {
    Lanes::store_partial(out + token * ldo + column, sum, n);
  }
};

// Where the columns of `count` tiles end: 16 * count, less in the last tile of the matrix.
static inline int last_columns(const Header& h, int64_t tile, int64_t count) {
  return int(min64(kColumns, h.out_features - (tile + count - 1) * kColumns));
}

// f(Index<count>{}, first): tiles of a chunk, as many at a time as the register block holds, then one by one.
template <typename Body>
static EXL2_INLINE void for_stages(int64_t tiles, Body&& f) {
  int64_t i = 0;
  for (; i + kStageTiles <= tiles; i += kStageTiles) f(Index<kStageTiles>{}, i);
  for (; i < tiles; i++) f(Index<1>{}, i);
}

// f(Index<mb>{}, activations, first token): all tokens, a block at a time.
template <typename Body>
static EXL2_INLINE void for_token_blocks(const uint8_t* blob, const uint8_t* scratch, int64_t M, Body&& f) {
  for (int64_t token = 0; token < M; token += kTokens) {
    const Activations a = activations_of(blob, scratch, token, M);
    for_tokens(a.mb, [&](auto m) { f(m, a, token); });
  }
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
  alignas(kLine) I starts[kSuperTiles][kChunkBlocks];  // where sums are multiplied (linear_sums.h), of the first term
};

// Of each slab and tile.
constexpr int lines_in_chunk(Form form) {
  return form == kTwoBytes ? kWordLines : kSlabQuads + (form == kPairs ? kSlabQuads / 2 : 0);
}

// The exact sum of a block joins the float one.
static EXL2_INLINE void add_block(F& total, I sum, F scale, float x_scale) {
  total = Lanes::fma(Lanes::to_float(sum), Lanes::mul(scale, Lanes::set1(x_scale)), total);
}

// columns: of the last tile.
template <int TILES, int MB>
static EXL2_INLINE void add_totals(const F (&total)[TILES][MB], const Sums& sums, int columns) {
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) {
      sums.store(m, i * kColumns, Lanes::add(sums.load(m, i * kColumns, n), total[i][m]), n);
    }
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
