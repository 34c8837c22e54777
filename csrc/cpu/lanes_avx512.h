// The vectors of linear layers with AVX-512 (F, BW, DQ, VL, VNNI, VBMI: Ice Lake, Zen 4 and later), for the
// linear_*.cpp files that differ in what they make of them. What each operation means is said, under the same name, by
// the scalar Lanes of linear_generic.cpp.
#pragma once

// GCC 12's own headers start from "undefined" vectors and warn about them (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

struct Avx512Lanes {
  // 6 tokens x 2 tiles are 12 integer and 12 float sums of the 32 registers. 2 weights + 6 broadcast activations are
  // 8 loads for 12 products: the two load ports keep ahead of the two multipliers.
  static constexpr int kTokens = 6;
  static constexpr int kStageTiles = 2;
  static constexpr bool kTiles = false;
  static constexpr int kDirectTokens = 4;
  static constexpr int kChains = 4;
  static constexpr bool kWidthMatters = false;

  using F = __m512;
  using I = __m512i;
  using Acc = __m512i;

  static __mmask16 first(int n) { return __mmask16((1u << n) - 1); }

  // floats
  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float a) { return _mm512_set1_ps(a); }
  static F load(const float* p) { return _mm512_load_ps(p); }
  static F load_partial(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(load_u16(p), 16)); }
  static F lookup(const float* table, const uint8_t* nibbles) {
    // Lane c needs nibble c of the 8 bytes in its low 4 bits (the permutation ignores the rest): bits 4c.. of the
    // broadcast word, taken as byte 0 of the lane.
    int64_t word;
    memcpy(&word, nibbles, 8);
    const I at = _mm512_set_epi64(0x3c00000038, 0x3400000030, 0x2c00000028, 0x2400000020, 0x1c00000018, 0x1400000010,
                                  0x0c00000008, 0x0400000000);
    return _mm512_permutexvar_ps(_mm512_multishift_epi64_epi8(at, _mm512_set1_epi64(word)), _mm512_load_ps(table));
  }
  static void store(float* p, F a) { _mm512_store_ps(p, a); }
  static void store_partial(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max_abs(F a, F b) { return _mm512_max_ps(a, _mm512_abs_ps(b)); }
  static F even_quads(F a, F b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
  static F odd_quads(F a, F b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  static float reduce_add(F a) { return _mm512_reduce_add_ps(a); }

  // integers
  static I zero_i() { return _mm512_setzero_si512(); }
  static I set1_i(int32_t a) { return _mm512_set1_epi32(a); }
  static I load_u16(const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_i(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I shift_left(I a, int by) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(by)); }
  static I add_products(I acc, I a, I b) {
    return _mm512_dpwssd_epi32(acc, _mm512_and_si512(a, _mm512_set1_epi32(0xffff)), b);
  }
  static I add_neighbours(I acc, I a) {
    return _mm512_mask_add_epi32(acc, 0x5555, acc, _mm512_mul_epi32(a, _mm512_srli_epi64(a, 32)));
  }
  static I high_byte(I a) { return _mm512_srai_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(128)), 8); }
  static I pair_words(I low, I high) { return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16)); }
  static I pack_bytes(const I* rows) {
    const I even = pair_words(rows[0], rows[2]), odd = _mm512_slli_epi16(pair_words(rows[1], rows[3]), 8);
    return _mm512_ternarylogic_epi32(even, odd, _mm512_set1_epi32(0x00ff00ff), 0xec);  // (even & mask) | odd
  }
  static I round(F a) { return _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static int32_t reduce_add_i(I a) { return _mm512_reduce_add_epi32(a); }
  static void store_bytes(int32_t* p, I a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
  static void store_words(int32_t* p, I a) {
    const I words = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(a));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_castsi512_si256(_mm512_shufflehi_epi16(_mm512_shufflelo_epi16(words, 0xd8), 0xd8)));
  }

  // codes
  static I load_line(const uint8_t* p) { return _mm512_load_si512(p); }
  static void store_line(uint8_t* p, I a) { _mm512_store_si512(p, a); }
  template <int BY>
  static I shift_right16(I a) {
    return _mm512_srli_epi16(a, BY);
  }
  template <int BY>
  static I shift_left16(I a) {
    return _mm512_slli_epi16(a, BY);
  }
  template <int MASK>
  static I and_bytes(I a) {
    return _mm512_and_si512(a, _mm512_set1_epi8(MASK));
  }
  template <int MASK>
  static I or_masked(I a, I b) {
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(MASK), 0xf8);  // a | (b & c)
  }
  template <int MASK>
  static I and_halves(I a) {
    return _mm512_and_si512(a, _mm512_set1_epi16(short(MASK)));
  }
  template <int MASK>
  static I or_masked_halves(I a, I b) {
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi16(short(MASK)), 0xf8);
  }
  static void rows_of_halves(F* rows, I line) {
    rows[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(line));
    rows[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(line, 1));
  }
  static void rows_of_quad(F* rows, I code) {
    const I byte = _mm512_set1_epi32(255);
    rows[0] = _mm512_cvtepi32_ps(_mm512_and_si512(code, byte));
    rows[1] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(code, 8), byte));
    rows[2] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(code, 16), byte));
    rows[3] = _mm512_cvtepi32_ps(_mm512_srli_epi32(code, 24));
  }

  // products
  // Left alone, GCC reorders products and keeps a sum in several registers by turns, until none are left and it spills.
  // Measured (Zen 5, one core, 4.75 bits): decoding 58 tokens/s where it is 60.4; products of sums 13 % slower.
  static EXL2_INLINE void in_this_order(I& sum) { asm volatile("" : "+v"(sum)); }
  // The upper half of each lane of `a` is 0: the sum of the 16-bit pair products is the whole product, at a fraction of
  // the cost of a 32-bit one.
  static I multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I multiply16(I a, int32_t b) { return _mm512_madd_epi16(a, set1_i(b)); }
  static Acc start(I value) { return value; }
  static void words_of_quad(I* words, I code, I zero) {
    const I both = _mm512_or_si512(zero, _mm512_slli_epi32(zero, 16));
    words[0] = _mm512_sub_epi16(_mm512_and_si512(code, _mm512_set1_epi16(255)), both);
    words[1] = _mm512_sub_epi16(_mm512_srli_epi16(code, 8), both);
  }
  static EXL2_INLINE I dot2(I acc, I words, int32_t x) {
    acc = _mm512_dpwssd_epi32(acc, words, set1_i(x));
    in_this_order(acc);
    return acc;
  }
  template <int DEPTH, int J, bool LAST>
  static EXL2_INLINE void dot4(Acc& acc, I code, int32_t x) {
    acc = _mm512_dpbusd_epi32(acc, code, set1_i(x));
    in_this_order(acc);
  }
  static I sub_bytes(I a, I b) { return _mm512_sub_epi8(a, b); }
  static EXL2_INLINE Acc dot_sums(Acc acc, I a, I b, int32_t xa, int32_t xb) {
    acc = _mm512_dpbusd_epi32(acc, _mm512_add_epi8(a, set1_i(xb)), _mm512_add_epi8(b, set1_i(xa)));
    in_this_order(acc);
    return acc;
  }
  static EXL2_INLINE I dot2_sums(I acc, I a, I b, int32_t xa, int32_t xb) {
    acc = _mm512_dpwssd_epi32(acc, _mm512_add_epi16(a, set1_i(xb)), _mm512_add_epi16(b, set1_i(xa)));
    in_this_order(acc);
    return acc;
  }
  static I value(Acc acc) { return acc; }
};

// Of Intel's processors, which have two units that multiply vectors or add them, and no more: plain products.
struct IntelLanes : Avx512Lanes {
  static constexpr bool kSums = false;
  static constexpr int kDecodeAhead = 16384;  // linear_ahead.h
  static constexpr bool kAskInCall = false;
  static constexpr bool kAskIntoL2 = true;
};

}  // namespace EXL2_ISA
}  // namespace exl2
