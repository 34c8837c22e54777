// The product for many tokens in fp32: quantized weights on the exact path, and dense ones (linear_prompt_dense.h).
#pragma once

#include "linear_chunks.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kFloatChunkRows = 256;  // 2 tiles * 256 rows * 64 B = 32 KiB

struct FloatChunk {
  alignas(kLine) float weights[kSuperTiles][kFloatChunkRows * kColumns];
};

template <int TILES, int MB>
static void multiply_floats(const FloatChunk& chunk, int tile, int rows, const float* x, const Sums& sums,
                            int columns) {
  F acc[TILES][MB];
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) acc[i][m] = sums.load(m, i * kColumns, n);
  }
  for (int r = 0; r < rows; r++, x += MB) {
    F weight[TILES];
    for (int i = 0; i < TILES; i++) weight[i] = Lanes::load(chunk.weights[tile + i] + r * kColumns);
    for (int m = 0; m < MB; m++) {
      const F value = Lanes::set1(x[m]);
      for (int i = 0; i < TILES; i++) acc[i][m] = Lanes::fma(weight[i], value, acc[i][m]);
    }
  }
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) sums.store(m, i * kColumns, acc[i][m], n);
  }
}

// rows of the chunk, starting at packed row `row`, times all tokens.
static inline void multiply_chunk(const uint8_t* blob, const FloatChunk& chunk, const uint8_t* scratch, int64_t row,
                                  int rows, int64_t M, const Sums& sums, int64_t tile, int64_t tiles) {
  for_token_blocks(blob, scratch, M, [&](auto m, const Activations& a, int64_t token) {
    for_stages(tiles, [&](auto count, int64_t i) {
      constexpr int MB = decltype(m)::value, TILES = decltype(count)::value;
      multiply_floats<TILES, MB>(chunk, int(i), rows, a.rows(row), sums.at(token, i * kColumns),
                                 last_columns(header_of(blob), tile + i, TILES));
    });
  });
}

// (q - zero) * S of some slabs of a section: exact in fp32, 9 bits times 11.
template <int BITS, typename Params>
static void unpack_floats(const Section& s, const Params& params, const uint8_t* tile, int first, int slabs,
                          float* out) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * BITS * kLine;
  for (int slab = first; slab < first + slabs; slab++, in += BITS * kLine) {
    const int g = s.first_group + slab / (s.slabs * s.blocks_per_group);
    const F scale = params.scale(g), zero = Lanes::to_float(params.zero(g, BITS));
    I lines[BITS];
    ask_for(in + kChunkAhead, BITS);
    load_slab<BITS>(lines, in);
    for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
      F row[4];
      Lanes::rows_of_quad(row, unpack<BITS, decltype(j)::value>(lines));
      for (int r = 0; r < 4; r++, out += kColumns) Lanes::store(out, Lanes::mul(Lanes::sub(row[r], zero), scale));
    });
  }
}

template <int BITS, int MB, typename Params>
struct UnpackFloats {
  template <typename... Args>
  static void run(Args&&... args) {
    unpack_floats<BITS, Params>(args...);
  }
};

template <typename Params>
static void staged_exact(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                         int64_t tiles) {
  const Header& h = header_of(blob);
  FloatChunk chunk;
  const Section* end = sections_of(blob) + h.n_sections;
  for (const Section* s = sections_of(blob); s < end; s++) {
    const int total = s->slabs * s->blocks_per_group * s->groups;
    for (int first = 0; first < total; first += kFloatChunkRows / kSlabRows) {
      const int slabs = int(min64(kFloatChunkRows / kSlabRows, total - first));
      for (int64_t i = 0; i < tiles; i++) {
        const uint8_t* data = tile_of(blob, tile + i);
        for_width<UnpackFloats, 0, Params>(s->bits, *s, Params(blob, data), data, first, slabs, chunk.weights[i]);
      }
      multiply_chunk(blob, chunk, scratch, s->first_row + int64_t(first) * kSlabRows, slabs * kSlabRows, M, sums, tile,
                     tiles);
      sums = sums.more();
    }
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
