// Starts the kernel of a decode step that fits the tokens, the model and its cache.
#include "arrange.cuh"
#include "kernels.h"

namespace exl2::cuda {

// step.cuh
template <int kKeyBits, int kValueBits>
void start_step(const Step& step, bool one, int64_t bytes, cudaStream_t stream);

namespace {

void start(const Step& step, bool one, int64_t bytes, cudaStream_t stream) {
  switch (step.model.key_bits + step.model.value_bits) {
    case 32: return start_step<16, 16>(step, one, bytes, stream);
    case 16: return start_step<8, 8>(step, one, bytes, stream);
    case 12: return start_step<8, 4>(step, one, bytes, stream);
    case 8: return start_step<4, 4>(step, one, bytes, stream);
    default: throw std::runtime_error("no kernel reads a cache of these bits");
  }
}

}  // namespace

int decode_step(const Model& model, int64_t gate_strips, int tokens, cudaStream_t stream) {
  int device = 0;
  int limit = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory limit");
  if (model.layers > kMostLayers) throw std::runtime_error("the model has too many layers");
  constexpr int64_t kStatic = 5120;  // the kernel's static shared memory
  const int64_t bytes = (limit - kStatic) / 128 * 128;
  Step step = arrange(model, gate_strips, tokens, bytes);
  while (step.slots < kFewestSlots && step.tokens > 1) step = arrange(model, gate_strips, step.tokens / 2, bytes);
  if (step.slots < kFewestSlots) throw std::runtime_error("a linear layer is too wide for this GPU's shared memory");
  start(step, tokens == 1, bytes, stream);
  return step.tokens;
}

}  // namespace exl2::cuda
