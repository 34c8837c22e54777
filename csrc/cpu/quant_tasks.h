// What the quantizer's kernels work on. Matrices are (rows, columns) row-major float32.
#pragma once

#include <cstdint>

#include "isa.h"

namespace exl2 {

// x_k = base_k + sum_{i<k} coupling[k, i] * delta_i is rounded to the grid of step per column, giving rounded_k;
// delta_k = (reference_k - rounded_k) / pivots[k], with x_k itself where there is no reference.
// GPTQ: coupling = -U^T, pivots = diag(U), no reference. Coordinate descent: coupling = H[k, i] / H[k, k], pivots 1,
// reference = the values before.
struct RoundTask {
  const float* base;
  const float* reference;  // or null
  const float* coupling;   // (rows, rows), lower triangle
  int64_t coupling_stride;
  const float* pivots;  // (rows)
  const float* steps;   // (columns)
  int64_t rows, columns;
  int32_t bits;
  float* delta;
  float* rounded;
  uint8_t* codes;
};

// For each of `maxima` candidates of the group's maximum, given as units[m] = fp16(max / 256): per column the code among
// middles[m] + first_offset ... + last_offset with the least sum_k weights[k] (x - rounded x)^2.
struct SearchTask {
  const float* group;
  const float* weights;    // (rows)
  const float* units;      // (maxima)
  const uint8_t* middles;  // (maxima, columns)
  int64_t rows, columns, maxima;
  int32_t bits, first_offset, last_offset;
  uint8_t* codes;  // (maxima, columns)
};

struct QuantKernels {
  void (*round_columns)(const RoundTask& task, int64_t begin, int64_t end);
  // Adds each maximum's cost over these columns to totals (maxima).
  void (*search_columns)(const SearchTask& task, int64_t begin, int64_t end, double* totals);
};

const QuantKernels* quant_kernels_generic();
const QuantKernels* quant_kernels_avx2();
const QuantKernels* quant_kernels_avx512();

}  // namespace exl2
