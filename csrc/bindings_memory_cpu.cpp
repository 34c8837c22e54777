// Ops on plain memory: the pages that it lies on, how fast it can be read, numbers that Python shares with threads.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>

#include "bindings_cpu.h"
#include "cpu/crew.h"
#include "cpu/spare_core.h"

namespace exl2 {

// Weights are streamed once per token: with pages of 2 MiB instead of 4 KiB neither the address translation nor the
// prefetcher has to start anew every 64 cache lines. A wish, not a demand, to be made before the memory is first
// written; only whole large pages inside the tensor count.
void large_pages(const Tensor& memory) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t data = reinterpret_cast<uintptr_t>(memory.data_ptr());
  const uintptr_t bytes = static_cast<uintptr_t>(memory.numel()) * memory.element_size();
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
#endif
}

// The sum of a float32 buffer, of which each thread reads one part from end to end.
double read_memory(const Tensor& buffer, int64_t threads, int64_t isa) {
  const Kernels& kernels = *kernels_of(checked_isa(isa));
  const float* data = data_of<const float>(buffer, ScalarType::Float, 0, "buffer");
  const int64_t n = buffer.numel();
  Crew crew(static_cast<int>(threads));
  std::atomic<double> total{0};
  crew.share(n, (n + crew.threads() - 1) / crew.threads(), [&](int64_t begin, int64_t end) {
    const double part = kernels.sum(data + begin, end - begin);
    double before = total.load();
    while (!total.compare_exchange_weak(before, before + part)) {
    }
  });
  return total.load();
}

// Addresses of two int64 that are there as long as the process (cpu/spare_core.h).
void share_spare_core(int64_t until, int64_t working) {
  set_spare_core(reinterpret_cast<const int64_t*>(until), reinterpret_cast<int64_t*>(working));
}

}  // namespace exl2
