// The product for many tokens where activations have two bytes: codes less their zero point and activations as int16,
// exact int32 sums per block. What products of bytes would take two of each for, and at 6 and 8 bits on AVX2 many more.
#pragma once

#include "linear_chunks.h"

namespace exl2 {
namespace EXL2_ISA {

// Sums of a block: below 128 rows * 2^15 * 2^8 = 2^30.
template <int TILES, int MB>
static void multiply_words(const CodeChunk& chunk, int tile, int slabs, int blocks, const int32_t* x,
                           const BlockMeta* meta, const Sums& sums, int columns) {
  F total[TILES][MB];
  for (int i = 0; i < TILES; i++) {
    for (int m = 0; m < MB; m++) total[i][m] = Lanes::zero();
  }
  const uint8_t* codes = chunk.codes[tile];
  for (int b = 0; b < blocks; b++, meta += MB) {
    I acc[TILES][MB];
    for (int i = 0; i < TILES; i++) {
      for (int m = 0; m < MB; m++) acc[i][m] = Lanes::zero_i();
    }
    for (int slab = 0; slab < slabs; slab++, codes += kWordLines * kLine, x += kWordLines * MB) {
      for_each_quad<kWordLines>([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        I words[TILES];
        for (int i = 0; i < TILES; i++) words[i] = Lanes::load_line(codes + (i * kChunkLines + J) * kLine);
        for (int m = 0; m < MB; m++) {
          for (int i = 0; i < TILES; i++) acc[i][m] = Lanes::dot2(acc[i][m], words[i], x[J * MB + m]);
        }
      });
    }
    for (int m = 0; m < MB; m++) {
      for (int i = 0; i < TILES; i++) add_block(total[i][m], acc[i][m], chunk.scales[tile + i][b], meta[m].scale);
    }
  }
  add_totals(total, sums, columns);
}

template <int BITS, typename Params>
static void unpack_words(const Section& s, const Params& params, const uint8_t* tile, int first, int blocks,
                         uint8_t* codes, F* scales, I*) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * s.slabs * BITS * kLine;
  for (int b = 0; b < blocks; b++) {
    const int g = s.first_group + (first + b) / s.blocks_per_group;
    scales[b] = params.scale(g);
    const I zero = params.zero(g, BITS);
    for (int slab = 0; slab < s.slabs; slab++, in += BITS * kLine, codes += kWordLines * kLine) {
      I lines[BITS];
      ask_for(in + kChunkAhead, BITS);
      load_slab<BITS>(lines, in);
      for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        I words[2];
        Lanes::words_of_quad(words, unpack<BITS, J>(lines), zero);
        for (int half = 0; half < 2; half++) Lanes::store_line(codes + (2 * J + half) * kLine, words[half]);
      });
    }
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
