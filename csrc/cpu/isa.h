// Instruction sets: which there are, which this machine runs, which one is in use.
//
// A kernel file is compiled once per instruction set, with that set's flags, and everything in it lives in the
// namespace exl2::EXL2_ISA_NAMESPACE. Without the namespace the linker would merge equal inline functions of two files
// and the baseline could end up with AVX-512 code; for the same reason these files use no templates of the standard
// library.
#pragma once

#include <cstdint>

namespace exl2 {

enum class Isa : int32_t { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3 };  // each with what those before have

constexpr int kIsaCount = 4;

const char* isa_name(Isa isa);
// Compiled in, and the processor and the operating system support it.
bool isa_available(Isa isa);
// The widest available one.
Isa isa_best();

}  // namespace exl2

// Set by setup.py from the end of the file's name.
#if defined(EXL2_ISA_AVX512)
#define EXL2_ISA_NAMESPACE avx512
#elif defined(EXL2_ISA_AVX2)
#define EXL2_ISA_NAMESPACE avx2
#elif defined(EXL2_ISA_GENERIC)
#define EXL2_ISA_NAMESPACE generic
#endif

#define EXL2_ISA_BEGIN \
  namespace exl2 {     \
  namespace EXL2_ISA_NAMESPACE {
#define EXL2_ISA_END \
  }                  \
  }
