// The op that chooses a token from logits.
#include "bindings_cpu.h"
#include "cpu/sampler.h"

namespace exl2 {

// logits (at least vocab) float32 of all tokens, if ids is empty; else the largest few, and their ids (n) int64.
// complete: these are all there are. seen (at least distinct) int64 and counts float32: the distinct tokens that the
// penalties look back on. settings (8) float64: the fields of SamplerSettings in sampler.h. The token, or -1 if that
// cannot be told for sure.
int64_t sample(const Tensor& logits, const Tensor& ids, bool complete, int64_t vocab, const Tensor& seen,
               const Tensor& counts, int64_t distinct, const Tensor& settings, double uniform, int64_t isa) {
  const double* numbers = data_of<const double>(settings, ScalarType::Double, 8, "settings");
  const SamplerSettings s = {numbers[0], static_cast<int64_t>(numbers[1]), numbers[2], numbers[3],
                             numbers[4], numbers[5],                      numbers[6], numbers[7]};
  const int64_t n = ids.numel();
  const auto inside = [&](const int64_t* tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(tokens[i] >= 0 && tokens[i] < vocab, "sample: token ", tokens[i], " is outside the vocabulary");
    }
  };
  STD_TORCH_CHECK(vocab >= 1 && distinct >= 0, "sample: bad size");
  const SeenTokens history = {data_of<const int64_t>(seen, ScalarType::Long, distinct, "seen"),
                              data_of<const float>(counts, ScalarType::Float, distinct, "counts"), distinct};
  inside(history.ids, distinct);
  const float* values = data_of<const float>(logits, ScalarType::Float, n == 0 ? vocab : n, "logits");
  if (n == 0) return sample_all(*kernels_of(checked_isa(isa)), values, vocab, history, s, uniform);
  const int64_t* tokens = data_of<const int64_t>(ids, ScalarType::Long, n, "ids");
  inside(tokens, n);
  return sample_top(values, tokens, n, complete, vocab, history, s, uniform);
}

}  // namespace exl2
