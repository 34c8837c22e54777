// The ops of the CUDA library, registered through the stable ABI as in bindings_cpu.cpp. A plan is a uint8 CPU tensor
// that holds the structs of cuda/plan.h one after another; the tensors it points to are kept alive by its owner,
// exl2_tui/core/model/cuda.py. Loaded only where torch has CUDA.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace {

using exl2::cuda::Layer;
using exl2::cuda::Linear;
using exl2::cuda::Model;
using torch::stable::Tensor;

// The stream torch is using on the tensor's device, which becomes the current device.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void expect_bytes(const Tensor& plan, size_t bytes) {
  if (static_cast<size_t>(plan.numel()) != bytes) {
    throw std::runtime_error("the plan has " + std::to_string(plan.numel()) + " bytes, expected " + std::to_string(bytes) +
                             ": the library and the Python package are of different versions");
  }
}

Linear linear_of(const Tensor& plan) {
  expect_bytes(plan, sizeof(Linear));
  Linear linear;
  std::memcpy(&linear, plan.const_data_ptr(), sizeof(Linear));
  return linear;
}

const void* address(int64_t value) { return reinterpret_cast<const void*>(value); }

// Addresses are 0 where the format has no such tensor (kernels.h: RepackSource).
void repack(const Tensor& plan, int64_t words, int64_t first_words, int64_t perm, int64_t rows, int64_t columns,
            Tensor codes) {
  const OnDevice device(codes);
  const exl2::cuda::RepackSource source = {address(words), static_cast<const int32_t*>(address(first_words)),
                                           static_cast<const int32_t*>(address(perm)), rows, columns};
  exl2::cuda::repack(source, linear_of(plan), static_cast<uint8_t*>(codes.mutable_data_ptr()), device.stream());
}

void dequantize(const Tensor& plan, Tensor out) {
  const OnDevice device(out);
  exl2::cuda::dequantize(linear_of(plan), static_cast<uint16_t*>(out.mutable_data_ptr()), device.stream());
}

// plan: one Model, then its layers, then the head.
void decode_step(const Tensor& plan, int64_t tokens, Tensor logits) {
  if (tokens < 1 || tokens > exl2::cuda::kMaxTokens) throw std::runtime_error("a step takes 1 to 8 tokens");
  const auto* bytes = static_cast<const uint8_t*>(plan.const_data_ptr());
  if (static_cast<size_t>(plan.numel()) < sizeof(Model)) expect_bytes(plan, sizeof(Model));
  Model model;
  std::memcpy(&model, bytes, sizeof(Model));
  const auto layers = static_cast<size_t>(model.layers);
  expect_bytes(plan, sizeof(Model) + layers * sizeof(Layer) + sizeof(Linear));
  std::vector<Layer> parts(layers);
  std::memcpy(parts.data(), bytes + sizeof(Model), layers * sizeof(Layer));
  Linear head;
  std::memcpy(&head, bytes + sizeof(Model) + layers * sizeof(Layer), sizeof(Linear));
  const OnDevice device(logits);
  exl2::cuda::decode_step(model, parts.data(), head, static_cast<int>(tokens), device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY(exl2_cuda, m) {
  m.def("repack(Tensor plan, int words, int first_words, int perm, int rows, int columns, Tensor(a!) codes) -> ()");
  m.def("dequantize(Tensor plan, Tensor(a!) out) -> ()");
  m.def("decode_step(Tensor plan, int tokens, Tensor(a!) logits) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(exl2_cuda, CUDA, m) {
  m.impl("repack", TORCH_BOX(&repack));
  m.impl("dequantize", TORCH_BOX(&dequantize));
  m.impl("decode_step", TORCH_BOX(&decode_step));
}
