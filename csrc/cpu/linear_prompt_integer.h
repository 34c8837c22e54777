// The product for many tokens, integer path: codes unpacked to bytes, int8 activations, exact int32 sums per block.
//
// Bytes moved: every line of codes once per call; a chunk of 32 KiB is written to and read from L1, once for each
// kTokens tokens.
#pragma once

#include "linear_chunks.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kByteChunkRows = 512;   // 4 tiles * 512 rows * 16 B = 32 KiB

constexpr int kChunkBlocks = kByteChunkRows / kSlabRows;

struct ByteChunk {
  alignas(kLine) uint8_t codes[kSuperTiles][kByteChunkRows * kColumns];
  alignas(kLine) F scales[kSuperTiles][kChunkBlocks];
  alignas(kLine) I zeros[kSuperTiles][kChunkBlocks];
};

// The register block: TILES x MB integer accumulators, over some blocks of one chunk, from tile `tile` of it on.
// Sums over blocks stay in registers too: with them in memory, twice as many integer accumulators fit, and the kernel
// ran 30 % slower (Zen 5).
template <int BITS, int TERMS, int TILES, int MB, typename Params>
static void multiply_bytes(const ByteChunk& chunk, int tile, int slabs, int blocks, const int32_t* x,
                           const BlockMeta* meta, float* out, int64_t ldo, int columns) {
  F total[TILES][MB];
  for (int i = 0; i < TILES; i++) {
    for (int m = 0; m < MB; m++) total[i][m] = Lanes::zero();
  }
  const uint8_t* block_codes = chunk.codes[tile];
  for (int b = 0; b < blocks; b++, meta += MB, block_codes += slabs * kSlabQuads * kLine) {
    Acc acc[TILES][MB];
    for (int term = 0; term < TERMS; term++) {
      for (int i = 0; i < TILES; i++) {
        for (int m = 0; m < MB; m++) {
          const I start = Params::start(chunk.zeros[tile + i][b], meta[m].start[term]);
          acc[i][m] =
              Lanes::start(term == 0 ? start : Lanes::add_i(start, Lanes::shift_left8(Lanes::value(acc[i][m]))));
        }
      }
      const uint8_t* codes = block_codes;
      int slab = 0;
      do {
        for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
          constexpr int J = decltype(j)::value;
          I code[TILES];
          for (int i = 0; i < TILES; i++) {
            code[i] = Lanes::load_line(codes + i * kByteChunkRows * kColumns + J * kLine);
          }
          for (int m = 0; m < MB; m++) {
            for (int i = 0; i < TILES; i++) {
              Lanes::dot4<BITS, J, J == kSlabQuads - 1>(acc[i][m], code[i], x[J * MB + m]);
            }
          }
        });
        codes += kSlabQuads * kLine;
        x += kSlabQuads * MB;
        // One term: one slab (max_block_slabs), and the whole block is straight code.
      } while (TERMS == 2 && ++slab < slabs);
    }
    for (int m = 0; m < MB; m++) {
      const F x_scale = Lanes::set1(meta[m].scale);
      for (int i = 0; i < TILES; i++) {
        const F sum = Lanes::to_float(Lanes::value(acc[i][m]));
        const F scale = Lanes::mul(chunk.scales[tile + i][b], x_scale);
        total[i][m] = Lanes::fma(sum, scale, total[i][m]);
      }
    }
  }
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) {
      float* o = out + m * ldo + i * kColumns;
      Lanes::store_partial(o, Lanes::add(Lanes::load_partial(o, n), total[i][m]), n);
    }
  }
}

