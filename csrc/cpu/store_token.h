// Writing one token into the key/value cache (layout in cache.h).
#pragma once

#include "elementwise.h"

EXL2_ISA_BEGIN

// Scale of one block of at most 32 values: the largest magnitude becomes 127. The scale is rounded to half first, so
// that codes are chosen for the scale that will be read back; a block of zeros gets scale 0 and codes 0.
static uint16_t quantize_block(const float* x, int64_t n, int8_t* codes) {
  F largest = splat(0.0f);
  each_vector(n, [&](int64_t i, int part) { largest = max(largest, abs(load_part(x + i, part))); });
  // A step above the range of half would need values above 8e6; a step below 2^-24 rounds to zero.
  const float wanted = maximum(largest) * (1.0f / 127.0f);
  const uint16_t stored = float_to_half(wanted < 65504.0f ? wanted : 65504.0f);
  const float step = half_to_float(stored);
  const F inverse = splat(step > 0.0f ? 1.0f / step : 0.0f);
  each_vector(n, [&](int64_t i, int part) {
    const F whole = round(mul(load_part(x + i, part), inverse));
    int8_t bytes[kWidth];
    store_i8(bytes, min(max(whole, splat(-127.0f)), splat(127.0f)));
    memcpy(codes + i, bytes, static_cast<size_t>(part));
  });
  return stored;
}

static void store_token_f16(const CacheHead& cache, int64_t position, const float* key, const float* value) {
  const int64_t tile = position / kTileTokens, lane = position % kTileTokens;
  uint16_t* k = static_cast<uint16_t*>(cache.k) + tile * cache.D * kTileTokens + lane;
  uint16_t halves[kMaxHeadDim];
  to_half(key, cache.D, halves);
  for (int64_t d = 0; d < cache.D; ++d) k[d * kTileTokens] = halves[d];
  uint16_t* v = static_cast<uint16_t*>(cache.v) + position * cache.Dp;
  to_half(value, cache.D, v);
  // The attention reads whole vectors: the padding must not be NaN.
  for (int64_t d = cache.D; d < cache.Dp; ++d) v[d] = 0;
}

static void store_token_q8(const CacheHead& cache, int64_t position, const float* key, const float* value) {
  const int64_t tile = position / kTileTokens, lane = position % kTileTokens;
  int8_t* k = static_cast<int8_t*>(cache.k) + tile * cache.D * kTileTokens + lane;
  int8_t* v = static_cast<int8_t*>(cache.v) + position * cache.Dp;
  const int64_t scales = tile * cache.blocks * kTileTokens + lane;
  for (int64_t block = 0; block < cache.blocks; ++block) {
    const int64_t begin = block * kQuantBlock;
    const int64_t n = cache.D - begin < kQuantBlock ? cache.D - begin : kQuantBlock;
    int8_t codes[kQuantBlock];
    cache.k_scale[scales + block * kTileTokens] = quantize_block(key + begin, n, codes);
    for (int64_t d = 0; d < n; ++d) k[(begin + d) * kTileTokens] = codes[d];
    cache.v_scale[scales + block * kTileTokens] = quantize_block(value + begin, n, v + begin);
  }
  for (int64_t d = cache.D; d < cache.Dp; ++d) v[d] = 0;
}

static void store_token(const CacheHead& cache, int64_t position, const float* key, const float* value) {
  (cache.q8 ? store_token_q8 : store_token_f16)(cache, position, key, value);
}

EXL2_ISA_END
