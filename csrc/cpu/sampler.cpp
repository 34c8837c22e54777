#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "top.h"

namespace exl2 {

namespace {

// Sums and ratios of probabilities that are nearer than this to where they decide something leave a doubt: the rounding
// of float32 moves them by less, also where it adds up a whole vocabulary.
constexpr double kClose = 3e-5;
// Logits looked at where no top-k says how many: few, then as many as filters.FIRST_TRY.
constexpr int64_t kFew = 64;
constexpr int64_t kMore = 256;

float penalized(float logit, float count, const SamplerSettings& s) {
  const auto repetition = static_cast<float>(s.repetition);
  logit = logit > 0 ? logit / repetition : logit * repetition;
  const float by_count = count * static_cast<float>(s.frequency);
  return logit - (by_count + static_cast<float>(s.presence));
}

// The most probable tokens, narrowed down step by step. Every step returns false where it leaves a doubt.
class ShortList {
 public:
  // tokens: at least one, largest logit first. rest: no logit that was left out is larger; `open` if there are any.
  ShortList(const std::vector<ScoredToken>& tokens, bool open, float rest) : open_(open), rest_(rest) {
    tokens_.reserve(tokens.size());
    for (const ScoredToken& token : tokens) tokens_.push_back({token.id, token.logit, 0});
  }

  int64_t best() const { return tokens_.front().id; }

  bool scale(double temperature) {
    const float largest = tokens_.front().logit, by = static_cast<float>(temperature);
    for (Token& token : tokens_) token.logit = (token.logit - largest) / by;
    rest_ = (rest_ - largest) / by;
    return tokens_.front().logit == 0;
  }

  bool keep_top_k(int64_t k) {
    const size_t kept = std::min(static_cast<size_t>(k), tokens_.size());
    if (open_ && (kept < static_cast<size_t>(k) || !(tokens_[kept - 1].logit > rest_))) return false;
    return keep_ranked(kept);
  }

  // Before the steps below. all: the sum of e^(logit - largest) over all tokens, if they are not all here; 0: unknown.
  void weigh(double all) {
    largest_ = tokens_.front().logit;
    for (Token& token : tokens_) token.weight = std::exp(static_cast<double>(token.logit) - largest_);
    all_ = all;
  }

  bool keep_top_p(double mass) {
    const size_t kept = reach(mass, open_ ? all_ : sum());
    return kept > 0 && keep_ranked(kept);
  }

  bool keep_min_p(double fraction) {
    if (open_ && !(std::exp(static_cast<double>(rest_) - largest_) < fraction * (1 - kClose))) return false;
    size_t kept = 0;
    for (const Token& token : tokens_) {
      if (std::abs(token.weight - fraction) <= kClose * fraction) return false;
      if (token.weight < fraction) break;
      ++kept;
    }
    tokens_.resize(kept);
    open_ = false;
    // Without a step that ranks them, tokens stay in the order of the vocabulary.
    const auto earlier = [](const Token& a, const Token& b) { return a.id < b.id; };
    if (!ordered_) std::sort(tokens_.begin(), tokens_.end(), earlier);
    ordered_ = true;
    return true;
  }

  bool keep_typical(double mass) {
    if (open_) return false;
    const double total = sum(), shift = largest_ + std::log(total);
    double entropy = 0;
    for (const Token& token : tokens_) {
      if (token.weight > 0) entropy -= token.weight / total * (token.logit - shift);
    }
    const auto distance = [&](const Token& token) { return std::abs(token.logit - shift + entropy); };
    std::sort(tokens_.begin(), tokens_.end(),
              [&](const Token& a, const Token& b) { return distance(a) < distance(b); });
    const size_t kept = reach(mass, total);
    if (kept == 0) return false;
    for (size_t i = 1; i < std::min(kept + 1, tokens_.size()); ++i) {
      const double near = distance(tokens_[i - 1]), far = distance(tokens_[i]);
      if (!(far - near > kClose * (1 + far))) return false;
    }
    tokens_.resize(kept);
    ordered_ = true;
    return true;
  }

  int64_t draw(double uniform) const {
    if (open_ || !ordered_) return kUnsure;
    const double total = sum(), target = uniform * total;
    double passed = 0;
    for (const Token& token : tokens_) {
      passed += token.weight;
      if (&token == &tokens_.back()) return token.id;
      if (std::abs(passed - target) <= kClose * total) return kUnsure;
      if (passed > target) return token.id;
    }
    return kUnsure;
  }

 private:
  struct Token {
    int64_t id;
    float logit;
    double weight;  // e^(logit - the largest)
  };

  double sum() const {
    double total = 0;
    for (const Token& token : tokens_) total += token.weight;
    return total;
  }

  // How many of the first tokens reach `mass` of `total`; 0: too close to tell, or these do not.
  size_t reach(double mass, double total) const {
    const double target = mass * total;
    double passed = 0;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      passed += tokens_[i].weight;
      if (std::abs(passed - target) <= kClose * total) return 0;
      if (passed > target) return i + 1;
    }
    return 0;
  }

