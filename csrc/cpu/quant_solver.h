// The quantizer's two inner loops, for a range of columns of one row group; included by the quant_solver_*.cpp files.
// Columns are independent of each other, so they are what is vectorized and split between threads.
// The torch versions in exl2_tui/core/quant/kernels.py say the same, slower.
#pragma once

#include "quant_tasks.h"
#include "vec.h"

EXL2_ISA_BEGIN

// The fp16 step of a scale code, given fp16(max / 256).
EXL2_INLINE float step_of(int code, float unit) {
  const float root = static_cast<float>(code + 1);
  return half_to_float(float_to_half(root * root * unit));
}

// Rows base_k + sum_{i<k} coupling[k, i] * delta_i, each rounded as soon as it is known (see RoundTask).
static void round_columns(const RoundTask& task, int64_t begin, int64_t end) {
  const float low = -static_cast<float>(1 << (task.bits - 1));
  const float high = static_cast<float>((1 << (task.bits - 1)) - 1);
  for (int64_t column = begin; column < end; column += kWidth) {
    const int count = static_cast<int>(end - column < kWidth ? end - column : kWidth);
    const F step = max(load_first(task.steps + column, count), splat(1e-30f));  // beyond `count` the steps read 0
    for (int64_t k = 0; k < task.rows; ++k) {
      const int64_t at = k * task.columns + column;
      const float* coupling = task.coupling + k * task.coupling_stride;
      F x = load_first(task.base + at, count);
      // Four sums, so that the additions of one do not wait for each other.
      F s0 = splat(0.0f), s1 = s0, s2 = s0, s3 = s0;
      int64_t i = 0;
      for (; i + 4 <= k; i += 4) {
        const float* delta = task.delta + i * task.columns + column;
        s0 = fma(splat(coupling[i]), load_first(delta, count), s0);
        s1 = fma(splat(coupling[i + 1]), load_first(delta + task.columns, count), s1);
        s2 = fma(splat(coupling[i + 2]), load_first(delta + 2 * task.columns, count), s2);
        s3 = fma(splat(coupling[i + 3]), load_first(delta + 3 * task.columns, count), s3);
      }
      for (; i < k; ++i) {
        s0 = fma(splat(coupling[i]), load_first(task.delta + i * task.columns + column, count), s0);
      }
      x = add(x, add(add(s0, s1), add(s2, s3)));
      const F code = min(max(round(div(x, step)), splat(low)), splat(high));
      uint16_t halves[kWidth];
      store_f16(halves, mul(code, step));
      const F value = load_f16(halves);
      const F from = task.reference == nullptr ? x : load_first(task.reference + at, count);
      store_first(task.rounded + at, value, count);
      store_first(task.delta + at, div(sub(from, value), splat(task.pivots[k])), count);
      float codes[kWidth];
      store(codes, code);
      for (int j = 0; j < count; ++j) task.codes[at + j] = static_cast<uint8_t>(static_cast<int>(codes[j] - low));
    }
  }
}

// For every column and every maximum the scale code with the least weighted error (see SearchTask).
static void search_columns(const SearchTask& task, int64_t begin, int64_t end, double* totals) {
  const F low = splat(-static_cast<float>(1 << (task.bits - 1)));
  const F high = splat(static_cast<float>((1 << (task.bits - 1)) - 1));
  for (int64_t column = begin; column < end; column += kWidth) {
    const int count = static_cast<int>(end - column < kWidth ? end - column : kWidth);
    for (int64_t m = 0; m < task.maxima; ++m) {
      float best[kWidth];
      uint8_t chosen[kWidth] = {};
      for (int j = 0; j < kWidth; ++j) best[j] = __builtin_inff();
      for (int offset = task.first_offset; offset <= task.last_offset; ++offset) {
        int codes[kWidth] = {};
        float steps[kWidth], inverse[kWidth], costs[kWidth];
        for (int j = 0; j < kWidth; ++j) {
          const int64_t at = column + (j < count ? j : 0);
          codes[j] = task.middles[m * task.columns + at] + offset;
          codes[j] = codes[j] < 0 ? 0 : codes[j] > 15 ? 15 : codes[j];
          steps[j] = step_of(codes[j], task.units[m]);
          inverse[j] = 1.0f / steps[j];
        }
        const F step = load(steps), scale = load(inverse);
        F cost = splat(0.0f);
        for (int64_t k = 0; k < task.rows; ++k) {
          const F x = load_first(task.group + k * task.columns + column, count);
          const F error = sub(mul(min(max(round(mul(x, scale)), low), high), step), x);
          cost = fma(mul(error, error), splat(task.weights[k]), cost);
        }
        store(costs, cost);
        for (int j = 0; j < count; ++j) {
          if (costs[j] < best[j]) {
            best[j] = costs[j];
            chosen[j] = static_cast<uint8_t>(codes[j]);
          }
        }
      }
      for (int j = 0; j < count; ++j) {
        totals[m] += best[j];
        task.codes[m * task.columns + column + j] = chosen[j];
      }
    }
  }
}

static constexpr QuantKernels kQuantTable = {round_columns, search_columns};

EXL2_ISA_END
