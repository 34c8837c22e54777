#include "isa.h"

#include "kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace exl2 {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric: return "generic";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAmx: return "amx";
  }
  return "unknown";
}

namespace {

// The processor has the tile unit, and the system lets this process use it: Linux must be asked, once.
bool ask_for_tiles() {
#if defined(__x86_64__) && defined(__linux__) && defined(EXL2_HAS_AMX)
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // cpuid 7, edx
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of Linux 5.16, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool isa_available(Isa isa) {
  if (isa == Isa::kGeneric) return true;
#if defined(__x86_64__)
  // The builtins also ask the operating system (XGETBV) whether it saves the wide registers.
  if (isa == Isa::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  if (isa == Isa::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  if (isa == Isa::kAmx) {
    static const bool allowed = ask_for_tiles();
    return allowed && isa_available(Isa::kAvx512);
  }
#endif
  return false;
}

Isa isa_best() {
  if (isa_available(Isa::kAmx)) return Isa::kAmx;
  if (isa_available(Isa::kAvx512)) return Isa::kAvx512;
  if (isa_available(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kGeneric;
}

const Kernels* kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kernels_avx512();
  if (isa == Isa::kAvx2) return kernels_avx2();
#endif
  (void)isa;
  return kernels_generic();
}

}  // namespace exl2
