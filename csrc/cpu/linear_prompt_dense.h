// The product of dense weights for many tokens. On the fast path fp16 and bf16 weights become int16, with a scale for
// each column and block of rows, and meet activations of as many bits (linear_sums.h): a multiplication does two rows,
// where one in fp32 does one. Both are rounded by less than activations are when they become fp16 numbers.
#pragma once

#include "linear_prompt_float.h"
#include "linear_prompt_tiles.h"
#include "linear_prompt_words.h"

namespace exl2 {
namespace EXL2_ISA {

// Some rows of a tile as floats; of narrow halves whole strips.
template <DenseType TYPE>
static void dense_rows(const Header& h, const uint8_t* tile, int64_t row, int rows, float* out) {
  if constexpr (TYPE != DenseType::kF32) {
    if (h.narrow) {
      constexpr int kStripBytes = Narrow<TYPE>::kLines * kLine;
      for (const int64_t end = row + rows; row < end; row += kStripRows, out += kStripRows * kColumns) {
        const uint8_t* strip = tile + h.params_bytes + row / kStripRows * kStripBytes;
        const F scale = Lanes::set1(narrow_scale(tile, row / kNarrowBlockRows));
        ask_for(strip + kChunkAhead, Narrow<TYPE>::kLines);
        for_each_pair<TYPE>(strip, [&](auto index, F even, F odd) EXL2_INLINE_LAMBDA {
          float* pair = out + 2 * decltype(index)::value * kColumns;
          Lanes::store(pair, Lanes::mul(even, scale));
          Lanes::store(pair + kColumns, Lanes::mul(odd, scale));
        });
      }
      return;
    }
  }
  for (int r = 0; r < rows; r++) {
    __builtin_prefetch(tile + (row + r) * dense_row_bytes(TYPE) + kChunkAhead, 0, 3);
    Lanes::store(out + r * kColumns, load_dense<TYPE>(tile, row + r));
  }
}

template <DenseType TYPE>
static void staged_floats(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                          int64_t tiles) {
  const Header& h = header_of(blob);
  FloatChunk chunk;
  for (int64_t row = 0; row < h.K; row += kFloatChunkRows) {
    const int rows = int(min64(kFloatChunkRows, h.K - row));
    for (int64_t i = 0; i < tiles; i++) dense_rows<TYPE>(h, tile_of(blob, tile + i), row, rows, chunk.weights[i]);
    multiply_chunk(blob, chunk, scratch, row, rows, M, sums, tile, tiles);
    sums = sums.more();
  }
}

// One block as words: weights (64, 16), put(i, rows 4i ... 4i + 3 of it). Returns the scale of each column.
template <typename Put>
static EXL2_INLINE F round_block(const float* weights, Put&& put) {
  constexpr int kChains = 4;  // as in quantize_block; a single chain would wait for itself
  F tops[kChains], poisons[kChains];
  for (int c = 0; c < kChains; c++) tops[c] = Lanes::set1(1e-30f), poisons[c] = Lanes::zero();
  for (int r = 0; r < kDenseBlockRows; r += kChains) {
    for (int c = 0; c < kChains; c++) {
      const F row = Lanes::load(weights + (r + c) * kColumns);
      tops[c] = Lanes::max_abs(tops[c], row);
      poisons[c] = Lanes::fma(row, Lanes::zero(), poisons[c]);
    }
  }
  const F top = Lanes::max_abs(Lanes::max_abs(tops[0], tops[1]), Lanes::max_abs(tops[2], tops[3]));
  const F poison = Lanes::add(Lanes::add(poisons[0], poisons[1]), Lanes::add(poisons[2], poisons[3]));
  const F inverse = Lanes::div(Lanes::set1(float(kLargestDenseWeight)), top);
  for (int quad = 0; quad < kDenseBlockRows / 4; quad++, weights += 4 * kColumns) {
    I rows[4];
    for (int r = 0; r < 4; r++) rows[r] = Lanes::round(Lanes::mul(Lanes::load(weights + r * kColumns), inverse));
    put(quad, rows);
  }
  return Lanes::fma(top, Lanes::set1(1.0f / kLargestDenseWeight), poison);
}

// Block `block` of a tile as round_block has it, the last one filled up with zeros.
template <DenseType TYPE, typename Put>
static F dense_block(const Header& h, const uint8_t* tile, int64_t block, Put&& put) {
  alignas(kLine) float weights[kDenseBlockRows * kColumns];
  const int64_t row = block * kDenseBlockRows;
  const int rows = int(min64(kDenseBlockRows, h.K - row));
  dense_rows<TYPE>(h, tile, row, rows, weights);
  for (int r = rows; r < kDenseBlockRows; r++) Lanes::store(weights + r * kColumns, Lanes::zero());
  return round_block(weights, put);
}

// For vectors: two lines a quad.
template <DenseType TYPE>
static EXL2_INLINE F block_of_words(const Header& h, const uint8_t* tile, int64_t block, uint8_t* codes, I& start) {
  WordSummands<Lanes> summands;
  const F scale = dense_block<TYPE>(h, tile, block, [&](int quad, const I* rows) EXL2_INLINE_LAMBDA {
    const I words[2] = {Lanes::pair_words(rows[0], rows[2]), Lanes::pair_words(rows[1], rows[3])};
    summands.take(words[0], words[1]);
    for (int half = 0; half < 2; half++) Lanes::store_line(codes + (2 * quad + half) * kLine, words[half]);
  });
  start = summands.start();
  return scale;
}

// For the tile unit: a tile of high bytes, then one of low ones, both signed.
template <DenseType TYPE, typename L = Lanes>
static EXL2_INLINE F block_of_tiles(const Header& h, const uint8_t* tile, int64_t block, uint8_t* codes) {
  return dense_block<TYPE>(h, tile, block, [&](int quad, const I* rows) EXL2_INLINE_LAMBDA {
    I high[4], low[4];
    for (int r = 0; r < 4; r++) {
      high[r] = Lanes::high_byte(rows[r]);
      low[r] = Lanes::sub_i(rows[r], Lanes::shift_left(high[r], 8));
    }
    Lanes::store_line(codes + quad * kLine, L::pack_bytes(high));
    Lanes::store_line(codes + kTileBytes + quad * kLine, L::pack_bytes(low));
  });
}

template <DenseType TYPE>
static void staged_words(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                         int64_t tiles) {
  constexpr int kBlockLines = kDenseSlabs * kWordLines, kStep = kChunkLines / kBlockLines;
  const Header& h = header_of(blob);
  CodeChunk chunk;
  for (int64_t first = 0; first < h.n_blocks; first += kStep) {
    const int blocks = int(min64(kStep, h.n_blocks - first));
    for (int64_t i = 0; i < tiles; i++) {
      for (int b = 0; b < blocks; b++) {
        chunk.scales[i][b] = block_of_words<TYPE>(h, tile_of(blob, tile + i), first + b,
                                                  chunk.codes[i] + b * kBlockLines * kLine, chunk.starts[i][b]);
      }
    }
    for_token_blocks(blob, scratch, M, [&](auto m, const Activations& a, int64_t token) {
      const int32_t* x = a.quads(first * kDenseBlockRows * terms_of(kTwoBytes));
      for_stages(tiles, [&](auto count, int64_t i) {
        constexpr int MB = decltype(m)::value, TILES = decltype(count)::value;
        multiply_words<TILES, MB>(chunk, int(i), kDenseSlabs, blocks, x, a.meta(h, first), sums.at(token, i * kColumns),
                                  last_columns(h, tile + i, TILES));
      });
    });
    sums = sums.more();
  }
}

template <DenseType TYPE>
static void staged_dense_tiles(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                               int64_t tiles) {
  constexpr int kTilesOfCodes = 2;
  using Work = TileWork<kProductOfWords, 8, false, false>;
  const Header& h = header_of(blob);
  staged_by_tiles(blob, scratch, M, sums, tile, tiles, [&](TileChunk& chunk, const TiledTokens& tokens) {
    multiply_section<Work>(blob, chunk, *sections_of(blob), tokens, tiles, [&](int64_t i, int first, int blocks) {
      for (int b = 0; b < blocks; b++) {
        uint8_t* codes = chunk.codes[i] + b * kTilesOfCodes * kTileBytes;
        chunk.scales[i][b] = block_of_tiles<TYPE>(h, tile_of(blob, tile + i), first + b, codes);
      }
    });
  });
}

template <DenseType TYPE>
static void staged_halves(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                          int64_t tiles) {
  if (header_of(blob).exact) return staged_floats<TYPE>(blob, scratch, M, sums, tile, tiles);
  if constexpr (Lanes::kTiles) {
    staged_dense_tiles<TYPE>(blob, scratch, M, sums, tile, tiles);
  } else {
    staged_words<TYPE>(blob, scratch, M, sums, tile, tiles);
  }
}

// `tiles` (<= kSuperTiles) tiles from `tile` on, all tokens; sums: from the first column of these on.
static void staged_dense(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                         int64_t tiles) {
  const int32_t type = header_of(blob).dense_type;
  const auto run = type == int32_t(DenseType::kF32)   ? staged_floats<DenseType::kF32>
                   : type == int32_t(DenseType::kF16) ? staged_halves<DenseType::kF16>
                                                      : staged_halves<DenseType::kBF16>;
  run(blob, scratch, M, sums, tile, tiles);
}

}  // namespace EXL2_ISA
}  // namespace exl2
