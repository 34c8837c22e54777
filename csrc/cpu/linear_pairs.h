// Fine activations at one and a half products instead of two: two rows share the digits behind the point of both.
//
// A pair of rows with codes qa and qb and activations xa and xb (in steps of their block's scale) becomes three int8
// numbers a, b and s that stand for
//
//   xa ~ a + s / N,   xb ~ b + M s / N,   so that   xa qa + xb qb ~ a qa + b qb + s (qa + M qb) / N:
//
// three products of bytes, where two bytes for each activation would need four. This works because codes are narrow:
// qa + M qb must fit an unsigned byte. What a, b and s can stand for is a lattice of N points in each unit square, made
// by v1 = (1, M) / N and v2 = p v1 modulo 1. M, N and p are such that v1 and v2 are at right angles, nearly, and as
// long as each other, nearly; but at 4 bits qa + 16 qb is the byte as it lies in memory, which is worth more.
//
//   bits   M   N   p   v1            v2            rounding error (rms) of one byte : of a pair
//   4      16  64  4   (1, 16) / 64  (4, 0) / 64   5.5
//   5      7   64  9   (1, 7) / 64   (9, -1) / 64  7.9
//   6      3   32  10  (1, 3) / 32   (10, -2) / 32 4.2
//
// |s| <= N / 2, so that even sums of four products fit the 16 bits in which AVX2 adds them.
//
// A row of quad j is paired with the same row of quad j + 1, for even j.
#pragma once

#include "linear_sums.h"

namespace exl2 {
namespace EXL2_ISA {

struct Pair {
  int m;  // 0: none, codes of this width have no room
  int log_n;
  int p;  // so that v2 is short

  constexpr int n() const { return 1 << log_n; }
  // What s may take of an activation, and a and b must be able to make up for: M s / N, and half of rounding it.
  constexpr int reach() const { return (m + 1) / 2; }
};

constexpr Pair pair_of(int bits) {
  return bits == 4 ? Pair{16, 6, 4} : bits == 5 ? Pair{7, 6, 9} : bits == 6 ? Pair{3, 5, 10} : Pair{};
}

// How the zero point enters a term's products: once for each code in it.
constexpr int codes_in_term(int bits, Form form, int term) {
  return term == 1 && form == kPairs ? 1 + pair_of(bits).m : 1;
}

// What the first term's sum is multiplied with, before the second's is added: a power of two.
constexpr int term_shift(int bits, Form form) { return form == kPairs ? pair_of(bits).log_n : 8; }

// How many quads' sums of two products fit 16 bits. form: of what codes are multiplied with, kPairs if that is s.
constexpr int sum_depth(int bits, Form form) {
  const int code = (1 << bits) - 1;
  return 32767 / (2 * (form == kPairs ? pair_of(bits).n() / 2 * code * (1 + pair_of(bits).m) : 128 * code));
}

// parts = a, b, s of the lattice point near (xa, xb), each lane its own: rounded along v2, then along v1.
static EXL2_INLINE void nearest_pair(Pair pair, Lanes::F xa, Lanes::F xb, Lanes::I* parts) {
  using F = Lanes::F;
  const float m = float(pair.m), n = float(pair.n()), p = float(pair.p);
  const auto nearest = [](F x) EXL2_INLINE_LAMBDA { return Lanes::to_float(Lanes::round(x)); };
  // (m xa - xb) is 0 along v1 and, as p m - n is v2's second coordinate, 1 for v2.
  const F second = nearest(Lanes::sub(Lanes::mul(xa, Lanes::set1(m)), xb));
  const F left_a = Lanes::fma(second, Lanes::set1(-p / n), xa);
  const F left_b = Lanes::fma(second, Lanes::set1(1.0f - p * m / n), xb);
  const F along = Lanes::fma(left_b, Lanes::set1(m), left_a);
  const F first = nearest(Lanes::mul(along, Lanes::set1(n / (1.0f + m * m))));
  const F point = Lanes::fma(second, Lanes::set1(p), first);
  const F s = Lanes::fma(nearest(Lanes::mul(point, Lanes::set1(1.0f / n))), Lanes::set1(-n), point);  // modulo N
  parts[0] = Lanes::round(Lanes::fma(s, Lanes::set1(-1.0f / n), xa));
  parts[1] = Lanes::round(Lanes::fma(s, Lanes::set1(-m / n), xb));
  parts[2] = Lanes::round(s);
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
