// The product of dense weights for many tokens. On the fast path fp16 and bf16 weights become int16, with a scale for
// each column and block of rows, and meet activations of as many bits (linear_sums.h): a multiplication does two rows,
// where one in fp32 does one. Both are rounded by less than activations are when they become fp16 numbers.
#pragma once

#include "linear_prompt_float.h"
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
    multiply_chunk(h, chunk, scratch, row, rows, M, sums, tile, tiles);
    sums = sums.more();
  }
}

// One block as words: weights (64, 16) -> codes, two lines a quad. Returns the scale of each column.
static EXL2_INLINE F round_block(const float* weights, uint8_t* codes, I& start) {
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
  WordSummands<Lanes> summands;
  for (int quad = 0; quad < kDenseBlockRows / 4; quad++, weights += 4 * kColumns, codes += 2 * kLine) {
    I row[4];
    for (int r = 0; r < 4; r++) row[r] = Lanes::round(Lanes::mul(Lanes::load(weights + r * kColumns), inverse));
    const I words[2] = {Lanes::pair_words(row[0], row[2]), Lanes::pair_words(row[1], row[3])};
    summands.take(words[0], words[1]);
    for (int half = 0; half < 2; half++) Lanes::store_line(codes + half * kLine, words[half]);
  }
  start = summands.start();
  return Lanes::fma(top, Lanes::set1(1.0f / kLargestDenseWeight), poison);
}

template <DenseType TYPE>
static void staged_words(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                         int64_t tiles) {
  constexpr int kBlockLines = kDenseSlabs * kWordLines, kStep = kChunkLines / kBlockLines;
  const Header& h = header_of(blob);
  CodeChunk chunk;
  alignas(kLine) float weights[kDenseBlockRows * kColumns];
  for (int64_t first = 0; first < h.n_blocks; first += kStep) {
    const int blocks = int(min64(kStep, h.n_blocks - first));
    for (int64_t i = 0; i < tiles; i++) {
      for (int b = 0; b < blocks; b++) {
        const int64_t row = (first + b) * kDenseBlockRows;
        const int rows = int(min64(kDenseBlockRows, h.K - row));
        dense_rows<TYPE>(h, tile_of(blob, tile + i), row, rows, weights);
        for (int r = rows; r < kDenseBlockRows; r++) Lanes::store(weights + r * kColumns, Lanes::zero());
        chunk.scales[i][b] = round_block(weights, chunk.codes[i] + b * kBlockLines * kLine, chunk.starts[i][b]);
      }
    }
    for_token_blocks(h, scratch, M, [&](auto m, const Activations& a, int64_t token) {
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

// `tiles` (<= kSuperTiles) tiles from `tile` on, all tokens; sums: from the first column of these on.
static void staged_dense(const uint8_t* blob, const uint8_t* scratch, int64_t M, const Sums& sums, int64_t tile,
                         int64_t tiles) {
  const Header& h = header_of(blob);
  const bool exact = h.exact;
  const auto run = h.dense_type == int32_t(DenseType::kF32) ? staged_floats<DenseType::kF32>
                   : h.dense_type == int32_t(DenseType::kF16)
                       ? exact ? staged_floats<DenseType::kF16> : staged_words<DenseType::kF16>
                   : exact ? staged_floats<DenseType::kBF16>
                           : staged_words<DenseType::kBF16>;
  run(blob, scratch, M, sums, tile, tiles);
}

}  // namespace EXL2_ISA
}  // namespace exl2
