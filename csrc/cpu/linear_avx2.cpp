// Linear layers with AVX2, FMA and F16C. The 16 columns of a Lanes are two registers, a (columns 0..7) and b (8..15).
// What each operation means is said, under the same name, by the scalar Lanes of linear_generic.cpp.
#define EXL2_ISA linear_avx2
#include <immintrin.h>

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

struct Lanes {
  static constexpr int kTokens = 4;  // x 2 registers: of 16-bit sums, and as many of others. 3, 5 and 6 are as fast.
  static constexpr int kStageTiles = 1;
  static constexpr int kDirectTokens = 2;
  static constexpr int kChains = 1;  // two registers, whose sums take a cycle
  static constexpr bool kWidthMatters = true;
  static constexpr bool kSums = false;  // pmaddubsw's sums of two products would not fit 16 bits
  static constexpr bool kTiles = false;
  static constexpr int kDecodeAhead = 24576;  // linear_ahead.h
  static constexpr bool kAskInCall = true;
  static constexpr bool kAskIntoL2 = false;

  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };
  struct Acc {
    I wide;    // int32 per column
    I narrow;  // two int16 per column: products of the current slab that are not in `wide` yet
  };

  static const __m256i* at(const void* p, int i) { return static_cast<const __m256i*>(p) + i; }
  static __m256i mask(int n) {  // first n of 8 lanes
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  // floats
  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
  static F load_partial(const float* p, int n) {
    if (n == 16) return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
    return {_mm256_maskload_ps(p, mask(n)), _mm256_maskload_ps(p + 8, mask(n - 8))};
  }
  static F floats_of_halves(__m256i half) {
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
  }
  static F load_f16(const uint16_t* p) { return floats_of_halves(_mm256_load_si256(at(p, 0))); }
  static F load_bf16(const uint16_t* p) {
    const I wide = load_u16(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(wide.b, 16))};
  }
  static __m256 lookup8(const float* table, __m128i index) {  // index: 8 bytes
    const __m256i i = _mm256_cvtepu8_epi32(index);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), i);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));  // bit 3 of the code
  }
  static F lookup(const float* table, const uint8_t* nibbles) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(nibbles)), low = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    return {lookup8(table, codes), lookup8(table, _mm_srli_si128(codes, 8))};
  }
  static void store(float* p, F v) { _mm256_store_ps(p, v.a), _mm256_store_ps(p + 8, v.b); }
  static void store_partial(float* p, F v, int n) {
    if (n == 16) {
      _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b);
    } else {
      _mm256_maskstore_ps(p, mask(n), v.a), _mm256_maskstore_ps(p + 8, mask(n - 8), v.b);
    }
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F max_abs(F x, F y) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_max_ps(x.a, _mm256_andnot_ps(sign, y.a)), _mm256_max_ps(x.b, _mm256_andnot_ps(sign, y.b))};
  }
  static F even_quads(F x, F y) {
    return {_mm256_permute2f128_ps(x.a, x.b, 0x20), _mm256_permute2f128_ps(y.a, y.b, 0x20)};
  }
  static F odd_quads(F x, F y) {
    return {_mm256_permute2f128_ps(x.a, x.b, 0x31), _mm256_permute2f128_ps(y.a, y.b, 0x31)};
  }
  static float reduce_max(F x) {
    alignas(32) float v[8];
    _mm256_store_ps(v, _mm256_max_ps(x.a, x.b));
    float out = v[0];
    for (int i = 1; i < 8; i++) out = v[i] > out ? v[i] : out;
    return out;
  }
  static float reduce_add(F x) {
    alignas(32) float v[8];
    _mm256_store_ps(v, _mm256_add_ps(x.a, x.b));
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }

  // integers
  static I zero_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I set1_i(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  static I load_u16(const uint16_t* p) {
    const __m256i half = _mm256_load_si256(at(p, 0));
    return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(half)),
            _mm256_cvtepu16_epi32(_mm256_extracti128_si256(half, 1))};
  }
  static I add_i(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static I sub_i(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
  static I shift_left(I x, int by) { return {_mm256_slli_epi32(x.a, by), _mm256_slli_epi32(x.b, by)}; }
  static I high_byte(I x) {
    const I rounded = add_i(x, set1_i(128));
    return {_mm256_srai_epi32(rounded.a, 8), _mm256_srai_epi32(rounded.b, 8)};
  }
  static I pair_words(I low, I high) {
    const I above = shift_left(high, 16);
    return {_mm256_blend_epi16(low.a, above.a, 0xaa), _mm256_blend_epi16(low.b, above.b, 0xaa)};
  }
  static I round(F x) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_cvtps_epi32(_mm256_round_ps(x.a, kNearest)), _mm256_cvtps_epi32(_mm256_round_ps(x.b, kNearest))};
  }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static int32_t reduce_add_i(I x) {
    alignas(32) int32_t v[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(v), _mm256_add_epi32(x.a, x.b));
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }
  static void store_bytes(int32_t* p, I x) {  // values fit int8: saturation never acts
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  static void store_words(int32_t* p, I x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8));
  }

  // codes
  static I load_line(const uint8_t* p) { return {_mm256_load_si256(at(p, 0)), _mm256_load_si256(at(p, 1))}; }
  static void store_line(uint8_t* p, I x) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), x.a), _mm256_store_si256(reinterpret_cast<__m256i*>(p) + 1, x.b);
  }
  template <int BY>
  static I shift_right16(I x) {
    return {_mm256_srli_epi16(x.a, BY), _mm256_srli_epi16(x.b, BY)};
  }
  template <int BY>
  static I shift_left16(I x) {
    return {_mm256_slli_epi16(x.a, BY), _mm256_slli_epi16(x.b, BY)};
  }
  template <int MASK>
  static I and_bytes(I x) {
    return {_mm256_and_si256(x.a, _mm256_set1_epi8(MASK)), _mm256_and_si256(x.b, _mm256_set1_epi8(MASK))};
  }
  template <int MASK>
  static I or_masked(I x, I y) {
    const I masked = and_bytes<MASK>(y);
    return {_mm256_or_si256(x.a, masked.a), _mm256_or_si256(x.b, masked.b)};
  }
  template <int MASK>
  static I and_halves(I x) {
    const __m256i mask = _mm256_set1_epi16(short(MASK));
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  }
  template <int MASK>
  static I or_masked_halves(I x, I y) {
    const I masked = and_halves<MASK>(y);
    return {_mm256_or_si256(x.a, masked.a), _mm256_or_si256(x.b, masked.b)};
  }
  static void rows_of_halves(F* rows, I line) {
    rows[0] = floats_of_halves(line.a), rows[1] = floats_of_halves(line.b);
  }
  static void rows_of_quad(F* rows, I code) {
    const __m256i byte = _mm256_set1_epi32(255);
    const auto row = [&](__m256i a, __m256i b) {
      return to_float({_mm256_and_si256(a, byte), _mm256_and_si256(b, byte)});
    };
    rows[0] = row(code.a, code.b);
    rows[1] = row(_mm256_srli_epi32(code.a, 8), _mm256_srli_epi32(code.b, 8));
    rows[2] = row(_mm256_srli_epi32(code.a, 16), _mm256_srli_epi32(code.b, 16));
    rows[3] = row(_mm256_srli_epi32(code.a, 24), _mm256_srli_epi32(code.b, 24));
  }

  // products
  // The upper half of each lane of `a` is 0: the sum of the 16-bit pair products is the whole product.
  static I multiply16(I a, int32_t b) {
    return {_mm256_madd_epi16(a.a, _mm256_set1_epi32(b)), _mm256_madd_epi16(a.b, _mm256_set1_epi32(b))};
  }
  static Acc start(I value) { return {value, zero_i()}; }
  static void words_of_quad(I* words, I code, I zero) {
    const auto split = [](__m256i& even, __m256i& odd, __m256i bytes, __m256i z) {
      const __m256i both = _mm256_or_si256(z, _mm256_slli_epi32(z, 16));
      even = _mm256_sub_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(255)), both);
      odd = _mm256_sub_epi16(_mm256_srli_epi16(bytes, 8), both);
    };
    split(words[0].a, words[1].a, code.a, zero.a);
    split(words[0].b, words[1].b, code.b, zero.b);
  }
  // GCC knows that sums may be taken in any order, and would first make all products of a block, which fit no
  // registers; it cannot see into an empty instruction. Without it (Zen 5) words take twice the time, bytes half more.
  static void in_this_order(I& sum) { asm("" : "+x"(sum.a), "+x"(sum.b)); }
  static EXL2_INLINE I dot2(I acc, I words, int32_t x) {
    const __m256i value = _mm256_set1_epi32(x);
    I sum = add_i(acc, {_mm256_madd_epi16(words.a, value), _mm256_madd_epi16(words.b, value)});
    in_this_order(sum);
    return sum;
  }
  // pmaddubsw adds two products into 16 bits; DEPTH of its results fit one int16 sum. Only at 8 bits not even one does:
  // the code is split into its nibbles.
  template <int DEPTH, int J, bool LAST>
  static EXL2_INLINE void dot4(Acc& acc, I code, int32_t x) {
    const __m256i value = _mm256_set1_epi32(x), ones = _mm256_set1_epi16(1);
    if constexpr (DEPTH == 0) {
      const I low = and_bytes<15>(code), high = and_bytes<15>(shift_right16<4>(code));
      const __m256i sixteen = _mm256_set1_epi16(16);
      const auto dot = [&](__m256i l, __m256i h) {
        return _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(l, value), ones),
                                _mm256_madd_epi16(_mm256_maddubs_epi16(h, value), sixteen));
      };
      acc.wide = add_i(acc.wide, {dot(low.a, high.a), dot(low.b, high.b)});
      in_this_order(acc.wide);
    } else {
      const I pairs = {_mm256_maddubs_epi16(code.a, value), _mm256_maddubs_epi16(code.b, value)};
      if constexpr (J % DEPTH == 0) {
        acc.narrow = pairs;
      } else {
        acc.narrow = {_mm256_add_epi16(acc.narrow.a, pairs.a), _mm256_add_epi16(acc.narrow.b, pairs.b)};
      }
      in_this_order(acc.narrow);
      if constexpr ((J + 1) % DEPTH == 0 || LAST) {
        acc.wide = add_i(acc.wide, {_mm256_madd_epi16(acc.narrow.a, ones), _mm256_madd_epi16(acc.narrow.b, ones)});
      }
    }
  }
  static I value(const Acc& acc) { return acc.wide; }
};

}  // namespace EXL2_ISA
}  // namespace exl2

#include "linear_product.h"

namespace exl2 {
const LinearKernels* linear_kernels_avx2() { return &EXL2_ISA::kKernels; }
}  // namespace exl2
