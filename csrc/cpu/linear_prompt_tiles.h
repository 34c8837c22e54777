// The product for many tokens by the tile unit (tile_unit.h): activations as linear_tiles.h has them, codes unpacked to
// tiles of signed bytes, exact int32 sums per block of rows. Of each block, by tiles of activations and of codes:
//
//   one byte      x q
//   pairs         (x q) N + s (qa + M qb)                          linear_pairs.h
//   two bytes     (high q) 2^8 + low q
//   dense         (high high) 2^16 + (high low + low high) 2^8 + low low, of words split into bytes
//
// Two tiles of tokens meet two of columns, so that each load serves two products. Their sums leave the unit through
// memory, and while it multiplies a block, vectors add the sums of the one before to floats. Whatever lacks to 32
// tokens or 32 columns is multiplied, too, and forgotten.
//
// Bytes moved: every line of codes once for each kTileTokensAtOnce tokens; a chunk of 48 KiB is written to and read
// from the caches, once for each 32 tokens; floats are read and written once for each chunk, out of a buffer that L2
// holds.
#pragma once

#include "linear_chunks.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kTilePair = 2;  // of tokens, of columns
static_assert(kSuperTiles == kTilePair);
constexpr int kTileTokensAtOnce = 512;
constexpr int kChunkTiles = kChunkLines / kTileQuads;
constexpr int kSumsOfTile = kTileTokens * kColumns;

struct TileChunk {
  alignas(kLine) uint8_t codes[kTilePair][kChunkTiles * kTileBytes];
  alignas(kLine) F scales[kTilePair][kChunkTiles];
  alignas(kLine) I corrections[kTilePair][kChunkTiles];  // of GPTQ (tile_correction)
  alignas(kLine) float totals[kTileTokensAtOnce / kTileTokens][kTilePair][kSumsOfTile];
};

enum TileProduct { kProductOfBytes, kProductOfPairs, kProductOfTwoBytes, kProductOfWords };

// What vectors do to a block's sums.
template <TileProduct PRODUCT, int SHIFT, bool CORRECTED, bool BY_COLUMN>
struct TileWork {
  static constexpr TileProduct kProduct = PRODUCT;
  static constexpr int kShift = SHIFT;  // of each sum against the next
  static constexpr bool kCorrected = CORRECTED;
  static constexpr bool kByColumn = BY_COLUMN;
  static constexpr int kSums = PRODUCT == kProductOfBytes ? 1 : PRODUCT == kProductOfWords ? 3 : 2;

  // Of a block whose first term has `count` tiles of rows. What pairs share has half as many rows.
  static constexpr int tiles_of_x(int count) {
    return PRODUCT == kProductOfPairs ? count + 1 : PRODUCT == kProductOfBytes ? count : 2 * count;
  }
  static constexpr int tiles_of_codes(int count) {
    return PRODUCT == kProductOfPairs ? count + 1 : PRODUCT == kProductOfWords ? 2 * count : count;
  }
};

// The sums of a block: of each kind, of each tile of tokens, of each tile of columns.
template <typename Work>
using TileSums = int32_t[Work::kSums][kTilePair][kTilePair][kSumsOfTile];

