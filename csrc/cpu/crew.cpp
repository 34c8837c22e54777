#include "crew.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace exl2 {

// Each counter on its own cache line, so that spinning on one does not slow the others down.
struct Meeting {
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> round{0};
};

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 microseconds; a thread that waits longer lets others have the core: its peer may need that very one.
constexpr int kBarrierSpins = 1000;
// About 150 microseconds: the sampler runs between two tokens.
constexpr int kIdleSpins = 6000;

class Pool {
 public:
  void run(int threads, void (*job)(Crew&, void*), void* context) {
    std::lock_guard<std::mutex> one_at_a_time(run_mutex_);
    threads = std::clamp(threads, 1, kMaxThreads);
    threads = std::min(threads, 1 + grow(threads - 1));
    job_ = job;
    context_ = context;
    meeting_.next.store(0, std::memory_order_relaxed);
    if (threads > 1) post(threads);
    Crew crew(meeting_, 0, threads);
    job(crew, context);
    crew.barrier();  // the context lives on the caller's stack
  }

 private:
  // Number of the job in the upper bits, threads that take part in the lower ones. In one word, because a worker that
  // takes no part may look at any time; the other fields are read by participants, whom run() waits for.
  void post(int threads) {
    const uint64_t number = (posted_.load(std::memory_order_relaxed) >> 16) + 1;
    posted_.store(number << 16 | static_cast<uint64_t>(threads), std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      // Empty critical section: a worker is either not yet past its check, or waiting already.
      { std::lock_guard<std::mutex> lock(sleep_mutex_); }
      wake_.notify_all();
    }
  }

  uint64_t wait(uint64_t seen) {
    for (int i = 0; i < kIdleSpins; ++i) {
      const uint64_t now = posted_.load(std::memory_order_acquire);
      if (now != seen) return now;
      relax();
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return posted_.load(std::memory_order_seq_cst) != seen; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    return posted_.load(std::memory_order_acquire);
  }

  void work(int thread, uint64_t seen) {
    for (;;) {
      seen = wait(seen);
      const int threads = static_cast<int>(seen & 0xffff);
      if (thread >= threads) continue;
      Crew crew(meeting_, thread, threads);
      job_(crew, context_);
      crew.barrier();
    }
  }

  // Starts workers until there are `wanted`, or as many as the system grants; returns how many there are.
  int grow(int wanted) {
    if (workers_ >= wanted) return workers_;
    // Signals are for the threads of Python; workers inherit the mask.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; workers_ < wanted; ++workers_) {
        const int thread = workers_ + 1;
        const uint64_t seen = posted_.load(std::memory_order_relaxed);
        // Detached and never joined: the pool outlives everything, and a sleeping thread ends with the process.
        std::thread([this, thread, seen] { work(thread, seen); }).detach();
      }
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return workers_;
  }

  std::mutex run_mutex_;
  Meeting meeting_;
  void (*job_)(Crew&, void*) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> posted_{0};
  std::atomic<int> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
};

std::atomic<Pool*> g_pool{nullptr};

Pool& pool() {
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current != nullptr) return *current;
  // A forked child has none of the threads and maybe locked mutexes: it forgets the pool and makes a new one.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
  (void)registered;
  Pool* fresh = new Pool;
  if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void Crew::barrier() {
  if (threads_ == 1) {
    meeting_.next.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t round = meeting_.round.load(std::memory_order_relaxed);
  if (meeting_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    meeting_.arrived.store(0, std::memory_order_relaxed);
    meeting_.next.store(0, std::memory_order_relaxed);
    meeting_.round.store(round + 1, std::memory_order_release);
    return;
  }
  for (int i = 0; meeting_.round.load(std::memory_order_acquire) == round; ++i) {
    i < kBarrierSpins ? relax() : static_cast<void>(sched_yield());
  }
}

bool Crew::claim(int64_t total, int64_t piece, int64_t* begin, int64_t* end) {
  if (threads_ == 1) {
    if (meeting_.next.load(std::memory_order_relaxed) >= total) return false;
    *begin = 0;
    *end = total;
    meeting_.next.store(total, std::memory_order_relaxed);
    return total > 0;
  }
  *begin = meeting_.next.fetch_add(piece, std::memory_order_relaxed);
  if (*begin >= total) return false;
  *end = std::min(*begin + piece, total);
  return true;
}

int64_t Crew::piece(int64_t total, int64_t least) const {
  constexpr int64_t kPiecesPerThread = 4;
  return std::max(least, (total + threads_ * kPiecesPerThread - 1) / (threads_ * kPiecesPerThread));
}

void run_job(int threads, void (*job)(Crew& crew, void* context), void* context) {
  pool().run(threads, job, context);
}

}  // namespace exl2
