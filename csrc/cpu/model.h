// A whole decoder step, natively: T tokens through embedding, all layers, final norm and head in one call.
//
// Knows nothing of torch: the binding checks shapes once, when a model is made, and keeps the memory alive.
// Shape letters: C hidden, F ffn, V vocab, L layers, H query heads, G kv heads, D head_dim, T tokens of the step,
// M tokens that are in work at once (at most `chunk`).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cache.h"
#include "embedding.h"
#include "kernels.h"
#include "linear.h"

namespace exl2 {

struct LayerWeights {
  const float* attn_norm;  // (C)
  const uint8_t* q;        // packed linears: C -> H * D
  const uint8_t* k;        // C -> G * D
  const uint8_t* v;        // C -> G * D
  const uint8_t* o;        // H * D -> C
  const float* q_norm;     // (H, D), or null
  const float* k_norm;     // (G, D), or null
  const float* mlp_norm;   // (C)
  const uint8_t* gate;     // C -> F
  const uint8_t* up;       // C -> F
  const uint8_t* down;     // F -> C
  int64_t window;          // tokens a token sees, itself included; 0 is no limit
};

struct ModelWeights {
  int64_t C, F, V, H, G, D;
  int64_t rope_half;  // pairs of dimensions that turn; the rest of D stays
  float eps;
  std::unique_ptr<const Embedding> embedding;  // (V, C)
  const float* final_norm;                     // (C)
  const uint8_t* head;                         // C -> V
  std::vector<LayerWeights> layers;
};

struct StepRequest {
  const int64_t* ids;  // (T), each in [0, V)
  int64_t T;
  int64_t position;  // of ids[0]: the cache holds this many tokens
  CacheMemory cache;
  const float* cos;  // (at least position + T, rope_half); row 0 is position 0
  const float* sin;
  float* logits;  // (V) of the last token, or (T, V)
  bool all_logits;
  const volatile uint8_t* cancel;  // polled between layers; null never stops
};

// How a step ends; or below 0: -errno of a row of the embedding that could not be read (embedding.h).
constexpr int kStepDone = 1;
constexpr int kStepCancelled = 0;

class Model {
 public:
  // The memory that `weights` point to outlives the model.
  // chunk: tokens in work at once, which bounds the scratch memory.
  Model(const Kernels* kernels, const LinearKernels* linears, ModelWeights weights, int64_t chunk, int threads);
  ~Model();

  // How it ended; if not well, the cache holds garbage behind `position`. One call at a time.
  int step(const StepRequest& request);

  const ModelWeights& weights() const { return weights_; }
  const Kernels& kernels() const { return kernels_; }
  int64_t scratch_bytes() const;

 private:
  struct Scratch;
  class Runner;

  const Kernels& kernels_;
  const LinearKernels& linears_;
  const ModelWeights weights_;
  const int64_t chunk_;
  const int threads_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace exl2