// sums = x * codes, of one or two tiles of rows, as many as a term has. x: of both tiles of tokens; codes: of the first
// tile of columns, and how far behind the first tile of rows the second is. Sums are stored as soon as they are done,
// while others are made: 73 ns for eight products, 92 with all stores at the end (Emerald Rapids, 2.6 GHz).
template <int COUNT>
static EXL2_INLINE void sum_tiles(const uint8_t* const* x, int64_t x_at, const uint8_t* codes, int codes_step,
                                  int32_t (&sums)[kTilePair][kTilePair][kSumsOfTile]) {
  using Unit = TileUnit;
  constexpr bool TWO = COUNT == 2;
  const uint8_t* right = codes + kChunkTiles * kTileBytes;
  Unit::zero<0>(), Unit::zero<1>(), Unit::zero<2>(), Unit::zero<3>();
  Unit::load<4>(x[0] + x_at);
  Unit::load<6>(codes);
  Unit::multiply<0, 4, 6>();
  if constexpr (TWO) {
    Unit::load<5>(x[0] + x_at + kTileBytes);
    Unit::load<7>(codes + codes_step);
    Unit::multiply<0, 5, 7>();
    Unit::load<6>(right);
    Unit::multiply<1, 4, 6>();
    Unit::load<7>(right + codes_step);
    Unit::multiply<1, 5, 7>();
    Unit::store<0>(sums[0][0]);
    Unit::load<4>(x[1] + x_at);
    Unit::multiply<3, 4, 6>();
    Unit::load<5>(x[1] + x_at + kTileBytes);
    Unit::multiply<3, 5, 7>();
    Unit::store<1>(sums[0][1]);
    Unit::load<6>(codes);
    Unit::multiply<2, 4, 6>();
    Unit::load<7>(codes + codes_step);
    Unit::multiply<2, 5, 7>();
  } else {
    Unit::load<7>(right);
    Unit::multiply<1, 4, 7>();
    Unit::store<0>(sums[0][0]);
    Unit::load<5>(x[1] + x_at);
    Unit::multiply<3, 5, 7>();
    Unit::store<1>(sums[0][1]);
    Unit::multiply<2, 5, 6>();
  }
  Unit::store<3>(sums[1][1]);
  Unit::store<2>(sums[1][0]);
}

// COUNT: tiles of rows of the first term.
template <typename Work, int COUNT>
static EXL2_INLINE void multiply_block(const uint8_t* const* x, int64_t x_at, const uint8_t* codes,
                                       TileSums<Work>& sums) {
  sum_tiles<COUNT>(x, x_at, codes, kTileBytes, sums[0]);
  const int64_t second = x_at + COUNT * kTileBytes;
  if constexpr (Work::kProduct == kProductOfPairs) {
    sum_tiles<1>(x, second, codes + COUNT * kTileBytes, 0, sums[1]);
  } else if constexpr (Work::kProduct == kProductOfTwoBytes) {
    sum_tiles<COUNT>(x, second, codes, kTileBytes, sums[1]);
  } else if constexpr (Work::kProduct == kProductOfWords) {
    sum_tiles<2>(x, x_at, codes + kTileBytes, -kTileBytes, sums[1]);
    sum_tiles<1>(x, second, codes + kTileBytes, 0, sums[2]);
  }
}

// Adds a block's sums to the floats of a tile of tokens. (L: Lanes; so that those without tiles need not have all of
// this.)
template <typename Work, typename L = Lanes>
static EXL2_INLINE void add_sums_of(const TileSums<Work>& sums, int tokens, const TileChunk& chunk, int block,
                                    const TileMeta& meta, float (&totals)[kTilePair][kSumsOfTile]) {
  F scales[kTilePair];
  I corrections[kTilePair];
  for (int i = 0; i < kTilePair; i++) {
    scales[i] = chunk.scales[i][block];
    if (Work::kByColumn) corrections[i] = chunk.corrections[i][block];
  }
#pragma GCC unroll 4
  for (int m = 0; m < kTileTokens; m++) {
    const F x_scale = Lanes::set1(meta.scale[m]);
    for (int i = 0; i < kTilePair; i++) {
      const auto sum_of = [&](int kind) EXL2_INLINE_LAMBDA {
        return Lanes::load_line(reinterpret_cast<const uint8_t*>(sums[kind][tokens][i] + m * kColumns));
      };
      I sum = sum_of(0);
      for (int k = 1; k < Work::kSums; k++) sum = Lanes::add_i(Lanes::shift_left(sum, Work::kShift), sum_of(k));
      if (Work::kCorrected) {
        const I missing = Lanes::set1_i(meta.sum[m]);
        sum = Lanes::add_i(sum, Work::kByColumn ? L::multiply(corrections[i], missing) : missing);
      }
      float* total = totals[i] + m * kColumns;
      Lanes::store(total, Lanes::fma(Lanes::to_float(sum), Lanes::mul(scales[i], x_scale), Lanes::load(total)));
    }
  }
}

// Some tokens' tiles of a linear, and where some blocks of rows lie in each.
struct TiledTokens {
  const uint8_t* base;  // of the first tile of tokens
  int64_t step;         // from one to the next
  int64_t x_at, meta_at;
  int count;  // tiles of tokens

