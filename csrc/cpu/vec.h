// One float32 vector per instruction set, with the scalar body beside each SIMD body. Kernels written against it
// (elementwise.h, attention.h) exist once and are compiled per instruction set.
//
// Everything is in the namespace of the instruction set (isa.h) and static, so that no two files share code.
#pragma once

#include <stdint.h>
#include <string.h>

#include "isa.h"

#if defined(EXL2_ISA_AVX2) || defined(EXL2_ISA_AVX512)
#include <immintrin.h>
#endif

EXL2_ISA_BEGIN

#define EXL2_INLINE static inline __attribute__((always_inline))

EXL2_INLINE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

EXL2_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// IEEE half to float without float subnormals in between, which a process may have switched off.
EXL2_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t rest = (half & 0x7fffu) << 13;
  if ((half & 0x7c00u) == 0x7c00u) return float_of_bits(sign | 0x7f800000u | rest);
  if ((half & 0x7c00u) == 0) return float_of_bits(sign | bits_of_float(float_of_bits(rest + (113u << 23)) - 0x1p-14f));
  return float_of_bits(sign | (rest + (112u << 23)));
}

// Round to nearest even, including subnormals.
EXL2_INLINE uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520: rounds to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at the last subnormal bit
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

EXL2_INLINE float bf16_to_float(uint16_t value) { return float_of_bits(static_cast<uint32_t>(value) << 16); }

// ---- the vector ----------------------------------------------------------------------------------------------------

#if defined(EXL2_ISA_AVX512)

using F = __m512;
constexpr int kWidth = 16;
constexpr int kRegisters = 32;

