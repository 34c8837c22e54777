// How the tokens of a decode step share the memory of a CUDA block: ring of weights, sums, activations.
#pragma once

#include "attention.cuh"
#include "codes.h"

namespace exl2::cuda {

constexpr int kWorkers = 32 * kWarps;  // threads that multiply; two more warps feed them
// On Hopper it gives registers to the others, which only four warps together can do; two of them have nothing else to do.
constexpr int kFeeders = 128;
constexpr int kThreads = kWorkers + kFeeders;
constexpr int kMostSlots = 8;
constexpr int kFewestSlots = 3;
constexpr int kBatch = 8;  // strips (times tokens) whose sums are put together at once
static_assert(kBatch * kStripColumns <= kWorkers, "one thread per sum");

struct Step {
  Model model;
  int tokens;
  int slots;
  int batch;
  // Where things begin in shared memory, which starts with the ring. From sums_at on, attention has its own use for it.
  int barriers_at;  // full, empty: uint64 (kWarps, slots) each
  int turns_at;     // float (tokens, 2, rope_dim / 2): cosines and sines of the new tokens
  int zeros_at;     // 32 bytes of zeros
  int sums_at;      // float (batch, kWarps, tokens, 32)
  int ones_at;      // float (blocks of rows, ones_step): sums of activations; of one token: int32
  int gates_at;     // float (strips of the gate, tokens, 32)
  int input_at;     // half (tokens, padded_row); of one token, the upper two digits of each, then the low ones: fixed.h
};

EXL2_HD int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Elements of one token's activations in shared memory: rows start in other banks, so that 8 tokens do not collide.
__host__ __device__ __forceinline__ int64_t padded_row(int64_t in_features) {
  return in_features % 64 == 32 ? in_features : in_features + 32;
}

// Of one token: where the low digits begin behind the others, and float (in_features), what they are made of.
__host__ __device__ __forceinline__ int64_t lowest_offset(int64_t in_features) { return 2 * padded_row(in_features); }
__host__ __device__ __forceinline__ int64_t values_offset(int64_t in_features) {
  return lowest_offset(in_features) + in_features;
}

// From block to block of the sums of activations: room for pairs of tokens.
__host__ __device__ __forceinline__ int ones_step(int tokens) { return tokens == 1 ? 1 : (tokens + 1) / 2 * 2; }

// How `tokens` tokens share a CUDA block's memory; no slots if they do not fit. Fewer strips are put together at once where
// that makes room for one more slot.
inline Step arrange(const Model& model, int64_t gate_strips, int tokens, int64_t bytes) {
  Step step = {};
  step.model = model;
  step.tokens = tokens;
  const int64_t row = 4 * tokens * kStripColumns;
  const int64_t gates = row * ((gate_strips + model.grid - 1) / model.grid);
  const int64_t hidden = round_up(model.hidden, kBlockRows);
  const int64_t normalized = values_offset(hidden) + 4 * hidden;
  const int64_t widest = values_offset(model.widest_input);
  const int64_t input = tokens > 1            ? 2 * tokens * padded_row(model.widest_input)
                        : normalized > widest ? normalized
                                              : widest;
  const int64_t attention = attention_bytes(model.heads, model.kv_heads, static_cast<int>(model.head_dim));
  const int64_t turns = round_up(4 * tokens * model.rope_dim, 16);
  constexpr int64_t kZeros = 32;
  const int64_t ones = round_up(4 * ones_step(tokens) * (model.widest_input / kBlockRows), 16);
  const auto slots_beside = [&](int batch) {
    const int64_t working = round_up(row * kWarps * batch + gates + ones + input, 16);
    const int64_t left = bytes - turns - kZeros - (working > attention ? working : attention);
    const int64_t slots = left / (kWarps * (model.slot_bytes + 16));
    return static_cast<int>(slots < 0 ? 0 : slots > kMostSlots ? kMostSlots : slots);
  };
  step.batch = kBatch / tokens;
  step.slots = slots_beside((step.batch + 1) / 2);
  while (slots_beside(step.batch) < step.slots) --step.batch;
  const int64_t ring = kWarps * step.slots * model.slot_bytes;
  step.barriers_at = static_cast<int>(ring);
  step.turns_at = static_cast<int>(ring + 16 * kWarps * step.slots);
  step.zeros_at = static_cast<int>(step.turns_at + turns);
  step.sums_at = static_cast<int>(step.zeros_at + kZeros);
  step.gates_at = static_cast<int>(step.sums_at + row * kWarps * step.batch);
  step.ones_at = static_cast<int>(step.gates_at + gates);
  step.input_at = static_cast<int>(step.ones_at + ones);
  return step;
}

}  // namespace exl2::cuda
