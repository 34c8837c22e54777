// The product for many tokens where activations have two bytes: codes less their zero point, or dense weights that were
// rounded (linear_prompt_dense.h), and activations as int16, exact int32 sums per block. What products of bytes would
// take two of each for, and at 6 and 8 bits on AVX2 many more.
#pragma once

#include "linear_chunks.h"

namespace exl2 {
namespace EXL2_ISA {

// Whether a token of the register block has products of sums, the others plain ones: two in three multiplications and
// the additions of these keep all units of a processor busy that does four of both a cycle, at most two of the former.
// (Zen 5, out of L1: with all tokens 6 % slower, with half of them 3 %.)
template <typename L>
constexpr bool has_sums(int token) {
  return L::kSums && token < (2 * kTokens + 2) / 3;
}

// One quad: rows 0 and 2, then rows 1 and 3. next: bytes from one tile's codes to the next one's.
template <typename L, int TILES, int MB>
static EXL2_INLINE void add_words(typename L::I (&acc)[TILES][MB], const uint8_t* codes, int next, const int32_t* xa,
                                  const int32_t* xb) {
  I a[TILES], b[TILES];
  for (int i = 0; i < TILES; i++) {
    a[i] = L::load_line(codes + i * next);
    b[i] = L::load_line(codes + i * next + kLine);
  }
  for_each_token<MB>([&](auto index) EXL2_INLINE_LAMBDA {
    constexpr int M = decltype(index)::value;
    for (int i = 0; i < TILES; i++) {
      if constexpr (has_sums<L>(M)) {
        acc[i][M] = L::dot2_sums(acc[i][M], a[i], b[i], xa[M], xb[M]);
      } else {
        acc[i][M] = L::dot2(L::dot2(acc[i][M], a[i], xa[M]), b[i], xb[M]);
      }
    }
  });
}

// Sums of a block: below 128 rows * 2^15 * 2^8 = 2^30; of dense weights, below 2^31 (linear_sums.h).
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
      for (int m = 0; m < MB; m++) {
        acc[i][m] = has_sums<Lanes>(m) ? Lanes::add_i(chunk.starts[tile + i][b], Lanes::set1_i(meta[m].start[0]))
                                       : Lanes::zero_i();
      }
    }
    for (int slab = 0; slab < slabs; slab++, codes += kWordLines * kLine, x += kWordLines * MB) {
      for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int A = 2 * decltype(j)::value, B = A + 1;
        add_words<Lanes, TILES, MB>(acc, codes + A * kLine, kChunkLines * kLine, x + A * MB, x + B * MB);
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
                         uint8_t* codes, F* scales, I*, I* starts) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * s.slabs * BITS * kLine;
  for (int b = 0; b < blocks; b++) {
    const int g = s.first_group + (first + b) / s.blocks_per_group;
    scales[b] = params.scale(g);
    const I zero = params.zero(g, BITS);
    WordSummands<Lanes> summands;
    for (int slab = 0; slab < s.slabs; slab++, in += BITS * kLine, codes += kWordLines * kLine) {
      I lines[BITS];
      ask_for(in + kChunkAhead, BITS);
      load_slab<BITS>(lines, in);
      for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        I words[2];
        Lanes::words_of_quad(words, unpack<BITS, J>(lines), zero);
        summands.take(words[0], words[1]);
        for (int half = 0; half < 2; half++) Lanes::store_line(codes + (2 * J + half) * kLine, words[half]);
      });
    }
    starts[b] = summands.start();
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
