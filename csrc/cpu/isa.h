// Instruction sets: which there are, which this machine runs, which one is in use.
//
// A kernel file is compiled once per instruction set, with that set's flags, and everything in it lives in the
// namespace exl2::EXL2_ISA. Without the namespace the linker would merge equal inline functions of two files and the
// baseline could end up with AVX-512 code; for the same reason these files use no templates of the standard library.
#pragma once

#include <cstdint>

namespace exl2 {

enum class Isa : int32_t { kGeneric = 0, kAvx2 = 1, kAvx512 = 2 };

constexpr int kIsaCount = 3;

const char* isa_name(Isa isa);
// Compiled in, and the processor and the operating system support it.
bool isa_available(Isa isa);
// The widest available one.
Isa isa_best();

}  // namespace exl2

// Set by setup.py from the file's suffix: generic, avx2 or avx512.
#ifdef EXL2_ISA
#define EXL2_ISA_BEGIN \
  namespace exl2 {     \
  namespace EXL2_ISA {
#define EXL2_ISA_END \
  }                  \
  }
#endif