  const uint8_t* tile(int t) const { return base + t * step; }
  const TileMeta* meta(int t) const { return reinterpret_cast<const TileMeta*>(tile(t) + meta_at); }
};

// All of these tokens times the blocks of a chunk.
template <typename Work, int COUNT>
static void multiply_tile_chunk(TileChunk& chunk, int blocks, const TiledTokens& tokens) {
  alignas(kLine) TileSums<Work> sums[2];
  constexpr int64_t x_step = Work::tiles_of_x(COUNT) * kTileBytes,
                    codes_step = Work::tiles_of_codes(COUNT) * kTileBytes;
  for (int t = 0; t < tokens.count; t += kTilePair) {
    const int present = tokens.count - t < kTilePair ? 1 : kTilePair;
    const uint8_t* x[kTilePair] = {tokens.tile(t), tokens.tile(t + present - 1)};
    const auto multiply = [&](int b) EXL2_INLINE_LAMBDA {
      multiply_block<Work, COUNT>(x, tokens.x_at + b * x_step, chunk.codes[0] + b * codes_step, sums[b % 2]);
    };
    multiply(0);
    for (int b = 0; b < blocks; b++) {
      if (b + 1 < blocks) multiply(b + 1);
      for (int i = 0; i < present; i++) {
        add_sums_of<Work>(sums[b % 2], i, chunk, b, tokens.meta(t + i)[b], chunk.totals[t + i]);
      }
    }
  }
}

// Some blocks of one tile of columns.
template <int BITS, Form FORM, typename Params, typename L = Lanes>
static void unpack_tiles(const Section& s, const Params& params, const uint8_t* tile, int first, int blocks,
                         uint8_t* codes, F* scales, I* corrections) {
  constexpr bool PAIRS = FORM == kPairs;
  const I half = Lanes::set1_i(int32_t(0x80808080u));
  const int own = tiles_of_term(s, 0) * kTileBytes, all = own + (PAIRS ? tiles_of_term(s, 1) * kTileBytes : 0);
  const uint8_t* in = tile + s.code_offset + int64_t(first) * s.slabs * BITS * kLine;
  for (int b = 0; b < blocks; b++, codes += all) {
    const int g = s.first_group + (first + b) / s.blocks_per_group;
    const I zero = params.zero(g, BITS);
    const I zeros = PAIRS ? Lanes::multiply16(zero, codes_in_term(BITS, FORM, 1)) : zero;
    scales[b] = params.scale(g);
    corrections[b] = Lanes::sub_i(Lanes::set1_i(128), zeros);  // tile_correction of each column
    const I twice = Lanes::add_i(zero, Lanes::shift_left(zero, 8));
    const I off = BITS == 8 ? half : Lanes::add_i(twice, Lanes::shift_left(twice, 16));
    uint8_t *out = codes, *both = codes + own;
    for (int slab = 0; slab < s.slabs; slab++, in += BITS * kLine, out += kSlabQuads * kLine) {
      I lines[BITS];
      ask_for(in + kChunkAhead, BITS);
      load_slab<BITS>(lines, in);
      for_each_quad<kSlabQuads / 2>([&](auto pair) EXL2_INLINE_LAMBDA {
        constexpr int A = 2 * decltype(pair)::value, B = A + 1;
        const I a = unpack<BITS, A>(lines), b = unpack<BITS, B>(lines);
        if constexpr (PAIRS) {
          Lanes::store_line(both, L::sub_bytes(pair_codes<BITS, A>(lines, a, b), half));
          both += kLine;
        }
        Lanes::store_line(out + A * kLine, L::sub_bytes(a, off));
        Lanes::store_line(out + B * kLine, L::sub_bytes(b, off));
      });
    }
  }
}

