// What the ops that choose tokens take, checked (core/model/passage.py: Choice).
#pragma once

#include <vector>

#include "checks.h"
#include "cpu/choosing.h"

namespace exl2 {

inline void check_inside(const int64_t* tokens, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(tokens[i] >= 0 && tokens[i] < vocab, "token ", tokens[i], " is outside the vocabulary");
  }
}

// (8) float64: the fields of SamplerSettings in cpu/sampler.h.
inline SamplerSettings sampler_settings(const Tensor& numbers) {
  const double* n = data_of<const double>(numbers, ScalarType::Double, 8, "settings");
  return {n[0], static_cast<int64_t>(n[1]), n[2], n[3], n[4], n[5], n[6], n[7]};
}

// ids (at least distinct) int64, each below vocab, and counts float32.
inline SeenTokens seen_tokens(const Tensor& ids, const Tensor& counts, int64_t distinct, int64_t vocab) {
  STD_TORCH_CHECK(vocab >= 1 && distinct >= 0, "there is no vocabulary, or a negative number of tokens");
  const SeenTokens seen = {data_of<const int64_t>(ids, ScalarType::Long, distinct, "seen"),
                           data_of<const float>(counts, ScalarType::Float, distinct, "counts"), distinct};
  check_inside(seen.ids, distinct, vocab);
  return seen;
}

// uniforms float64: random numbers, the first `used` are spent. count: tokens at most.
inline Choosing choosing_arguments(int64_t vocab, const Tensor& seen, const Tensor& counts, int64_t distinct,
                                   bool uses_history, const Tensor& settings, const Tensor& uniforms, int64_t used,
                                   const std::vector<int64_t>& stop_ids, double seconds, int64_t count) {
  STD_TORCH_CHECK(count >= 1 && used >= 0, "there are no tokens to choose, or a negative number of random numbers");
  Choosing choosing;
  choosing.vocab = vocab;
  choosing.seen = seen_tokens(seen, counts, distinct, vocab);
  choosing.uses_history = uses_history;
  choosing.settings = sampler_settings(settings);
  choosing.uniforms = data_of<const double>(uniforms, ScalarType::Double, used + count, "uniforms") + used;
  choosing.stop_ids = stop_ids.data();
  choosing.stops = static_cast<int64_t>(stop_ids.size());
  choosing.count = count;
  choosing.seconds = seconds;
  return choosing;
}

}  // namespace exl2
