#include "passage.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace exl2 {

namespace {

// The distinct tokens that penalties look back on, while they grow.
class History {
 public:
  explicit History(const SeenTokens& seen)
      : ids_(seen.ids, seen.ids + seen.n), counts_(seen.counts, seen.counts + seen.n) {}

  void add(int64_t token) {
    const auto place = std::find(ids_.begin(), ids_.end(), token) - ids_.begin();
    if (place == static_cast<std::ptrdiff_t>(ids_.size())) {
      ids_.push_back(token);
      counts_.push_back(0);
    }
    counts_[static_cast<size_t>(place)] += 1;
  }

  SeenTokens seen() const { return {ids_.data(), counts_.data(), static_cast<int64_t>(ids_.size())}; }

 private:
  std::vector<int64_t> ids_;
  std::vector<float> counts_;
};

}  // namespace

int64_t write_passage(Model& model, const PassageRequest& request, int64_t* tokens) {
  using Clock = std::chrono::steady_clock;
  const auto end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(request.seconds));
  const int64_t* const stops_end = request.stop_ids + request.stops;
  History history(request.seen);
  StepRequest step = request.step;
  for (int64_t steps = 0;;) {
    if (!model.step(step)) return steps;
    const int64_t token = sample_all(model.kernels(), step.logits, request.vocab, history.seen(), request.settings,
                                     request.uniforms[steps]);
    tokens[steps++] = token;
    if (token == kUnsure || steps == request.count || std::find(request.stop_ids, stops_end, token) != stops_end ||
        Clock::now() >= end) {
      return steps;
    }
    if (request.uses_history) history.add(token);
    step.ids = &tokens[steps - 1];
    ++step.position;
  }
}

}  // namespace exl2
