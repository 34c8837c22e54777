// The quantizer's inner loops for one column, as the CUDA kernels run them; the CPU's, for a vector of columns, are in
// cpu/quant_solver.h. Same operations in the same order, so round_column gives the same bits as the CPU: a test compiles
// this file for the CPU and compares. Tasks: cpu/quant_tasks.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/quant_tasks.h"
#include "half.h"

namespace exl2::cuda {

EXL2_HD float lowest_code(int bits) { return -static_cast<float>(1 << (bits - 1)); }
EXL2_HD float highest_code(int bits) { return static_cast<float>((1 << (bits - 1)) - 1); }

// All rows of one column of a RoundTask. Its earlier deltas are read back from task.delta.
EXL2_HD void round_column(const RoundTask& task, int64_t column) {
  const float low = lowest_code(task.bits);
  const float high = highest_code(task.bits);
  const float step = fmaxf(task.steps[column], 1e-30f);
  for (int64_t k = 0; k < task.rows; ++k) {
    const int64_t at = k * task.columns + column;
    const float* coupling = task.coupling + k * task.coupling_stride;
    const float* delta = task.delta + column;
    float sums[4] = {};
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) {
      for (int j = 0; j < 4; ++j) sums[j] = fmaf(coupling[i + j], delta[(i + j) * task.columns], sums[j]);
    }
    for (; i < k; ++i) sums[0] = fmaf(coupling[i], delta[i * task.columns], sums[0]);
    const float x = task.base[at] + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    const float code = fminf(fmaxf(rintf(x / step), low), high);
    const float value = through_half(code * step);
    const float from = task.reference == nullptr ? x : task.reference[at];
    task.rounded[at] = value;
    task.delta[at] = (from - value) / task.pivots[k];
    task.codes[at] = static_cast<uint8_t>(static_cast<int>(code - low));
  }
}

// The best scale code of one column for candidate m of a SearchTask; returns what it costs.
EXL2_HD float search_column(const SearchTask& task, int64_t m, int64_t column) {
  const float low = lowest_code(task.bits);
  const float high = highest_code(task.bits);
  const int64_t at = m * task.columns + column;
  float best = INFINITY;
  uint8_t chosen = 0;
  for (int offset = task.first_offset; offset <= task.last_offset; ++offset) {
    int code = task.middles[at] + offset;
    code = code < 0 ? 0 : code > 15 ? 15 : code;
    const float root = static_cast<float>(code + 1);
    const float step = through_half(root * root * task.units[m]);
    const float scale = 1.0f / step;
    float cost = 0.0f;
    for (int64_t k = 0; k < task.rows; ++k) {
      const float x = task.group[k * task.columns + column];
      const float error = fmaf(fminf(fmaxf(rintf(x * scale), low), high), step, -x);
      cost = fmaf(error * error, task.weights[k], cost);
    }
    if (cost < best) {
      best = cost;
      chosen = static_cast<uint8_t>(code);
    }
  }
  task.codes[at] = chosen;
  return best;
}

}  // namespace exl2::cuda