EXL2_INLINE F splat(float x) { return _mm512_set1_ps(x); }
EXL2_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
EXL2_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
EXL2_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
EXL2_INLINE F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
EXL2_INLINE void store_first(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
EXL2_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
EXL2_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
EXL2_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
EXL2_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
EXL2_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
EXL2_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
EXL2_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
EXL2_INLINE F abs(F a) { return _mm512_abs_ps(a); }
EXL2_INLINE F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EXL2_INLINE float sum(F v) { return _mm512_reduce_add_ps(v); }
EXL2_INLINE float maximum(F v) { return _mm512_reduce_max_ps(v); }
// v where below <= x, else 0
EXL2_INLINE F zero_below(F v, F x, float below) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(below), _CMP_GE_OQ), v);
}
// v * 2^n for whole n in [-126, 127]
EXL2_INLINE F scale_by_power(F v, F n) { return _mm512_scalef_ps(v, n); }
EXL2_INLINE F load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
EXL2_INLINE void store_f16(uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
EXL2_INLINE F load_bf16(const uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
EXL2_INLINE F load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// Whole numbers in [-128, 127] to bytes.
EXL2_INLINE void store_i8(int8_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

#elif defined(EXL2_ISA_AVX2)

using F = __m256;
constexpr int kWidth = 8;
constexpr int kRegisters = 16;

EXL2_INLINE F splat(float x) { return _mm256_set1_ps(x); }
EXL2_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
EXL2_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
EXL2_INLINE __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
EXL2_INLINE F load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
EXL2_INLINE void store_first(float* p, F v, int n) { _mm256_maskstore_ps(p, first(n), v); }
EXL2_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
EXL2_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
EXL2_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
EXL2_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
EXL2_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
EXL2_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
EXL2_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
EXL2_INLINE F abs(F a) { return _mm256_andnot_ps(splat(-0.0f), a); }
EXL2_INLINE F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
EXL2_INLINE float sum(F v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
EXL2_INLINE float maximum(F v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
EXL2_INLINE F zero_below(F v, F x, float below) { return _mm256_and_ps(v, _mm256_cmp_ps(x, splat(below), _CMP_GE_OQ)); }
EXL2_INLINE F scale_by_power(F v, F n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(v, _mm256_castsi256_ps(exponent));
}
EXL2_INLINE F load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
EXL2_INLINE void store_f16(uint16_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
EXL2_INLINE F load_bf16(const uint16_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
EXL2_INLINE F load_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
EXL2_INLINE void store_i8(int8_t* p, F v) {
  const __m256i whole = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

#else

// Eight floats in an array: plain loops, which every compiler turns into the vectors of its baseline.
struct F {
  float at[8];
};
constexpr int kWidth = 8;
constexpr int kRegisters = 16;

#define EXL2_EACH(expression)                              \
  F r;                                                     \
  for (int i = 0; i < kWidth; ++i) r.at[i] = (expression); \
  return r

EXL2_INLINE F splat(float x) { EXL2_EACH(x); }
EXL2_INLINE F load(const float* p) { EXL2_EACH(p[i]); }
EXL2_INLINE void store(float* p, F v) { memcpy(p, v.at, sizeof(v.at)); }
EXL2_INLINE F load_first(const float* p, int n) { EXL2_EACH(i < n ? p[i] : 0.0f); }
EXL2_INLINE void store_first(float* p, F v, int n) { memcpy(p, v.at, sizeof(float) * static_cast<size_t>(n)); }
EXL2_INLINE F add(F a, F b) { EXL2_EACH(a.at[i] + b.at[i]); }
EXL2_INLINE F sub(F a, F b) { EXL2_EACH(a.at[i] - b.at[i]); }
EXL2_INLINE F mul(F a, F b) { EXL2_EACH(a.at[i] * b.at[i]); }
EXL2_INLINE F div(F a, F b) { EXL2_EACH(a.at[i] / b.at[i]); }
EXL2_INLINE F fma(F a, F b, F c) { EXL2_EACH(a.at[i] * b.at[i] + c.at[i]); }
EXL2_INLINE F min(F a, F b) { EXL2_EACH(a.at[i] < b.at[i] ? a.at[i] : b.at[i]); }
EXL2_INLINE F max(F a, F b) { EXL2_EACH(a.at[i] > b.at[i] ? a.at[i] : b.at[i]); }
EXL2_INLINE F abs(F a) { EXL2_EACH(a.at[i] < 0.0f ? -a.at[i] : a.at[i]); }
EXL2_INLINE F round(F a) { EXL2_EACH(__builtin_rintf(a.at[i])); }
EXL2_INLINE float sum(F v) {
  return ((v.at[0] + v.at[4]) + (v.at[2] + v.at[6])) + ((v.at[1] + v.at[5]) + (v.at[3] + v.at[7]));
}
EXL2_INLINE float maximum(F v) {
  float m = v.at[0];
  for (int i = 1; i < kWidth; ++i) m = v.at[i] > m ? v.at[i] : m;
  return m;
}
EXL2_INLINE F zero_below(F v, F x, float below) { EXL2_EACH(x.at[i] >= below ? v.at[i] : 0.0f); }
EXL2_INLINE F scale_by_power(F v, F n) {
  EXL2_EACH(v.at[i] * float_of_bits(static_cast<uint32_t>(static_cast<int32_t>(n.at[i]) + 127) << 23));
}
EXL2_INLINE F load_f16(const uint16_t* p) { EXL2_EACH(half_to_float(p[i])); }
EXL2_INLINE void store_f16(uint16_t* p, F v) {
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_half(v.at[i]);
}
EXL2_INLINE F load_bf16(const uint16_t* p) { EXL2_EACH(bf16_to_float(p[i])); }
EXL2_INLINE F load_i8(const int8_t* p) { EXL2_EACH(static_cast<float>(p[i])); }
EXL2_INLINE void store_i8(int8_t* p, F v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(__builtin_rintf(v.at[i]));
}
#undef EXL2_EACH

#endif

// ---- functions of vectors, once for all ----------------------------------------------------------------------------

// e^x with a relative error below 3e-7; exactly 0 below -87, where float32 ends, and so for -infinity.
EXL2_INLINE F exp(F x) {
  constexpr float kLowest = -87.0f;
  const F clamped = min(max(x, splat(kLowest)), splat(88.0f));
  const F n = round(mul(clamped, splat(1.44269504f)));
  // x - n ln 2 in two steps: the high part of ln 2 has few bits, so n times it is exact
  const F r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), clamped));
  F p = splat(1.0f / 720);  // Taylor: |r| <= ln 2 / 2, so the first term left out is r^7 / 5040 < 1.2e-7
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return zero_below(scale_by_power(p, n), x, kLowest);
}

EXL2_ISA_END
