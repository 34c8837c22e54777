// The op that chooses a token from logits.
#include "bindings_cpu.h"
#include "choosing_arguments.h"

namespace exl2 {

// logits (at least vocab) float32 of all tokens, if ids is empty; else the largest few, and their ids (n) int64, as the
// passages of a GPU choose from them (cuda/passage.cu). complete: these are all there are. seen and counts, distinct of
// each: the distinct tokens that the penalties look back on. The token, or -1 if that cannot be told for sure.
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
