#include "top.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace exl2 {

namespace {

constexpr int64_t kLeastBlock = 16;
// The bound below is the closer the more blocks there are, but takes longer to find.
constexpr int64_t kBlocksPerToken = 4;
// Up to here every token is compared with every other: no branch that a processor would have to guess.
constexpr size_t kMostCompared = 128;

bool before(const ScoredToken& a, const ScoredToken& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

}  // namespace

void rank(std::vector<ScoredToken>& tokens) {
  const size_t n = tokens.size();
  if (n > kMostCompared) return std::sort(tokens.begin(), tokens.end(), before);
  float logits[kMostCompared];
  int32_t ids[kMostCompared];
  for (size_t i = 0; i < n; ++i) {
    logits[i] = tokens[i].logit;
    ids[i] = static_cast<int32_t>(tokens[i].id);
  }
  for (size_t i = 0; i < n; ++i) {
    const float logit = logits[i];
    const int32_t id = ids[i];
    int32_t place = 0;
    for (size_t j = 0; j < n; ++j) place += (logits[j] > logit) | ((logits[j] == logit) & (ids[j] < id));
    tokens[static_cast<size_t>(place)] = {id, logit};
  }
}

std::vector<ScoredToken> top_logits(const Kernels& kernels, const float* logits, int64_t n, int64_t count) {
  if (std::isnan(kernels.sum(logits, n))) return {};
  count = std::min(count, n);
  const int64_t block = std::max(kLeastBlock, n / (count * kBlocksPerToken));
  std::vector<float> largest(static_cast<size_t>((n + block - 1) / block));
  kernels.block_max(logits, n, block, largest.data());
  // `count` blocks have a logit that reaches this, so none of the largest is below it; few others are not.
  float bound = -std::numeric_limits<float>::infinity();
  if (count <= static_cast<int64_t>(largest.size())) {
    std::vector<float> sorted = largest;
    std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<>());
    bound = sorted[static_cast<size_t>(count - 1)];
  }
  std::vector<ScoredToken> best;
  best.reserve(static_cast<size_t>(2 * count));
  for (int64_t begin = 0; begin < n; begin += block) {
    if (largest[static_cast<size_t>(begin / block)] < bound) continue;
    for (int64_t id = begin; id < std::min(begin + block, n); ++id) {
      if (logits[id] >= bound) best.push_back({id, logits[id]});
    }
  }
  if (static_cast<int64_t>(best.size()) > 2 * count) {
    std::nth_element(best.begin(), best.begin() + (count - 1), best.end(), before);
    best.resize(static_cast<size_t>(count));
  }
  rank(best);
  best.resize(static_cast<size_t>(count));
  return best;
}

}  // namespace exl2
