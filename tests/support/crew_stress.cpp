// A program that works in loops as the model does, while somebody asks for a core and gives it back:
// test_spare_core.py.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpu/crew.h"
#include "cpu/spare_core.h"

using exl2::Crew;

namespace {

// What Python shares.
int64_t until = 0, working = 0;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void ask(int64_t end) { __atomic_store_n(&until, end, __ATOMIC_RELAXED); }

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::_Exit(1);
}

// A loop of `total` items; each must be done once. Returns how many pieces were done by another thread than this one.
int64_t loop(Crew& crew, int64_t total, int64_t piece) {
  const std::thread::id leader = std::this_thread::get_id();
  std::vector<int64_t> done(static_cast<size_t>(total),
                            0);  // no atomics: what was written inside is visible afterwards
  std::atomic<int64_t> others{0};
  crew.share(total, piece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) done[static_cast<size_t>(i)] += i;
    if (std::this_thread::get_id() != leader) ++others;
  });
  for (int64_t i = 0; i < total; ++i) expect(done[static_cast<size_t>(i)] == i, "an item was not done once");
  return others.load();
}

void loop_until_a_worker_helps(Crew& crew) {
  while (loop(crew, 4096, 16) == 0) {
  }
}

}  // namespace

int main() {
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  exl2::set_spare_core(&until, &working);
  {
    Crew crew(threads);
    loop_until_a_worker_helps(crew);
    while (__atomic_load_n(&working, __ATOMIC_RELAXED) == 0) loop(crew, 4096, 16);

    // Of two threads the worker stands aside but for the piece it was about to take; of more, the last one.
    ask(INT64_MAX);
    int64_t others = 0;
    for (int i = 0; i < 200; ++i) others += loop(crew, 4096, 16);
    expect(threads > 2 || others <= 1, "the worker went on");
    ask(0);
    loop_until_a_worker_helps(crew);

    // Whoever asked is gone: the worker comes back by itself, and not before.
    ask(now() + 3000000);
    for (int64_t early = 0;;) {
      const int64_t helped = loop(crew, 4096, 16);
      if (now() >= until) break;
      expect(threads > 2 || (early += helped) <= 1, "it came back too early");
    }
    loop_until_a_worker_helps(crew);

    std::atomic<bool> over{false};
    std::thread asking([&] {
      std::minstd_rand random(1);
      while (!over) {
        const int64_t lengths[] = {0, 1, 20000, 200000, INT64_MAX / 2};
        const int64_t length = lengths[random() % 5];
        ask(length == 0 ? 0 : now() + length);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
      }
      ask(0);
    });
    std::minstd_rand random(2);
    for (int i = 0; i < 3000; ++i) loop(crew, 1 + random() % 3000, 1 + random() % 40);
    over = true;
    asking.join();
  }
  while (__atomic_load_n(&working, __ATOMIC_RELAXED) > 0) std::this_thread::yield();  // all workers go to sleep
  std::puts("right");
  std::fflush(stdout);
  _Exit(0);  // workers are never joined
}
