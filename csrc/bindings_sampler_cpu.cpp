// The op that chooses a token from logits.
#include "bindings_cpu.h"

namespace exl2 {

namespace {

void check_inside(const int64_t* tokens, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(tokens[i] >= 0 && tokens[i] < vocab, "sample: token ", tokens[i], " is outside the vocabulary");
  }
}

}  // namespace

SamplerSettings sampler_settings(const Tensor& numbers) {
  const double* n = data_of<const double>(numbers, ScalarType::Double, 8, "settings");
  return {n[0], static_cast<int64_t>(n[1]), n[2], n[3], n[4], n[5], n[6], n[7]};
}

SeenTokens seen_tokens(const Tensor& ids, const Tensor& counts, int64_t distinct, int64_t vocab) {
  STD_TORCH_CHECK(vocab >= 1 && distinct >= 0, "sample: bad size");
  const SeenTokens seen = {data_of<const int64_t>(ids, ScalarType::Long, distinct, "seen"),
                           data_of<const float>(counts, ScalarType::Float, distinct, "counts"), distinct};
  check_inside(seen.ids, distinct, vocab);
  return seen;
}

// logits (at least vocab) float32 of all tokens, if ids is empty; else the largest few, and their ids (n) int64.
// complete: these are all there are. seen and counts, distinct of each: the distinct tokens that the penalties look
// back on. The token, or -1 if that cannot be told for sure.
int64_t sample(const Tensor& logits, const Tensor& ids, bool complete, int64_t vocab, const Tensor& seen,
               const Tensor& counts, int64_t distinct, const Tensor& settings, double uniform, int64_t isa) {
  const SamplerSettings s = sampler_settings(settings);
  const SeenTokens history = seen_tokens(seen, counts, distinct, vocab);
  const int64_t n = ids.numel();
  const float* values = data_of<const float>(logits, ScalarType::Float, n == 0 ? vocab : n, "logits");
  if (n == 0) return sample_all(*kernels_of(checked_isa(isa)), values, vocab, history, s, uniform);
  const int64_t* tokens = data_of<const int64_t>(ids, ScalarType::Long, n, "ids");
  check_inside(tokens, n, vocab);
  return sample_top(values, tokens, n, complete, vocab, history, s, uniform);
}

}  // namespace exl2
