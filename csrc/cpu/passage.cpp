#include "passage.h"

namespace exl2 {

int64_t write_passage(Model& model, const StepRequest& first, const Choosing& choosing, int64_t* tokens) {
  Chosen chosen(choosing, tokens);
  StepRequest step = first;
  for (int64_t token = 0;; ++step.position, step.ids = &token) {
    const int end = model.step(step);
    if (end != kStepDone) return chosen.count() > 0 ? chosen.count() : end;
    token = sample_all(model.kernels(), step.logits, choosing.vocab, chosen.seen(), choosing.settings, chosen.uniform());
    if (!chosen.add(token) || !chosen.goes_on()) return chosen.count();
  }
}

}  // namespace exl2