  // The first `kept`, if no two of them, nor the first one behind them, could change places.
  bool keep_ranked(size_t kept) {
    if (open_ && kept == tokens_.size() && !(tokens_.back().logit > rest_)) return false;
    for (size_t i = 1; i < std::min(kept + 1, tokens_.size()); ++i) {
      if (!(tokens_[i - 1].logit > tokens_[i].logit)) return false;
    }
    tokens_.resize(kept);
    open_ = false;
    ordered_ = true;
    return true;
  }

  std::vector<Token> tokens_;
  bool open_;
  float rest_;
  float largest_ = 0;
  double all_ = 0;
  bool ordered_ = false;  // as the specification would have them; until then by their logits
};

// all(): the sum of e^(logit - largest) over all tokens, or 0 if that is not known.
template <typename All>
int64_t choose(ShortList list, const SamplerSettings& s, double uniform, const All& all) {
  if (s.temperature == 0) return list.keep_top_k(1) ? list.best() : kUnsure;
  if (s.temperature != 1 && !list.scale(s.temperature)) return kUnsure;
  if (s.top_k > 0 && !list.keep_top_k(s.top_k)) return kUnsure;
  list.weigh(s.top_k > 0 || s.top_p >= 1 ? 0 : all());
  if (s.top_p < 1 && !list.keep_top_p(s.top_p)) return kUnsure;
  if (s.min_p > 0 && !list.keep_min_p(s.min_p)) return kUnsure;
  if (s.typical_p < 1 && !list.keep_typical(s.typical_p)) return kUnsure;
  return list.draw(uniform);
}

// The sum of e^((logit - largest) / temperature).
double sum_of_weights(const Kernels& kernels, const float* logits, int64_t V, float largest, float temperature) {
  constexpr int64_t kPart = 512;
  float part[kPart];
  double total = 0;
  for (int64_t begin = 0; begin < V; begin += kPart) {
    const int64_t n = std::min(kPart, V - begin);
    for (int64_t i = 0; i < n; ++i) part[i] = (logits[begin + i] - largest) / temperature;
    kernels.exp(part, n, part);
    total += kernels.sum(part, n);
  }
  return total;
}

}  // namespace

int64_t sample_all(const Kernels& kernels, const float* logits, int64_t V, const SeenTokens& seen,
                   const SamplerSettings& s, double uniform) {
  thread_local std::vector<float> own;
  if (seen.n > 0) {
    own.assign(logits, logits + V);
    for (int64_t i = 0; i < seen.n; ++i) {
      float& logit = own[static_cast<size_t>(seen.ids[i])];
      logit = penalized(logit, seen.counts[i], s);
    }
    logits = own.data();
  }
  if (s.top_k > kMostSorted) return kUnsure;
  const auto try_with = [&](int64_t count) {
    const std::vector<ScoredToken> best = top_logits(kernels, logits, V, count);
    if (best.empty() || !std::isfinite(best.front().logit)) return kUnsure;
    const auto all = [&] {
      return sum_of_weights(kernels, logits, V, best.front().logit, static_cast<float>(s.temperature));
    };
    return choose(ShortList(best, static_cast<int64_t>(best.size()) < V, best.back().logit), s, uniform, all);
  };
  if (s.temperature == 0) return try_with(2);
  if (s.top_k > 0) return try_with(s.top_k + 1);
  const int64_t token = try_with(kFew);
  return token == kUnsure ? try_with(kMore) : token;
}

int64_t sample_top(const float* logits, const int64_t* ids, int64_t n, bool complete, int64_t V, const SeenTokens& seen,
                   const SamplerSettings& s, double uniform) {
  if (n == 0 || s.top_k > kMostSorted) return kUnsure;
  thread_local std::vector<float> often;  // of each token; zero between calls
  if (static_cast<int64_t>(often.size()) < V) often.resize(static_cast<size_t>(V), 0.0f);
  for (int64_t i = 0; i < seen.n; ++i) often[static_cast<size_t>(seen.ids[i])] = seen.counts[i];
  std::vector<ScoredToken> tokens;
  tokens.reserve(static_cast<size_t>(n));
  float largest = -std::numeric_limits<float>::infinity(), rest = std::numeric_limits<float>::infinity();
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const float count = often[static_cast<size_t>(ids[i])];
    tokens.push_back({ids[i], count > 0 ? penalized(logits[i], count, s) : logits[i]});
    largest = std::max(largest, logits[i]);
    rest = std::min(rest, logits[i]);
    finite = finite && !std::isnan(logits[i]);
  }
  for (int64_t i = 0; i < seen.n; ++i) often[static_cast<size_t>(seen.ids[i])] = 0;
  if (!finite || !std::isfinite(largest)) return kUnsure;
  rank(tokens);
  if (!std::isfinite(tokens.front().logit)) return kUnsure;
  return choose(ShortList(tokens, !complete, rest), s, uniform, [] { return 0.0; });
}

}  // namespace exl2