// All blocks of a section, a chunk at a time: unpack(tile of columns, first block, blocks).
template <typename Work, typename Unpack>
static EXL2_INLINE void multiply_section(const uint8_t* blob, TileChunk& chunk, const Section& s, TiledTokens tokens,
                                         int64_t tiles, Unpack&& unpack) {
  const int count = tiles_of_term(s, 0);
  const int total = s.blocks_per_group * s.groups, step = kChunkTiles / Work::tiles_of_codes(count);
  const int64_t x_at = tiles_before(blob, &s), meta_at = all_tiles(blob);
  for (int first = 0; first < total; first += step) {
    const int blocks = int(min64(step, total - first));
    for (int64_t i = 0; i < tiles; i++) unpack(i, first, blocks);
    tokens.x_at = x_at + int64_t(first) * tiles_of_block(s) * kTileBytes;
    tokens.meta_at = meta_at + (s.first_block + first) * int64_t(sizeof(TileMeta));
    (count == 2 ? multiply_tile_chunk<Work, 2> : multiply_tile_chunk<Work, 1>)(chunk, blocks, tokens);
  }
}

template <int BITS, int, typename Params>
struct TileSection {
  static void run(const uint8_t* blob, TileChunk& chunk, const Section& s, const TiledTokens& tokens, int64_t tile,
                  int64_t tiles) {
    for_form<BITS>(s, [&](auto form) {
      constexpr Form FORM = Form(decltype(form)::value);
      constexpr bool BY_COLUMN = Params::kZeroByColumn;
      constexpr bool CORRECTED =
          BY_COLUMN ? FORM == kPairs || BITS == 8 : tile_correction(BITS, FORM, 1 << (BITS - 1)) != 0;
      constexpr TileProduct PRODUCT = FORM == kPairs      ? kProductOfPairs
                                      : FORM == kTwoBytes ? kProductOfTwoBytes
                                                          : kProductOfBytes;
      using Work = TileWork<PRODUCT, term_shift(BITS, FORM), CORRECTED, CORRECTED && BY_COLUMN>;
      multiply_section<Work>(blob, chunk, s, tokens, tiles, [&](int64_t i, int first, int blocks) {
        const uint8_t* data = tile_of(blob, tile + i);
        unpack_tiles<BITS, FORM>(s, Params(blob, data), data, first, blocks, chunk.codes[i], chunk.scales[i],
                                 chunk.corrections[i]);
      });
    });
  }
};

// body(chunk, tokens): adds to the chunk's totals what some tokens give; sums: where the totals go.
template <typename Body>
static void staged_by_tiles(const uint8_t* blob, const uint8_t* scratch, int64_t M, const Sums& sums, int64_t tile,
                            int64_t tiles, Body&& body) {
  const TileUnit unit;
  TileChunk chunk;
  const int columns = last_columns(header_of(blob), tile, tiles);
  for (int64_t token = 0; token < M; token += kTileTokensAtOnce) {
    const int64_t count = min64(kTileTokensAtOnce, M - token);
    const auto each_row = [&](auto row) EXL2_INLINE_LAMBDA {
      for (int64_t m = 0; m < count; m++) {
        for (int i = 0; i < tiles; i++) {
          row(chunk.totals[m / kTileTokens][i] + m % kTileTokens * kColumns, token + m, i * kColumns,
              i == tiles - 1 ? columns : kColumns);
        }
      }
    };
    each_row([&](float* total, int64_t m, int64_t column, int n)
                 EXL2_INLINE_LAMBDA { Lanes::store(total, sums.load(m, column, n)); });
    const TiledTokens tokens = {scratch + token_block_at(blob, token, M), token_block_bytes(blob, kTokens, M), 0, 0,
                                int((count + kTileTokens - 1) / kTileTokens)};
    body(chunk, tokens);
    each_row([&](const float* total, int64_t m, int64_t column, int n)
                 EXL2_INLINE_LAMBDA { sums.store(m, column, Lanes::load(total), n); });
  }
}

// `tiles` (<= kSuperTiles) tiles from `tile` on, all tokens; sums: from the first column of these on.
template <typename Params>
static void staged_tiles(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                         int64_t tiles) {
  staged_by_tiles(blob, scratch, M, sums, tile, tiles, [&](TileChunk& chunk, const TiledTokens& tokens) {
    const Section* end = sections_of(blob) + header_of(blob).n_sections;
    for (const Section* s = sections_of(blob); s < end; s++) {
      for_width<TileSection, 0, Params>(s->bits, blob, chunk, *s, tokens, tile, tiles);
    }
  });
}

}  // namespace EXL2_ISA
}  // namespace exl2
