// Activations in the form that the products read them: gathered by the weight's row permutation and, on the integer
// path, quantized to one byte, two, or one and a half (linear_pairs.h), with a scale per block of rows.
//
// They lie in scratch by token blocks of Lanes::kTokens (the last one shorter), each [row quad][token][4 rows] int8, or
// [row][token] float, so that the inner loops read them in address order. Two bytes are two such terms, the high bytes
// of a block before the low ones; for many tokens they are one int16, [row quad][rows 0 and 2, rows 1 and 3][token].
// What the tile unit multiplies lies in tiles instead: linear_tiles.h.
#pragma once

#include "linear_pack.h"
#include "linear_tiles.h"

namespace exl2 {
namespace EXL2_ISA {

template <int J>
struct Index {
  static constexpr int value = J;
};

// f(Index<mb>{}) for mb = 1..kTokens: the number of tokens as a constant.
template <int MB = kTokens, typename Body>
static EXL2_INLINE void for_tokens(int64_t mb, Body&& f) {
  if (mb == MB) return f(Index<MB>{});
  if constexpr (MB > 1) for_tokens<MB - 1>(mb, f);
}

// f(Index<0>{}) ... f(Index<MB - 1>{}): the tokens of a block, each as a constant.
template <int MB, int M = 0, typename Body>
static EXL2_INLINE void for_each_token(Body&& f) {
  f(Index<M>{});
  if constexpr (M + 1 < MB) for_each_token<MB, M + 1>(f);
}

// Per token of the integer path: x_bytes of activations, then for each block its scale and, for each term, where its
// sum of products starts: -sum(x), times the zero point (of all codes in it) where that is one number (EXL2). So
// (q - zero) costs nothing. Where sums are multiplied (linear_sums.h), the first term starts with -sum((xb + 128) xa)
// instead, that of two bytes with -sum(xa xb).
struct BlockMeta {
  float scale;
  int32_t start[2];
};

// Whether M tokens stay floats: on the exact path, and a few that meet dense weights.
static inline bool in_floats(const Header& h, int64_t M) {
  return h.exact || (h.kind == int32_t(LinearKind::kDense) && M <= Lanes::kDirectTokens);
}

// Whether M tokens go to the tile unit.
static inline bool in_tiles(const Header& h, int64_t M) {
  return Lanes::kTiles && M > Lanes::kDirectTokens && !in_floats(h, M);
}

static inline int64_t token_bytes(const Header& h, int64_t M) {
  return in_floats(h, M) ? h.packed_rows * 4 : h.x_bytes + h.n_blocks * int64_t(sizeof(BlockMeta));
}

// Of a block of tokens among M.
static inline int64_t token_block_bytes(const uint8_t* blob, int64_t tokens, int64_t M) {
  const Header& h = header_of(blob);
  return in_tiles(h, M) ? tiled_input_bytes(blob) : align_line(token_bytes(h, M) * tokens);
}

static inline int64_t token_block_at(const uint8_t* blob, int64_t token, int64_t M) {  // token: multiple of kTokens
  return token_block_bytes(blob, kTokens, M) * (token / kTokens);
}

static int64_t scratch_bytes(const uint8_t* blob, int64_t M) {
  const auto bytes = [&](int64_t tokens) {
    const int64_t rest = tokens % kTokens;
    return token_block_at(blob, tokens - rest, tokens) + (rest ? token_block_bytes(blob, rest, tokens) : 0);
  };
  const int64_t few = bytes(min64(M, Lanes::kDirectTokens)), all = bytes(M);  // floats may take more than words
  return few > all ? few : all;
}

// Part of the activations of one token block: tokens are interleaved, mb of them.
struct Activations {
  const uint8_t* base;
  int64_t mb;
  const int32_t* quads(int64_t x_offset) const { return reinterpret_cast<const int32_t*>(base + x_offset * mb); }
  const BlockMeta* meta(const Header& h, int64_t block) const {
    return reinterpret_cast<const BlockMeta*>(base + h.x_bytes * mb) + block * mb;
  }
  const float* rows(int64_t row) const { return reinterpret_cast<const float*>(base) + row * mb; }
};

static inline Activations activations_of(const uint8_t* blob, const uint8_t* scratch, int64_t token, int64_t M) {
  return {scratch + token_block_at(blob, token, M), min64(kTokens, M - token)};
}

// --- prepare ---

constexpr int64_t kPieceRows = 512;  // put in order at a time

// Activations of a token in the order of the packed rows: row `row + i` to out[i * step]; zero where a group or the
// last block is padded. Number by number: an instruction that gathers 16 takes twice the time (Zen 5).
static void take_rows(const Header& h, const int32_t* map, const float* x, int64_t row, int64_t rows, float* out,
                      int64_t step) {
  for (int64_t i = 0; i < rows; i++) {
    const int64_t from = map ? map[row + i] : row + i < h.K ? row + i : -1;
    out[i * step] = from < 0 ? 0.0f : x[from];
  }
}

// Where the quads of a token's block lie that is multiplied by vectors: between those of other tokens.
struct InRow {
  int32_t* first;
  int64_t step;
  int32_t& operator[](int64_t quad) const { return first[quad * step]; }
};

// The lines with which the product of one token begins come in while its input is made: those that belong to this part
// of the work, when the product asks for what lies kDecodeAhead further on.
static inline void ask_for_first(const Header& h, const uint8_t* blob, int64_t block) {
  constexpr int64_t kLines = kDecodeAhead / kLine;
  const int64_t begin = kLines * block / h.n_blocks, end = kLines * (block + 1) / h.n_blocks;
  ask_for(tile_of(blob, 0) + begin * kLine, int(end - begin));
}

// Where blocks of activations go that are multiplied by vectors.
struct Rows {
  const uint8_t* blob;
  Activations a;
  bool many;

