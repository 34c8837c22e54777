// Activations in the form that the products read them: gathered by the weight's row permutation and, on the integer
// path, quantized to one byte, two, or one and a half (linear_pairs.h), with a scale per block of rows.
//
// They lie in scratch by token blocks of Lanes::kTokens (the last one shorter), each [row quad][token][4 rows] int8, or
// [row][token] float, so that the inner loops read them in address order. Two bytes are two such terms, the high bytes
// of a block before the low ones; for many tokens they are one int16, [row quad][rows 0 and 2, rows 1 and 3][token].
#pragma once

#include "linear_pack.h"
#include "linear_pairs.h"

namespace exl2 {
namespace EXL2_ISA {

using F = Lanes::F;
using I = Lanes::I;
using Acc = Lanes::Acc;

constexpr int kTokens = Lanes::kTokens;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

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

static inline int64_t token_bytes(const Header& h, int64_t M) {
  return in_floats(h, M) ? h.packed_rows * 4 : h.x_bytes + h.n_blocks * int64_t(sizeof(BlockMeta));
}

static inline int64_t token_block_at(const Header& h, int64_t token, int64_t M) {  // token: multiple of kTokens
  return align_line(token_bytes(h, M) * kTokens) * (token / kTokens);
}

static int64_t scratch_bytes(const uint8_t* blob, int64_t M) {
  const Header& h = header_of(blob);
  const auto bytes = [&](int64_t tokens) {
    return token_block_at(h, tokens / kTokens * kTokens, tokens) +
           align_line(token_bytes(h, tokens) * (tokens % kTokens));
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

static inline Activations activations_of(const Header& h, const uint8_t* scratch, int64_t token, int64_t M) {
  return {scratch + token_block_at(h, token, M), min64(kTokens, M - token)};
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

// What the sums of a block start from: those of each term's activations, or what is taken off products of sums.
struct BlockSums {
  I term[2] = {Lanes::zero_i(), Lanes::zero_i()};
  TokenSummands<Lanes> summands;
};

// 32 rows of one byte, or as pairs: quads[i * mb] receives what rows 4i..4i+3 have of their own, shared[i * mb] what
// those of quads 2i and 2i + 1 share.
template <bool PAIRS>
static EXL2_INLINE void quantize_slab(Pair pair, const F* values, F inverse, int32_t* quads, int32_t* shared,
                                      int64_t mb, BlockSums& sums) {
  const F even = Lanes::mul(Lanes::even_quads(values[0], values[1]), inverse);
  const F odd = Lanes::mul(Lanes::odd_quads(values[0], values[1]), inverse);
  I parts[3];
  int32_t bytes[3][4];
  if constexpr (PAIRS) {
    nearest_pair(pair, even, odd, parts);
    Lanes::store_bytes(bytes[2], parts[2]);
    for (int i = 0; i < 4; i++) shared[i * mb] = bytes[2][i];
    sums.term[1] = Lanes::add_i(sums.term[1], parts[2]);
  } else {
    parts[0] = Lanes::round(even);
    parts[1] = Lanes::round(odd);
  }
  for (int part = 0; part < 2; part++) Lanes::store_bytes(bytes[part], parts[part]);
  for (int i = 0; i < 4; i++) {
    quads[2 * i * mb] = bytes[0][i];
    quads[(2 * i + 1) * mb] = bytes[1][i];
  }
  sums.term[0] = Lanes::add_i(sums.term[0], Lanes::add_i(parts[0], parts[1]));
  sums.summands.take(parts[0], parts[1]);
}

// One block of one token, x: in packed order: quads[i * mb] receives rows 4i..4i+3; those of the second term follow
// behind all of the first. many: for the product for many tokens, where two bytes become int16 and sums are multiplied.
static inline void quantize_block(const Header& h, const Section& s, const float* x, int32_t* quads, int64_t mb,
                                  bool many, BlockMeta& meta) {
  const int steps = s.slabs * 2;  // of 16 rows
  F values[8];
  F top = Lanes::zero(), poison = Lanes::zero();
  for (int i = 0; i < steps; i++) {
    values[i] = Lanes::load_partial(x + i * 16, 16);
    top = Lanes::max_abs(top, values[i]);
    poison = Lanes::fma(values[i], Lanes::zero(), poison);  // NaN if any is NaN or infinite: never hidden by rounding
  }
  const Form form = Form(s.form);
  const bool pairs = form == kPairs;
  const Pair pair = pair_of(s.bits);
  const int range = h.kind == int32_t(LinearKind::kDense) ? kLargestDenseWord
                    : form == kTwoBytes                   ? kLargestWord
                                        : largest_byte(LinearKind(h.kind), s.bits) - (pairs ? pair.reach() : 0);
  float amax = Lanes::reduce_max(top);
  if (h.kind == int32_t(LinearKind::kDense)) {
    F sum = Lanes::zero();
    for (int i = 0; i < steps; i++) sum = Lanes::add(sum, Lanes::max_abs(Lanes::zero(), values[i]));
    // Where the sum of the words would be too large, as if the largest of them were so much larger.
    const float least = Lanes::reduce_add(sum) * (float(kLargestDenseWord) / kLargestDenseSum);
    amax = least > amax ? least : amax;
  }
  const float inverse = amax > 1e-30f ? float(range) / amax : 0.0f;
  const float step = float(pairs ? range * pair.n() : range);  // pairs count in Nths (linear_pairs.h)
  meta.scale = (amax > 1e-30f ? amax / step : 0.0f) + Lanes::reduce_add(poison);
  BlockSums sums;
  int32_t* second = quads + s.slabs * kSlabQuads * mb;
  const auto quantize = [&](auto quantize_slab) EXL2_INLINE_LAMBDA {
    for (int slab = 0; slab < s.slabs; slab++) {
      quantize_slab(pair, values + 2 * slab, Lanes::set1(inverse), quads + slab * kSlabQuads * mb,
                    second + slab * kSlabQuads / 2 * mb, mb, sums);
    }
  };
  if (form == kPairs) quantize(quantize_slab<true>);
  if (form == kOneByte) quantize(quantize_slab<false>);
  for (int i = 0; form == kTwoBytes && i < steps; i++) {
    I low = Lanes::round(Lanes::mul(values[i], Lanes::set1(inverse)));
    if (many) {
      sums.summands.take_words(low);
      int32_t halves[8];
      Lanes::store_words(halves, low);
      for (int q = 0; q < 8; q++) quads[(i * 8 + q) * mb] = halves[q];
      continue;
    }
    int32_t bytes[4];
    const I high = Lanes::high_byte(low);  // (v + 128) >> 8, so that what is left fits int8
    low = Lanes::sub_i(low, Lanes::shift_left(high, 8));
    sums.term[0] = Lanes::add_i(sums.term[0], high);
    sums.term[1] = Lanes::add_i(sums.term[1], low);
    Lanes::store_bytes(bytes, high);
    for (int q = 0; q < 4; q++) quads[(i * 4 + q) * mb] = bytes[q];
    Lanes::store_bytes(bytes, low);
    for (int q = 0; q < 4; q++) second[(i * 4 + q) * mb] = bytes[q];
  }
  for (int t = 0; t < 2; t++) {
    const int codes = h.kind == int32_t(LinearKind::kExl2) ? codes_in_term(s.bits, form, t) : 1;
    meta.start[t] = -common_zero(h, s) * codes * Lanes::reduce_add_i(sums.term[t]);
  }
  if (many && Lanes::kSums) meta.start[0] = sums.summands.start();
}

// The lines with which the product of one token begins come in while its input is made: those that belong to this part
// of the work, when the product asks for what lies kDecodeAhead further on.
static inline void ask_for_first(const Header& h, const uint8_t* blob, int64_t block) {
  constexpr int64_t kLines = kDecodeAhead / kLine;
  const int64_t begin = kLines * block / h.n_blocks, end = kLines * (block + 1) / h.n_blocks;
  ask_for(tile_of(blob, 0) + begin * kLine, int(end - begin));
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
    const Activations a = activations_of(h, scratch, token, M);
    uint8_t* base = const_cast<uint8_t*>(a.base);
    for (int64_t m = 0; m < a.mb; m++) {
      const float* from = x + (token + m) * ldx;
      if (floats) {
        const int64_t row = first * kRows, rows = min64(h.packed_rows, last * kRows) - row;
        take_rows(h, map, from, row, rows, reinterpret_cast<float*>(base) + row * a.mb + m, a.mb);
        continue;
      }
      const Section* s = sections_of(blob);
      for (int64_t block = first; block < last;) {
        while (block >= s->first_block + int64_t(s->blocks_per_group) * s->groups) s++;
        const int64_t index = block - s->first_block, rows = int64_t(s->slabs) * kSlabRows;
        const int64_t row = s->first_row + index * rows;
        const int64_t left = min64(last - block, int64_t(s->blocks_per_group) * s->groups - index);
        const int64_t count = min64(left, kPieceRows / rows);
        alignas(kLine) float piece[kPieceRows];
        const bool copied = map || row + count * rows > h.K;
        if (copied) take_rows(h, map, from, row, count * rows, piece, 1);
        // What the next token has here: in the order of the map no prefetcher would find it. Nearly half of all this.
        if (token + m + 1 < M) ask_for(reinterpret_cast<const uint8_t*>(from + ldx + row), int(count * rows / 16));
        for (int64_t i = 0; i < count; i++, block++) {
          if (M == 1) ask_for_first(h, blob, block);
          int32_t* quads = const_cast<int32_t*>(a.quads(s->x_offset + (index + i) * rows * terms_of(Form(s->form))));
          BlockMeta* meta = const_cast<BlockMeta*>(a.meta(h, block));
          quantize_block(h, *s, copied ? piece + i * rows : from + row + i * rows, quads + m, a.mb,
                         M > Lanes::kDirectTokens, meta[m]);
        }
      }
    }
    at += last - first;
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
