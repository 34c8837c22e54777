// Fine activations at one and a half products instead of two: two rows share the digits behind the point of both.
//
// A pair of rows with codes qa and qb and activations xa and xb (in steps of their block's scale) becomes three int8
// numbers a, b and s that stand for
//
//   xa ~ a + s / 256,   xb ~ b + M s / 256,   so that   xa qa + xb qb ~ a qa + b qb + s (qa + M qb) / 256:
//
// three products of bytes, where two bytes for each activation would need four. This works because codes are narrow:
// qa + M qb must fit an unsigned byte, and M bits of freedom in s reach xb. As s counts in steps of 256 / N, what a, b
// and s can stand for is a lattice of N points in each unit square, made by v1 = (1, M) / N and v2 = p v1 modulo 1.
// M, N and p are such that v1 and v2 are as long as each other, nearly, and at right angles, nearly.
//
//   bits   M   N    p   v1             v2            rounding error (rms) of one byte : of a pair
//   4      16  256  16  (1, 16) / 256  (16, 0) / 256  16
//   5      7   64   9   (1, 7) / 64    (9, -1) / 64   7.9
//   6      3   16   5   (1, 3) / 16    (5, -1) / 16   3.8
//
// A row of quad j is paired with the same row of quad j + 1, for even j.
#pragma once

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

struct Pair {
  int m;      // 0: none, codes of this width have no room
  int n;      // a divisor of 256
  int p;      // so that v2 is short
  int range;  // largest activation: what s takes of it, a and b must be able to make up for
};

constexpr Pair pair_of(int bits) {
  return bits == 4 ? Pair{16, 256, 16, 119} : bits == 5 ? Pair{7, 64, 9, 123} : bits == 6 ? Pair{3, 16, 5, 125} : Pair{};
}

// What a form becomes here. (AVX2 has no product of full bytes: there, two bytes cost less.)
constexpr Form form_here(int32_t form) { return form == kPairs && !Lanes::kPairs ? kTwoBytes : Form(form); }

// How the zero point enters a term's products: once for each code in it.
constexpr int codes_in_term(int bits, Form form, int term) { return term == 1 && form == kPairs ? 1 + pair_of(bits).m : 1; }

// parts = a, b, s of the lattice point near (xa, xb), each lane its own: rounded along v2, then along v1.
static EXL2_INLINE void nearest_pair(Pair pair, Lanes::F xa, Lanes::F xb, Lanes::I* parts) {
  using F = Lanes::F;
  const float m = float(pair.m), n = float(pair.n), p = float(pair.p);
  const auto nearest = [](F x) EXL2_INLINE_LAMBDA { return Lanes::to_float(Lanes::round(x)); };
  // (m xa - xb) is 0 along v1 and, as p m - n is v2's second coordinate, 1 for v2.
  const F second = nearest(Lanes::sub(Lanes::mul(xa, Lanes::set1(m)), xb));
  const F left_a = Lanes::fma(second, Lanes::set1(-p / n), xa);
  const F left_b = Lanes::fma(second, Lanes::set1(1.0f - p * m / n), xb);
  const F along = Lanes::fma(left_b, Lanes::set1(m), left_a);
  const F first = nearest(Lanes::mul(along, Lanes::set1(n / (1.0f + m * m))));
  const F point = Lanes::fma(second, Lanes::set1(p), first);
  const Lanes::I whole = Lanes::round(Lanes::mul(point, Lanes::set1(256.0f / n)));
  parts[2] = Lanes::sub_i(whole, Lanes::shift_left8(Lanes::high_byte(whole)));  // modulo 256
  const F s = Lanes::to_float(parts[2]);
  parts[0] = Lanes::round(Lanes::fma(s, Lanes::set1(-1.0f / 256), xa));
  parts[1] = Lanes::round(Lanes::fma(s, Lanes::set1(-m / 256), xb));
}

// qa + M qb of 64 pairs. lines: the slab's; a, b: quads J and J + 1 of it.
template <int BITS, int J>
static EXL2_INLINE Lanes::I pair_codes(const Lanes::I* lines, Lanes::I a, Lanes::I b) {
  constexpr int M = pair_of(BITS).m;
  if constexpr (M == 16) {
    return lines[J * BITS / 8];  // which is how they lie there
  } else if constexpr (M == 7) {
    return Lanes::add_i(Lanes::sub_i(Lanes::shift_left16<3>(b), b), a);
  } else {
    return Lanes::add_i(Lanes::add_i(Lanes::shift_left16<1>(b), b), a);
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
