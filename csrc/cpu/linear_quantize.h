// A block of one token's activations, floats, as bytes or words and their scale.
#pragma once

#include "linear_ahead.h"
#include "linear_pairs.h"

namespace exl2 {
namespace EXL2_ISA {

using F = Lanes::F;
using I = Lanes::I;
using Acc = Lanes::Acc;

constexpr int kTokens = Lanes::kTokens;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// What the sums of a block start from: those of each term's activations, or what is taken off products of sums.
struct BlockSums {
  I term[2] = {Lanes::zero_i(), Lanes::zero_i()};
  TokenSummands<Lanes> summands;
};

// 32 rows of one byte, or as pairs, from quad `at` of the block on: own[at + i] receives what rows 4i..4i+3 have of
// their own, shared[at / 2 + i] what those of quads 2i and 2i + 1 share.
template <bool PAIRS, typename Quads>
static EXL2_INLINE void quantize_slab(Pair pair, const F* values, F inverse, Quads own, Quads shared, int64_t at,
                                      BlockSums& sums) {
  const F even = Lanes::mul(Lanes::even_quads(values[0], values[1]), inverse);
  const F odd = Lanes::mul(Lanes::odd_quads(values[0], values[1]), inverse);
  I parts[3];
  int32_t bytes[3][4];
  if constexpr (PAIRS) {
    nearest_pair(pair, even, odd, parts);
    Lanes::store_bytes(bytes[2], parts[2]);
    for (int i = 0; i < 4; i++) shared[at / 2 + i] = bytes[2][i];
    sums.term[1] = Lanes::add_i(sums.term[1], parts[2]);
  } else {
    parts[0] = Lanes::round(even);
    parts[1] = Lanes::round(odd);
  }
  for (int part = 0; part < 2; part++) Lanes::store_bytes(bytes[part], parts[part]);
  for (int i = 0; i < 4; i++) {
    own[at + 2 * i] = bytes[0][i];
    own[at + 2 * i + 1] = bytes[1][i];
  }
  sums.term[0] = Lanes::add_i(sums.term[0], Lanes::add_i(parts[0], parts[1]));
  sums.summands.take(parts[0], parts[1]);
}

// One block of one token, x: in packed order: quads[i] receives rows 4i..4i+3, second[i] those of the second term.
// many: for the product for many tokens by vectors, where two bytes become int16 and sums are multiplied. Returns the
// block's scale.
template <typename Quads>
static inline float quantize_block(const Header& h, const Section& s, const float* x, Quads quads, Quads second,
                                   bool many, BlockSums& sums) {
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
                    : form == kTwoBytes ? kLargestWord
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
  const auto quantize = [&](auto quantize_slab) EXL2_INLINE_LAMBDA {
    for (int slab = 0; slab < s.slabs; slab++) {
      quantize_slab(pair, values + 2 * slab, Lanes::set1(inverse), quads, second, slab * kSlabQuads, sums);
    }
  };
  if (form == kPairs) quantize(quantize_slab<true, Quads>);
  if (form == kOneByte) quantize(quantize_slab<false, Quads>);
  for (int i = 0; form == kTwoBytes && i < steps; i++) {
    I low = Lanes::round(Lanes::mul(values[i], Lanes::set1(inverse)));
    if (many) {
      sums.summands.take_words(low);
      int32_t halves[8];
      Lanes::store_words(halves, low);
      for (int q = 0; q < 8; q++) quads[i * 8 + q] = halves[q];
      continue;
    }
    int32_t bytes[4];
    const I high = Lanes::high_byte(low);  // (v + 128) >> 8, so that what is left fits int8
    low = Lanes::sub_i(low, Lanes::shift_left(high, 8));
    sums.term[0] = Lanes::add_i(sums.term[0], high);
    sums.term[1] = Lanes::add_i(sums.term[1], low);
    Lanes::store_bytes(bytes, high);
    for (int q = 0; q < 4; q++) quads[i * 4 + q] = bytes[q];
    Lanes::store_bytes(bytes, low);
    for (int q = 0; q < 4; q++) second[i * 4 + q] = bytes[q];
  }
  return (amax > 1e-30f ? amax / step : 0.0f) + Lanes::reduce_add(poison);
}

}  // namespace EXL2_ISA
}  // namespace exl2
