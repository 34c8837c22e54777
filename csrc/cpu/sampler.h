// The next token from the largest few logits, where these are sure to tell it.
//
// The filters in plain torch (exl2_tui/core/generation/filters.py) are the specification. They compute in float32;
// where its rounding could make a difference, and where logits that were left out could, nothing is chosen.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace exl2 {

// As core.requests.SamplerSettings.
struct SamplerSettings {
  double temperature;
  int64_t top_k;
  double top_p;
  double min_p;
  double typical_p;
  double repetition;
  double frequency;
  double presence;
};

// The distinct tokens that the penalties look back on, and how often each occurs.
struct SeenTokens {
  const int64_t* ids;
  const float* counts;
  int64_t n;  // 0: no penalty is on, or nothing was seen
};

constexpr int64_t kUnsure = -1;
// More than this many tokens are nothing for lists that are sorted: from here on the specification has other ways.
constexpr int64_t kMostSorted = 1024;

// The token at `uniform` in [0, 1), or kUnsure, for logits (V).
int64_t sample_all(const Kernels& kernels, const float* logits, int64_t V, const SeenTokens& seen,
                   const SamplerSettings& settings, double uniform);

// The same for the n largest logits of V in any order. complete: there are no others; otherwise no penalty may be a
// reward, since those that were left out are taken to stay where they are.
int64_t sample_top(const float* logits, const int64_t* ids, int64_t n, bool complete, int64_t V, const SeenTokens& seen,
                   const SamplerSettings& settings, double uniform);

}  // namespace exl2
