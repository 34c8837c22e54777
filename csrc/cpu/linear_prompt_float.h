// The product for many tokens in fp32: dense weights, and quantized ones on the exact path.
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
static inline void multiply_chunk(const Header& h, const FloatChunk& chunk, const uint8_t* scratch, int64_t row,
                                  int rows, int64_t M, const Sums& sums, int64_t tile, int64_t tiles) {
  for (int64_t token = 0; token < M; token += kTokens) {
    const Activations a = activations_of(h, scratch, token, M);
    for_tokens(a.mb, [&](auto m) {
      constexpr int MB = decltype(m)::value;
      int i = 0;
      for (; i + kStageTiles <= tiles; i += kStageTiles) {
        multiply_floats<kStageTiles, MB>(chunk, i, rows, a.rows(row), sums.at(token, i * kColumns),
                                         last_columns(h, tile + i, kStageTiles));
      }
      for (; i < tiles; i++) {
        multiply_floats<1, MB>(chunk, i, rows, a.rows(row), sums.at(token, i * kColumns), last_columns(h, tile + i, 1));
      }
    });
  }
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
      multiply_chunk(h, chunk, scratch, s->first_row + int64_t(first) * kSlabRows, slabs * kSlabRows, M, sums, tile,
                     tiles);
      sums = sums.more();
    }
  }
}

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
static void staged_dense(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
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

}  // namespace EXL2_ISA
}  // namespace exl2
