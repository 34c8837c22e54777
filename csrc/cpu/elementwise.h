// Kernels over one row: norm, rope, activation, conversions. Written once against vec.h.
#pragma once

#include "kernels.h"
#include "vec.h"

EXL2_ISA_BEGIN

// Calls body(i, n) for the vectors of a row of `size`: n is kWidth, but for a rest at the end.
template <typename Body>
EXL2_INLINE void each_vector(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) body(i, kWidth);
  if (i < size) body(i, static_cast<int>(size - i));
}

EXL2_INLINE F load_part(const float* p, int n) { return n == kWidth ? load(p) : load_first(p, n); }
EXL2_INLINE void store_part(float* p, F v, int n) { n == kWidth ? store(p, v) : store_first(p, v, n); }

static float square_sum(const float* x, int64_t n) {
  // Four sums: one alone would wait for the latency of each addition.
  F total[4] = {splat(0), splat(0), splat(0), splat(0)};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int lane = 0; lane < 4; ++lane) {
      const F v = load(x + i + lane * kWidth);
      total[lane] = fma(v, v, total[lane]);
    }
  }
  each_vector(n - i, [&](int64_t j, int part) {
    const F v = load_part(x + i + j, part);
    total[0] = fma(v, v, total[0]);
  });
  return sum(add(add(total[0], total[1]), add(total[2], total[3])));
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const F scale = splat(1.0f / __builtin_sqrtf(square_sum(x, n) / static_cast<float>(n) + eps));
  each_vector(n, [&](int64_t i, int part) {
    store_part(out + i, mul(mul(load_part(x + i, part), scale), load_part(weight + i, part)), part);
  });
}

static void rope(float* x, int64_t half, const float* cos, const float* sin) {
  each_vector(half, [&](int64_t i, int part) {
    const F c = load_part(cos + i, part), s = load_part(sin + i, part);
    const F a = load_part(x + i, part), b = load_part(x + half + i, part);
    store_part(x + i, sub(mul(a, c), mul(b, s)), part);
    store_part(x + half + i, fma(a, s, mul(b, c)), part);
  });
}

static void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  each_vector(n, [&](int64_t i, int part) {
    const F g = load_part(gate + i, part);
    const F silu = div(g, add(splat(1.0f), exp(sub(splat(0.0f), g))));
    store_part(out + i, mul(silu, load_part(up + i, part)), part);
  });
}

static void scale(float* x, float factor, int64_t n) {
  const F f = splat(factor);
  each_vector(n, [&](int64_t i, int part) { store_part(x + i, mul(load_part(x + i, part), f), part); });
}

static void add_rows(float* x, const float* y, int64_t n) {
  each_vector(
      n, [&](int64_t i, int part) { store_part(x + i, add(load_part(x + i, part), load_part(y + i, part)), part); });
}

static void exp_row(const float* x, int64_t n, float* out) {
  each_vector(n, [&](int64_t i, int part) { store_part(out + i, exp(load_part(x + i, part)), part); });
}

static void to_float(FloatType type, const void* x, int64_t n, float* out) {
  if (type == FloatType::kF32) {
    memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const uint16_t* half = static_cast<const uint16_t*>(x);
  int64_t i = 0;
  if (type == FloatType::kF16) {
    for (; i + kWidth <= n; i += kWidth) store(out + i, load_f16(half + i));
    for (; i < n; ++i) out[i] = half_to_float(half[i]);
  } else {
    for (; i + kWidth <= n; i += kWidth) store(out + i, load_bf16(half + i));
    for (; i < n; ++i) out[i] = bf16_to_float(half[i]);
  }
}

static float sum_row(const float* x, int64_t n) {
  F total[4] = {splat(0), splat(0), splat(0), splat(0)};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int lane = 0; lane < 4; ++lane) total[lane] = add(total[lane], load(x + i + lane * kWidth));
  }
  each_vector(n - i, [&](int64_t j, int part) { total[0] = add(total[0], load_part(x + i + j, part)); });
  return sum(add(add(total[0], total[1]), add(total[2], total[3])));
}

static void block_max(const float* x, int64_t n, int64_t block, float* out) {
  for (int64_t begin = 0; begin < n; begin += block, ++out) {
    const int64_t end = begin + block < n ? begin + block : n;
    float largest = x[begin];
    int64_t i = begin;
    if (begin + kWidth <= end) {
      F most = load(x + begin);
      for (i += kWidth; i + kWidth <= end; i += kWidth) most = max(most, load(x + i));
      largest = maximum(most);
    }
    for (; i < end; ++i) largest = x[i] > largest ? x[i] : largest;
    *out = largest;
  }
}

EXL2_INLINE F saturate_half(F v) { return min(max(v, splat(-65504.0f)), splat(65504.0f)); }

static void to_half(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_f16(out + i, saturate_half(load(x + i)));
  if (i < n) {
    uint16_t rest[kWidth];
    store_f16(rest, saturate_half(load_first(x + i, static_cast<int>(n - i))));
    memcpy(out + i, rest, static_cast<size_t>(n - i) * sizeof(uint16_t));
  }
}

EXL2_ISA_END
