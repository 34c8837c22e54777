// Tokens that are chosen one after another while a model writes by itself: what that needs, and where it ends.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "sampler.h"

namespace exl2 {

struct Choosing {
  int64_t vocab;      // tokens from here on are never chosen
  SeenTokens seen;    // before the first choice; those that are chosen join them
  bool uses_history;  // false: no penalty is on, and nothing joins
  SamplerSettings settings;
  const double* uniforms;   // (count), one per choice
  const int64_t* stop_ids;  // the passage ends with the first of these
  int64_t stops;
  int64_t count;   // tokens at most, at least 1
  double seconds;  // no step begins later than that
};

// What was chosen so far.
class Chosen {
 public:
  // tokens: (request.count), takes them.
  Chosen(const Choosing& request, int64_t* tokens)
      : request_(request),
        tokens_(tokens),
        end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(request.seconds))),
        seen_(request.seen.ids, request.seen.ids + request.seen.n),
        counts_(request.seen.counts, request.seen.counts + request.seen.n) {}

  int64_t count() const { return count_; }
  SeenTokens seen() const { return {seen_.data(), counts_.data(), static_cast<int64_t>(seen_.size())}; }
  double uniform() const { return request_.uniforms[count_]; }

  // Takes a token, or kUnsure. False: nothing may be chosen behind it.
  bool add(int64_t token) {
    tokens_[count_++] = token;
    const int64_t* const end = request_.stop_ids + request_.stops;
    if (token == kUnsure || std::find(request_.stop_ids, end, token) != end) return false;
    if (request_.uses_history) count_occurrence(token);
    return true;
  }

  // Whether a step may begin now that tells the token behind `ahead` more.
  bool goes_on(int64_t ahead = 0) const { return count_ + ahead < request_.count && Clock::now() < end_; }

 private:
  using Clock = std::chrono::steady_clock;

  void count_occurrence(int64_t token) {
    const auto place = static_cast<size_t>(std::find(seen_.begin(), seen_.end(), token) - seen_.begin());
    if (place == seen_.size()) {
      seen_.push_back(token);
      counts_.push_back(0);
    }
    counts_[place] += 1;
  }

  const Choosing& request_;
  int64_t* tokens_;
  int64_t count_ = 0;
  Clock::time_point end_;
  std::vector<int64_t> seen_;  // distinct tokens that penalties look back on
  std::vector<float> counts_;
};

}  // namespace exl2
