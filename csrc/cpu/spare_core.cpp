#include "spare_core.h"

#include <atomic>
#include <chrono>

namespace exl2 {

namespace {

// Until somebody says where else.
const int64_t nobody = 0;
int64_t uncounted = 0;

std::atomic<const int64_t*> until_place{&nobody};
std::atomic<int64_t*> working_place{&uncounted};

}  // namespace

// The numbers belong to Python, whose loads and stores are single instructions. They are hints: no other memory is
// published with them, so no order is asked for.
void set_spare_core(const int64_t* until, int64_t* working) {
  __atomic_store_n(working, __atomic_load_n(working_place.load(), __ATOMIC_RELAXED), __ATOMIC_RELAXED);
  working_place.store(working);
  until_place.store(until);
}

bool spare_core_is_wanted() {
  const int64_t until = __atomic_load_n(until_place.load(std::memory_order_relaxed), __ATOMIC_RELAXED);
  if (until == 0) return false;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() < until;
}

void count_working(int change) {
  __atomic_fetch_add(working_place.load(std::memory_order_relaxed), change, __ATOMIC_RELAXED);
}

}  // namespace exl2
