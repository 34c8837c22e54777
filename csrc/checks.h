// What the bindings demand of tensors before they hand raw pointers to kernels. Python has validated already and raised
// readable errors; these checks keep a mistake there from becoming a crash.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace exl2 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_tensor(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": unexpected dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": must be contiguous");
}

// The data of a contiguous tensor of this dtype with at least `elements` elements.
template <typename T>
T* data_of(const Tensor& tensor, ScalarType type, int64_t elements, const char* name) {
  check_tensor(tensor, type, name);
  STD_TORCH_CHECK(tensor.numel() >= elements, name, ": has ", tensor.numel(), " elements, needs ", elements);
  return static_cast<T*>(tensor.data_ptr());
}

// Null for an empty tensor, which stands for "there is none".
template <typename T>
T* data_or_null(const Tensor& tensor, ScalarType type, int64_t elements, const char* name) {
  return tensor.numel() == 0 ? nullptr : data_of<T>(tensor, type, elements, name);
}

}  // namespace exl2
