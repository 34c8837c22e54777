// The largest few of many logits.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace exl2 {

struct ScoredToken {
  int64_t id;
  float logit;
};

// Largest first, equal ones in the order of their ids. No NaN.
void rank(std::vector<ScoredToken>& tokens);

// The `count` >= 1 largest of n logits, or all n, ranked. None if one of the n is NaN.
std::vector<ScoredToken> top_logits(const Kernels& kernels, const float* logits, int64_t n, int64_t count);

}  // namespace exl2
