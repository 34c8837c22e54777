// The key/value cache of one layer and one kv head, as raw memory.
//
// Keys lie in tiles of 16 tokens, transposed: the 16 values of one dimension are neighbours. A score is then a sum of
// (query value) x (vector of 16 tokens) with no horizontal sums. Values lie token by token, rows padded to 16 values.
//
//   fp16  k (capacity / 16, D, 16) float16             v (capacity, Dp) float16
//   q8    k (capacity / 16, D, 16) int8                v (capacity, Dp) int8
//         k_scale, v_scale (capacity / 16, blocks, 16) float16: one scale per token and 32 dimensions
//
// Dp is D rounded up to 16, capacity a multiple of 16, blocks = ceil(D / 32). Bytes read per cached token and kv head:
// 4 D (fp16) or 2 D + 4 blocks (q8).
#pragma once

#include <cstdint>

namespace exl2 {

constexpr int64_t kTileTokens = 16;
constexpr int64_t kQuantBlock = 32;
constexpr int64_t kMaxHeadDim = 512;

static inline int64_t padded_head_dim(int64_t D) { return (D + kTileTokens - 1) / kTileTokens * kTileTokens; }
static inline int64_t scale_blocks(int64_t D) { return (D + kQuantBlock - 1) / kQuantBlock; }

struct CacheHead {
  bool q8;
  int64_t D;
  int64_t Dp;
  int64_t blocks;
  void* k;
  void* v;
  uint16_t* k_scale;
  uint16_t* v_scale;
};

// All caches of a model, heads of a layer side by side, layers one after another.
struct CacheMemory {
  bool q8;
  int64_t capacity;   // tokens, a multiple of kTileTokens
  uint8_t* k;         // (L, G, one head's keys)
  uint8_t* v;         // (L, G, one head's values)
  uint16_t* k_scale;  // (L, G, one head's scales), q8 only
  uint16_t* v_scale;
};

// head: layer * G + kv head. static, since this file is compiled for several instruction sets (isa.h).
static inline CacheHead cache_head(const CacheMemory& memory, int64_t D, int64_t head) {
  const int64_t value_bytes = memory.q8 ? 1 : 2, Dp = padded_head_dim(D), blocks = scale_blocks(D);
  const int64_t tokens = head * memory.capacity;
  CacheHead result;
  result.q8 = memory.q8;
  result.D = D;
  result.Dp = Dp;
  result.blocks = blocks;
  result.k = memory.k + tokens * D * value_bytes;
  result.v = memory.v + tokens * Dp * value_bytes;
  result.k_scale = memory.q8 ? memory.k_scale + tokens * blocks : nullptr;
  result.v_scale = memory.q8 ? memory.v_scale + tokens * blocks : nullptr;
  return result;
}

// Queries of the heads that share one kv head, tokens at consecutive positions.
struct AttentionTask {
  CacheHead cache;
  const float* q;  // row (token t, head h) at q + t * q_stride + h * D; multiplied by the softmax scale already
  int64_t q_stride;
  float* out;  // the same order, D values per row
  int64_t out_stride;
  int64_t tokens;
  int64_t heads;
  int64_t position;  // of the first token; each token sees the cache up to and including itself
  int64_t window;    // and no more than this many tokens; 0 is no limit
};

}  // namespace exl2
