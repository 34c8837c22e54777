// The prompt path's elementwise work, one call per one or four pairs of elements or per element.
// Same operations in the same order as torch's, none of them fused, so rope gives the same bits as rope.rotate: a test
// compiles this file for the CPU and compares.
#pragma once

#include <cmath>
#include <cstdint>

#include "half.h"

namespace exl2::cuda {

// A chunk of a prompt: T tokens behind `start` cached ones. R: rotated elements of a head, in pairs (i, i + R / 2).
struct RopeTask {
  uint16_t* q;            // half (T, H, D), rotated in place
  const uint16_t* k;      // half (T, G, D)
  const uint16_t* v;      // half (T, G, D)
  const float* cosines;   // (T, R / 2)
  const float* sines;
  uint16_t* keys;         // half (G, capacity, D)
  uint16_t* values;
  int64_t tokens, heads, kv_heads, head_dim, rope_dim, capacity, start;

  // Of a token: D / 2 pairs for every head of q, k and v.
  EXL2_HD int32_t pairs() const { return static_cast<int32_t>((heads + 2 * kv_heads) * (head_dim / 2)); }
  // Whether rope_pairs<4> can be used.
  EXL2_HD bool in_fours() const { return head_dim % 8 == 0 && rope_dim % 8 == 0; }
};

template <int kCount, typename T>
struct alignas(kCount * sizeof(T)) Several {
  T at[kCount];
};

template <int kCount, typename T>
EXL2_HD Several<kCount, T>& several(T* from) {
  return *reinterpret_cast<Several<kCount, T>*>(from);
}

template <int kCount, typename T>
EXL2_HD const Several<kCount, T>& several(const T* from) {
  return *reinterpret_cast<const Several<kCount, T>*>(from);
}

// Pairs kCount * index ... of token t, all of one head.
template <int kCount>
EXL2_HD void rope_pairs(const RopeTask& task, int64_t t, int32_t index) {
  const int64_t D = task.head_dim;
  const int64_t half_rope = task.rope_dim / 2;
  const int32_t pairs = static_cast<int32_t>(task.head_dim / 2) / kCount;
  const int64_t i = index % pairs * kCount;
  const int32_t head = index / pairs;
  // Elements that are not rotated are neighbours.
  const int64_t first = i < half_rope ? i : 2 * i;
  const int64_t second = i < half_rope ? i + half_rope : 2 * i + kCount;

  const bool is_query = head < task.heads;
  const bool is_value = head >= task.heads + task.kv_heads;
  const int64_t kv = head - task.heads - (is_value ? task.kv_heads : 0);
  const uint16_t* from = is_query   ? task.q + (t * task.heads + head) * D
                         : is_value ? task.v + (t * task.kv_heads + kv) * D
                                    : task.k + (t * task.kv_heads + kv) * D;
  const int64_t row = (kv * task.capacity + task.start + t) * D;
  uint16_t* to = is_query ? task.q + (t * task.heads + head) * D : (is_value ? task.values : task.keys) + row;
  Several<kCount, uint16_t> a = several<kCount>(from + first);
  Several<kCount, uint16_t> b = several<kCount>(from + second);
  if (!is_value && i < half_rope) {
    const Several<kCount, float> cosines = several<kCount>(task.cosines + t * half_rope + i);
    const Several<kCount, float> sines = several<kCount>(task.sines + t * half_rope + i);
    for (int e = 0; e < kCount; ++e) {
      const float x = half_value(a.at[e]);
      const float y = half_value(b.at[e]);
      a.at[e] = half_code(product(x, cosines.at[e]) - product(y, sines.at[e]));
      b.at[e] = half_code(product(y, cosines.at[e]) + product(x, sines.at[e]));
    }
  }
  several<kCount>(to + first) = a;
  several<kCount>(to + second) = b;
}

// silu(gate) * up, each rounded to half as torch does.
EXL2_HD uint16_t silu_times(uint16_t gate, uint16_t up) {
  const float x = half_value(gate);
#ifdef __CUDA_ARCH__
  const float silu = x / (1.f + __expf(-x));
#else
  const float silu = x / (1.f + std::exp(-x));
#endif
  return half_code(product(through_half(silu), half_value(up)));
}

}  // namespace exl2::cuda
