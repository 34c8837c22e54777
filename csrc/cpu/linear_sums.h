// Products for many tokens with half the multiplications, where a processor adds beside them for free (Winograd 1968):
//
//   xa qa + xb qb = (xa + qb) (xb + qa) - xa xb - qa qb
//
// for the same row of quads j and j + 1, q being codes less their zero point. What is taken off belongs to a token or
// to a column alone: it is made once per block, with the activations and when codes are unpacked. One multiply-add and
// two additions do what two multiply-adds do; Zen 5 multiplies two vectors a cycle and adds four, less those it
// multiplies, so four quads of a tile take 1.5 cycles instead of 2. (Measured, 6 tokens x 2 tiles, out of L1: 1.26
// times as fast.)
//
// vpdpbusd wants an unsigned and a signed byte: the first factor is xb + qa + 128, the second xa + qb, and
//
//   sum of xa qa + xb qb = sum of (xb + qa + 128) (xa + qb) - sum of (xb + 128) xa - sum of (qa + 128) qb.
//
// So that both fit their bytes, activations leave room for a code (largest_byte). All instruction sets round to what is
// left, whether they add or not. Activations of two bytes meet rows 1 and 3 of the same quad instead, as int16, where
// leaving room costs nothing; what is taken off them may pass 2^31 and come back, as sums of int32 do.
#pragma once

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kLargestWord = 32767 - 256;  // and both its bytes fit int8: 127 * 256 + 127 is more

// Of dense weights both factors are rounded to words (linear_prompt_dense.h), and sums of two fit int16. Weights have
// 2^13 steps, activations as many as the block's sum of products allows, which is at most
//
//   2^13 * sum |rounded x| <= 2^13 * (sum |x| + 64 / 2) < 2^31,   x in steps of the scale:
//
// rounding may add a half to each of the block's rows, and the sum of |x| is itself made of 64 rounded floats (4: more
// than all of these errors). A block with an outlier keeps 14.6 bits and a sign, one of equal numbers 12.
constexpr int kLargestDenseWeight = 1 << 13;
constexpr int kLargestDenseWord = 32767 - kLargestDenseWeight;
constexpr int kLargestDenseSum = (1 << 18) - kDenseBlockRows / 2 - 4;

// The largest magnitude of a byte of activations that meets codes of this width: |x| + |q| <= 128. Codes less their
// zero point are at least -2^(bits - 1); those of GPTQ, whose zero point may be anything up to 2^bits, -2^bits.
static inline int largest_byte(LinearKind kind, int bits) {
  return 128 - (1 << (kind == LinearKind::kExl2 ? bits - 1 : bits));
}

// A block's codes as summands. (L: Lanes; templates, so that those without sums need not say how.)
template <typename L, bool SUMS = L::kSums>
struct Summands {
  using I = typename L::I;
  I even, odd;  // what is taken off codes of even and odd quads, in each byte
  I products;   // sum of (qa + 128) qb

  explicit Summands(I zero) : products(L::zero_i()) {  // zero: the zero point of each column
    const I twice = L::add_i(zero, L::shift_left(zero, 8));
    odd = L::add_i(twice, L::shift_left(twice, 16));
    even = L::add_i(odd, L::set1_i(int32_t(0x80808080u)));  // to take off 128 more is to add 128
  }
  EXL2_INLINE void take(I& a, I& b) {  // quads 2i and 2i + 1
    a = L::sub_bytes(a, even);
    b = L::sub_bytes(b, odd);
    products = L::dot_sums(products, a, b, 0, 0);
  }
  I start() const { return L::sub_i(L::zero_i(), products); }  // of each column's sums
};

template <typename L>
struct Summands<L, false> {
  using I = typename L::I;
  explicit Summands(I) {}
  EXL2_INLINE void take(I&, I&) {}
  I start() const { return L::zero_i(); }
};

// A token's activations of a block as summands.
template <typename L, bool SUMS = L::kSums>
struct TokenSummands {
  using I = typename L::I;
  I products = L::zero_i();

  EXL2_INLINE void take(I a, I b) {  // quads 0, 2, 4, 6 and 1, 3, 5, 7 of a slab, an activation each lane
    products = L::add_products(products, a, L::add_i(b, L::set1_i(128)));
  }
  EXL2_INLINE void take_words(I x) { products = L::add_neighbours(products, x); }
  int32_t start() const { return L::reduce_add_i(L::sub_i(L::zero_i(), products)); }
};

template <typename L>
struct TokenSummands<L, false> {
  using I = typename L::I;
  EXL2_INLINE void take(I, I) {}
  EXL2_INLINE void take_words(I) {}
  int32_t start() const { return 0; }
};

// A block's codes as int16 as summands, which have their zero point taken off: a: rows 0 and 2 of a quad, b: rows 1
// and 3.
template <typename L, bool SUMS = L::kSums>
struct WordSummands {
  using I = typename L::I;
  I products = L::zero_i();
  EXL2_INLINE void take(I a, I b) { products = L::dot2_sums(products, a, b, 0, 0); }
  I start() const { return L::sub_i(L::zero_i(), products); }
};

template <typename L>
struct WordSummands<L, false> {
  using I = typename L::I;
  EXL2_INLINE void take(I, I) {}
  I start() const { return L::zero_i(); }
};

}  // namespace EXL2_ISA
}  // namespace exl2
