// The product for many tokens, integer path: codes unpacked to bytes, int8 activations, exact int32 sums per block.
// Where additions are free, a term of bytes is one product of sums for every two of its own (linear_sums.h).
//
// Bytes moved: every line of codes once per call; a chunk of 48 KiB is written to and read from L1, once for each
// kTokens tokens.
#pragma once

#include "linear_prompt_words.h"

namespace exl2 {
namespace EXL2_ISA {

// The first term of a block by sums of codes and activations (linear_sums.h), added to acc. next: lines from one tile's
// to the next one's.
template <typename L, int TILES, int MB>
static EXL2_INLINE void add_sums(typename L::Acc (&acc)[TILES][MB], const uint8_t* codes, int next, const int32_t* x,
                                 int slabs) {
  do {
    for_each_quad<kSlabQuads / 2>([&](auto pair) EXL2_INLINE_LAMBDA {
      constexpr int A = 2 * decltype(pair)::value, B = A + 1;
      I a[TILES], b[TILES];
      for (int i = 0; i < TILES; i++) {
        a[i] = L::load_line(codes + (i * next + A) * kLine);
        b[i] = L::load_line(codes + (i * next + B) * kLine);
      }
      for (int m = 0; m < MB; m++) {
        for (int i = 0; i < TILES; i++) {
          acc[i][m] = L::dot_sums(acc[i][m], a[i], b[i], x[A * MB + m], x[B * MB + m]);
        }
      }
    });
    codes += kSlabQuads * kLine;
    x += kSlabQuads * MB;
  } while (--slabs > 0);
}

// The register block: TILES x MB integer accumulators, over some blocks of one chunk, from tile `tile` of it on.
// Sums over blocks stay in registers too: with them in memory, twice as many integer accumulators fit, and the kernel
// ran 30 % slower (Zen 5).
template <int BITS, Form FORM, int TILES, int MB, typename Params>
static void multiply_bytes(const CodeChunk& chunk, int tile, const Section& s, int blocks, const int32_t* x,
                           const BlockMeta* meta, const Sums& sums, int columns) {
  const int slabs = s.slabs, shared_codes = codes_in_term(s.bits, FORM, 1), shift = term_shift(s.bits, FORM);
  F total[TILES][MB];
  for (int i = 0; i < TILES; i++) {
    for (int m = 0; m < MB; m++) total[i][m] = Lanes::zero();
  }
  const uint8_t* block_codes = chunk.codes[tile];
  for (int b = 0; b < blocks; b++, meta += MB, block_codes += slabs * lines_in_chunk(FORM) * kLine) {
    Acc acc[TILES][MB];
    const auto add_term = [&](auto form, const uint8_t* codes, const int32_t* term_x) EXL2_INLINE_LAMBDA {
      constexpr Form TERM = Form(decltype(form)::value);
      constexpr int QUADS = TERM == kPairs ? kSlabQuads / 2 : kSlabQuads;
      constexpr int DEPTH = Lanes::kWidthMatters ? sum_depth(BITS, TERM) : 0;
      for (int i = 0; i < TILES; i++) {
        for (int m = 0; m < MB; m++) {
          const int codes_in_product = TERM == kPairs ? shared_codes : 1;
          const I start = Params::start(chunk.zeros[tile + i][b], codes_in_product, meta[m].start[TERM == kPairs]);
          if constexpr (TERM == kPairs) {
            acc[i][m] = Lanes::start(Lanes::add_i(start, Lanes::shift_left(Lanes::value(acc[i][m]), shift)));
          } else {
            acc[i][m] = Lanes::start(start);
          }
        }
      }
      int slab = 0;
      do {
        for_each_quad<QUADS>([&](auto j) EXL2_INLINE_LAMBDA {
          constexpr int J = decltype(j)::value;
          I code[TILES];
          for (int i = 0; i < TILES; i++) code[i] = Lanes::load_line(codes + (i * kChunkLines + J) * kLine);
          for (int m = 0; m < MB; m++) {
            for (int i = 0; i < TILES; i++) {
              Lanes::dot4<DEPTH, J, J == QUADS - 1>(acc[i][m], code[i], term_x[J * MB + m]);
            }
          }
        });
        codes += QUADS * kLine;
        term_x += QUADS * MB;
      } while (++slab < slabs);
    };
    if constexpr (Lanes::kSums) {
      for (int i = 0; i < TILES; i++) {
        for (int m = 0; m < MB; m++) {
          acc[i][m] = Lanes::add_i(chunk.starts[tile + i][b], Lanes::set1_i(meta[m].start[0]));
        }
      }
      add_sums<Lanes, TILES, MB>(acc, block_codes, kChunkLines, x, slabs);
    } else {
      add_term(Index<kOneByte>{}, block_codes, x);
    }
    x += slabs * kSlabQuads * MB;
    if constexpr (FORM == kPairs) {
      add_term(Index<kPairs>{}, block_codes + slabs * kSlabQuads * kLine, x);
      x += slabs * kSlabQuads * MB;
    }
    for (int m = 0; m < MB; m++) {
      for (int i = 0; i < TILES; i++) {
        add_block(total[i][m], Lanes::value(acc[i][m]), chunk.scales[tile + i][b], meta[m].scale);
      }
    }
  }
  add_totals(total, sums, columns);
}

template <int BITS, bool PAIRS, typename Params>
static void unpack_bytes(const Section& s, const Params& params, const uint8_t* tile, int first, int blocks,
                         uint8_t* codes, F* scales, I* zeros, I* starts) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * s.slabs * BITS * kLine;
  for (int b = 0; b < blocks; b++) {
    const int g = s.first_group + (first + b) / s.blocks_per_group;
    scales[b] = params.scale(g);
    zeros[b] = params.zero(g, BITS);
    Summands<Lanes> summands(zeros[b]);
    uint8_t* both = codes + s.slabs * kSlabQuads * kLine;
    for (int slab = 0; slab < s.slabs; slab++, in += BITS * kLine, codes += kSlabQuads * kLine) {
      I lines[BITS];
      ask_for(in + kChunkAhead, BITS);
      load_slab<BITS>(lines, in);
      for_each_quad<kSlabQuads / 2>([&](auto pair) EXL2_INLINE_LAMBDA {
        constexpr int A = 2 * decltype(pair)::value, B = A + 1;
        I a = unpack<BITS, A>(lines), b = unpack<BITS, B>(lines);
        if constexpr (PAIRS) {
          Lanes::store_line(both, pair_codes<BITS, A>(lines, a, b));
          both += kLine;
        }
        summands.take(a, b);
        Lanes::store_line(codes + A * kLine, a);
        Lanes::store_line(codes + B * kLine, b);
      });
    }
    starts[b] = summands.start();
    if constexpr (PAIRS) codes = both;
  }
}

template <int BITS, int MB, typename Params>
struct UnpackChunk {
  template <typename... Args>
  static void run(const Section& s, Args&&... args) {
    for_form<BITS>(s, [&](auto form) {
      constexpr Form FORM = Form(decltype(form)::value);
      if constexpr (FORM == kTwoBytes) {
        unpack_words<BITS, Params>(s, args...);
      } else {
        unpack_bytes<BITS, FORM == kPairs, Params>(s, args...);
      }
    });
  }
};

// Some blocks of a chunk times one block of tokens.
template <int BITS, Form FORM, int MB, typename Params>
static void multiply_chunk_of(const CodeChunk& chunk, const Header& h, const Section& s, int64_t block, int blocks,
                              const Activations& a, int64_t tile, int64_t tiles, const Sums& sums) {
  const int32_t* x = a.quads(s.x_offset + (block - s.first_block) * s.slabs * kSlabRows * terms_of(FORM));
  const BlockMeta* meta = a.meta(h, block);
  for_stages(tiles, [&](auto count, int64_t i) {
    constexpr int TILES = decltype(count)::value;
    const Sums mine = sums.at(0, i * kColumns);
    const int columns = last_columns(h, tile + i, TILES);
    if constexpr (FORM == kTwoBytes) {
      multiply_words<TILES, MB>(chunk, int(i), s.slabs, blocks, x, meta, mine, columns);
    } else {
      multiply_bytes<BITS, FORM, TILES, MB, Params>(chunk, int(i), s, blocks, x, meta, mine, columns);
    }
  });
}

template <int BITS, int MB, typename Params>
struct MultiplyChunk {
  template <typename... Args>
  static void run(const CodeChunk& chunk, const Header& h, const Section& s, Args&&... args) {
    for_form<BITS>(
        s, [&](auto form) { multiply_chunk_of<BITS, Form(decltype(form)::value), MB, Params>(chunk, h, s, args...); });
  }
};

// `tiles` (<= kSuperTiles) tiles from `tile` on, all tokens; sums: from the first column of these on.
template <typename Params>
static void staged_integer(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                           int64_t tiles) {
  const Header& h = header_of(blob);
  CodeChunk chunk;
  const Section* end = sections_of(blob) + h.n_sections;
  for (const Section* s = sections_of(blob); s < end; s++) {
    const Form form = Form(s->form);
    const int total = s->blocks_per_group * s->groups, step = kChunkLines / (s->slabs * lines_in_chunk(form));
    for (int first = 0; first < total; first += step) {
      const int blocks = int(min64(step, total - first));
      for (int64_t i = 0; i < tiles; i++) {
        const uint8_t* data = tile_of(blob, tile + i);
        for_width<UnpackChunk, 0, Params>(s->bits, *s, Params(blob, data), data, first, blocks, chunk.codes[i],
                                          chunk.scales[i], chunk.zeros[i], chunk.starts[i]);
      }
      for_token_blocks(blob, scratch, M, [&](auto m, const Activations& a, int64_t token) {
        constexpr int MB = decltype(m)::value;
        const Sums mine = sums.at(token, 0);
        if constexpr (Lanes::kWidthMatters) {
          for_width<MultiplyChunk, MB, Params>(s->bits, chunk, h, *s, s->first_block + first, blocks, a, tile, tiles,
                                               mine);
        } else {  // one body serves every width
          const auto run = form == kOneByte ? multiply_chunk_of<8, kOneByte, MB, Params>
                           : form == kPairs ? multiply_chunk_of<8, kPairs, MB, Params>
                                            : multiply_chunk_of<8, kTwoBytes, MB, Params>;
          run(chunk, h, *s, s->first_block + first, blocks, a, tile, tiles, mine);
        }
      });
      sums = sums.more();
    }
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