template <int BITS, typename Params>
static void unpack_bytes(const Section& s, const Params& params, const uint8_t* tile, int first, int blocks,
                         uint8_t* codes, F* scales, I* zeros) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * s.slabs * BITS * kLine;
  for (int b = 0; b < blocks; b++) {
    const int g = s.first_group + (first + b) / s.blocks_per_group;
    scales[b] = params.scale(g);
    zeros[b] = params.zero(g, BITS);
    for (int slab = 0; slab < s.slabs; slab++, in += BITS * kLine, codes += kSlabQuads * kLine) {
      I lines[BITS];
      ask_for(in + kChunkAhead, BITS);
      load_slab<BITS>(lines, in);
      for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        Lanes::store_line(codes + J * kLine, unpack<BITS, J>(lines));
      });
    }
  }
}

template <int BITS, int MB, typename Params>
struct UnpackBytes {
  template <typename... Args>
  static void run(Args&&... args) {
    unpack_bytes<BITS, Params>(args...);
  }
};

template <int BITS, int TERMS, int MB, typename Params>
static void multiply_bytes_of(const ByteChunk& chunk, const Header& h, const Section& s, int64_t block, int blocks,
                              const Activations& a, int64_t tile, int64_t tiles, float* out, int64_t ldo) {
  const int32_t* x = a.quads(s.x_offset + (block - s.first_block) * s.slabs * kSlabRows * TERMS);
  const BlockMeta* meta = a.meta(h, block);
  int i = 0;
  for (; i + kStageTiles <= tiles; i += kStageTiles) {
    multiply_bytes<BITS, TERMS, kStageTiles, MB, Params>(chunk, i, s.slabs, blocks, x, meta, out + i * kColumns, ldo,
                                                         last_columns(h, tile + i, kStageTiles));
  }
  for (; i < tiles; i++) {
    multiply_bytes<BITS, TERMS, 1, MB, Params>(chunk, i, s.slabs, blocks, x, meta, out + i * kColumns, ldo,
                                               last_columns(h, tile + i, 1));
  }
}

template <int BITS, int MB, typename Params>
struct MultiplyBytes {
  template <typename... Args>
  static void run(const ByteChunk& chunk, const Header& h, const Section& s, Args&&... args) {
    if (may_have_terms(BITS, 1) && s.terms == 1) multiply_bytes_of<BITS, 1, MB, Params>(chunk, h, s, args...);
    if (may_have_terms(BITS, 2) && s.terms == 2) multiply_bytes_of<BITS, 2, MB, Params>(chunk, h, s, args...);
  }
};

// `tiles` (<= kSuperTiles) tiles from `tile` on, all tokens; adds to out, which points at the first column.
template <typename Params>
static void staged_integer(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo,
                           int64_t tile, int64_t tiles) {
  const Header& h = header_of(blob);
  ByteChunk chunk;
  const Section* end = sections_of(blob) + h.n_sections;
  for (const Section* s = sections_of(blob); s < end; s++) {
    const int total = s->blocks_per_group * s->groups, step = kChunkBlocks / s->slabs;
    for (int first = 0; first < total; first += step) {
      const int blocks = int(min64(step, total - first));
      for (int64_t i = 0; i < tiles; i++) {
        const uint8_t* data = tile_of(blob, tile + i);
        for_width<UnpackBytes, 0, Params>(s->bits, *s, Params(blob, data), data, first, blocks, chunk.codes[i],
                                          chunk.scales[i], chunk.zeros[i]);
      }
      for (int64_t token = 0; token < M; token += kTokens) {
        const Activations a = activations_of(h, scratch, token, M);
        for_tokens(a.mb, [&](auto m) {
          constexpr int MB = decltype(m)::value;
          float* o = out + token * ldo;
          if constexpr (Lanes::kWidthMatters) {
            for_width<MultiplyBytes, MB, Params>(s->bits, chunk, h, *s, s->first_block + first, blocks, a, tile, tiles,
                                                 o, ldo);
          } else {  // one body serves every width
            const auto run = s->terms == 1 ? multiply_bytes_of<8, 1, MB, Params> : multiply_bytes_of<8, 2, MB, Params>;
            run(chunk, h, *s, s->first_block + first, blocks, a, tile, tiles, o, ldo);
          }
        });
      }
    }
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
