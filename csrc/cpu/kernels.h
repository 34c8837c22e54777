// Every kernel but the matmuls (linear.h), as one table of functions per instruction set.
#pragma once

#include <cstdint>

#include "cache.h"
#include "isa.h"

namespace exl2 {

enum class FloatType : int32_t { kF16 = 0, kBF16 = 1, kF32 = 2 };

struct Kernels {
  // out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps), one row of n; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // One head in place: dimensions i and i + half turn together by the angle of cos[i], sin[i]; i < half.
  void (*rope)(float* x, int64_t half, const float* cos, const float* sin);
  // out[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + e^-g); out may be gate.
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*scale)(float* x, float factor, int64_t n);
  // x += y
  void (*add)(float* x, const float* y, int64_t n);
  void (*to_float)(FloatType type, const void* x, int64_t n, float* out);
  // out[i] = e^x[i]
  void (*exp)(const float* x, int64_t n, float* out);
  // Round to nearest even; beyond the range of half it saturates.
  void (*to_half)(const float* x, int64_t n, uint16_t* out);
  // Of a row: reads it at the speed of memory, which is what the read bandwidth is measured with.
  float (*sum)(const float* x, int64_t n);
  // out[i] = the largest of block i of a row: x[i * block], ..., x[min((i + 1) * block, n) - 1]; no NaN among them.
  void (*block_max)(const float* x, int64_t n, int64_t block, float* out);
  // Writes one token's key and value (D each) into the cache.
  void (*store_token)(const CacheHead& cache, int64_t position, const float* key, const float* value);
  // Causal softmax attention in one pass over the cache.
  void (*attention)(const AttentionTask& task);
};

const Kernels* kernels_generic();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
// Of an instruction set that is available here.
const Kernels* kernels_of(Isa isa);

}  // namespace exl2
