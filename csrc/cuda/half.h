// fp16 numbers on the host as the GPU's instructions make them, for headers that the CPU tests compile.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codes.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace exl2::cuda {

// Rounded to fp16, to nearest even, and back.
EXL2_HD float through_half(float value) {
#ifdef __CUDA_ARCH__
  return __half2float(__float2half_rn(value));
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return magnitude > 0x7f800000u ? value : std::copysign(INFINITY, value);
  // Adding a power of two whose last bit is worth the last bit of the half rounds there, also among subnormals.
  const uint32_t exponent = magnitude < 0x38800000u ? 113u << 23 : magnitude & 0x7f800000u;
  const uint32_t anchor_bits = exponent + (13u << 23);
  float anchor;
  std::memcpy(&anchor, &anchor_bits, 4);
  volatile float shifted = std::fabs(value) + anchor;  // volatile: the compiler must not cancel the two
  return std::copysign(shifted - anchor, value);
#endif
}

EXL2_HD float half_value(uint16_t bits) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(bits));
#else
  const uint32_t magnitude = bits & 0x7fffu;
  const float value = magnitude >= 0x7c00u  ? (magnitude > 0x7c00u ? NAN : INFINITY)
                      : magnitude >= 0x400u ? std::ldexp(static_cast<float>((magnitude & 0x3ffu) | 0x400u),
                                                         static_cast<int>(magnitude >> 10) - 25)
                                            : std::ldexp(static_cast<float>(magnitude), -24);
  return (bits & 0x8000u) != 0 ? -value : value;
#endif
}

EXL2_HD uint16_t half_code(float value) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(value));
#else
  const float rounded = through_half(value);
  const float size = std::fabs(rounded);
  uint32_t code = 0x7e00u;
  if (std::isinf(size)) {
    code = 0x7c00u;
  } else if (size < 0x1p-14f) {
    code = static_cast<uint32_t>(size * 0x1p24f);
  } else if (!std::isnan(size)) {
    uint32_t bits;
    std::memcpy(&bits, &size, 4);
    code = (bits - (112u << 23)) >> 13;
  }
  return static_cast<uint16_t>(code | (std::signbit(rounded) ? 0x8000u : 0u));
#endif
}

// a * b, and nothing fused to it.
EXL2_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace exl2::cuda