  // Block number `index` of section s, for token m.
  void put(const Header& h, const Section& s, int64_t index, int64_t m, const float* x) const {
    const int64_t rows = int64_t(s.slabs) * kSlabRows;
    const Form form = Form(s.form);
    int32_t* quads = const_cast<int32_t*>(a.quads(s.x_offset + index * rows * terms_of(form))) + m;
    BlockMeta& meta = const_cast<BlockMeta*>(a.meta(h, s.first_block + index))[m];
    if (a.mb == 1 && !many) ask_for_first(h, blob, s.first_block + index);
    BlockSums sums;
    const InRow own{quads, a.mb}, second{quads + s.slabs * kSlabQuads * a.mb, a.mb};
    meta.scale = quantize_block(h, s, x, own, second, many, sums);
    for (int t = 0; t < 2; t++) {
      const int codes = h.kind == int32_t(LinearKind::kExl2) ? codes_in_term(s.bits, form, t) : 1;
      meta.start[t] = -common_zero(h, s) * codes * Lanes::reduce_add_i(sums.term[t]);
    }
    if (many && Lanes::kSums) meta.start[0] = sums.summands.start();
  }
};

// Blocks first ... last - 1 of all tokens of a token block. x: of its first token; left: tokens from there on.
template <typename Target>
static void prepare_blocks(const uint8_t* blob, const float* x, int64_t ldx, int64_t mb, int64_t left, int64_t first,
                           int64_t last, const Target& target) {
  const Header& h = header_of(blob);
  const int32_t* map = h.has_row_map ? reinterpret_cast<const int32_t*>(blob + h.row_map_at) : nullptr;
  for (int64_t m = 0; m < mb; m++, x += ldx) {
    const Section* s = sections_of(blob);
    for (int64_t block = first; block < last;) {
      while (block >= s->first_block + int64_t(s->blocks_per_group) * s->groups) s++;
      const int64_t index = block - s->first_block, rows = int64_t(s->slabs) * kSlabRows;
      const int64_t row = s->first_row + index * rows;
      const int64_t most = min64(last - block, int64_t(s->blocks_per_group) * s->groups - index);
      const int64_t count = min64(most, kPieceRows / rows);
      alignas(kLine) float piece[kPieceRows];
      const bool copied = map || row + count * rows > h.K;
      if (copied) take_rows(h, map, x, row, count * rows, piece, 1);
      // What the next token has here: in the order of the map no prefetcher would find it. Nearly half of all this.
      if (m + 1 < left) ask_for(reinterpret_cast<const uint8_t*>(x + ldx + row), int(count * rows / 16));
      for (int64_t i = 0; i < count; i++, block++) {
        target.put(h, *s, index + i, m, copied ? piece + i * rows : x + row + i * rows);
      }
    }
  }
}

// Work is numbered (token block, block of rows), so that one token is shared by all parts as well as many are.
static void prepare(const uint8_t* blob, const float* x, int64_t M, int64_t ldx, uint8_t* scratch, int part,
                    int parts) {
  const Header& h = header_of(blob);
  const int32_t* map = h.has_row_map ? reinterpret_cast<const int32_t*>(blob + h.row_map_at) : nullptr;
  const int64_t token_blocks = (M + kTokens - 1) / kTokens;
  constexpr int64_t kRows = 16;
  const bool floats = in_floats(h, M);
  const int64_t units = floats ? (h.packed_rows + kRows - 1) / kRows : h.n_blocks;  // per token block
  const int64_t begin = token_blocks * units * part / parts, end = token_blocks * units * (part + 1) / parts;
  for (int64_t at = begin; at < end;) {
    const int64_t token = at / units * kTokens, first = at % units;
    const int64_t last = min64(units, first + end - at);
    const Activations a = activations_of(blob, scratch, token, M);
    uint8_t* base = const_cast<uint8_t*>(a.base);
    const float* from = x + token * ldx;
    if (floats) {
      const int64_t row = first * kRows, rows = min64(h.packed_rows, last * kRows) - row;
      for (int64_t m = 0; m < a.mb; m++) {
        take_rows(h, map, from + m * ldx, row, rows, reinterpret_cast<float*>(base) + row * a.mb + m, a.mb);
      }
    } else if (in_tiles(h, M)) {
      prepare_blocks(blob, from, ldx, a.mb, M - token, first, last, Tiles{blob, base});
    } else {
      prepare_blocks(blob, from, ldx, a.mb, M - token, first, last, Rows{blob, a, M > Lanes::kDirectTokens});
    }
    at += last - first;
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
