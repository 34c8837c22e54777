// The ops of exl2_tui/core/ops/native.py, registered with torch's dispatcher through the stable ABI: one binary for
// every torch from 2.10 and every Python. The only file of the CPU library that includes torch headers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "cpu/isa.h"

namespace {

// Bit i: instruction set i of isa.h can run here.
int64_t available_isas() {
  int64_t mask = 0;
  for (int i = 0; i < exl2::kIsaCount; ++i) {
    if (exl2::isa_available(static_cast<exl2::Isa>(i))) mask |= int64_t{1} << i;
  }
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY(exl2_cpu, m) {
  m.def("available_isas() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(exl2_cpu, CompositeExplicitAutograd, m) {
  m.impl("available_isas", TORCH_BOX(&available_isas));
}
