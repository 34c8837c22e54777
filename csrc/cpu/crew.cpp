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

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 microseconds; then the leader lets others have the core: the worker it waits for may need that very one.
constexpr int kLeaderSpins = 1000;
// About 150 microseconds: between two tokens the sampler runs.
constexpr int kWorkerSpins = 6000;

constexpr int kLeftBits = 24;
constexpr uint64_t kLeftMask = (uint64_t{1} << kLeftBits) - 1;

}  // namespace

class Crew::Pool {
 public:
  // Serializes the crews of several callers.
  std::mutex turn;

  // Starts workers until there are `wanted`, or as many as the system grants; returns how many there are.
  int grow(int wanted) {
    if (workers_ >= wanted) return workers_;
    // Signals are for the threads of Python; workers inherit the mask.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; workers_ < wanted; ++workers_) {
        // Detached and never joined: the pool outlives everything, and a sleeping thread ends with the process.
        std::thread([this, index = workers_] { work(index); }).detach();
      }
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return workers_;
  }

  void lead(int workers, int64_t total, int64_t piece, void (*call)(const void*, int64_t, int64_t),
            const void* context) {
    call_ = call;
    context_ = context;
    total_ = total;
    piece_ = std::max(piece, (total + static_cast<int64_t>(kLeftMask) - 1) / static_cast<int64_t>(kLeftMask));
    pieces_ = (total + piece_ - 1) / piece_;
    done_.store(0, std::memory_order_relaxed);
    limit_.store(workers, std::memory_order_relaxed);
    const uint64_t loop = (state_.load(std::memory_order_relaxed) >> kLeftBits) + 1;
    state_.store(loop << kLeftBits | static_cast<uint64_t>(pieces_), std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      // Empty critical section: a worker is either not yet past its check, or waiting already.
      {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
      }
      wake_.notify_all();
    }
    while (take(state_.load(std::memory_order_relaxed))) {
    }
    for (int i = 0; done_.load(std::memory_order_acquire) < pieces_; ++i) {
      i < kLeaderSpins ? relax() : static_cast<void>(sched_yield());
    }
  }

 private:
  // Does one piece; false if none is left. A stale `state` fails to be exchanged: it holds the loop's number. Once the
  // exchange has succeeded the description of the loop stands still, since the leader waits for this piece.
  bool take(uint64_t state) {
    do {
      if ((state & kLeftMask) == 0) return false;
    } while (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel, std::memory_order_acquire));
    const int64_t begin = (pieces_ - static_cast<int64_t>(state & kLeftMask)) * piece_;
    call_(context_, begin, std::min(begin + piece_, total_));
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  bool takes_part(int index) const { return index < limit_.load(std::memory_order_relaxed); }

  void work(int index) {
    for (;;) {
      uint64_t state = 0;
      for (int idle = 0; idle < kWorkerSpins; ++idle) {
        state = state_.load(std::memory_order_acquire);
        if (takes_part(index) && take(state)) idle = 0;
        relax();
      }
      // Any later loop wakes it, even one that is over by then: the next one follows soon, and it should be there.
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return state_.load(std::memory_order_seq_cst) != state && takes_part(index); });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  // Number of the loop, and below it how many of its pieces nobody has taken yet. What threads spin on lies on cache
  // lines of its own.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> limit_{0};  // workers below this number take part
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* context_ = nullptr;
  int64_t total_ = 0;
  int64_t piece_ = 1;
  int64_t pieces_ = 0;
  std::atomic<int> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
};

Crew::Pool& Crew::pool() {
  static std::atomic<Pool*> instance{nullptr};
  // A forked child has none of the threads and perhaps locked mutexes: it forgets the pool and makes a new one.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { instance.store(nullptr); });
  (void)registered;
  Pool* current = instance.load(std::memory_order_acquire);
  if (current != nullptr) return *current;
  Pool* fresh = new Pool;
  if (instance.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

Crew::Crew(int threads) : pool_(pool()), threads_(std::clamp(threads, 1, kMaxThreads)) {
  if (threads_ == 1) return;
  pool_.turn.lock();
  threads_ = std::min(threads_, 1 + pool_.grow(threads_ - 1));
  if (threads_ == 1) pool_.turn.unlock();
}

Crew::~Crew() {
  if (threads_ > 1) pool_.turn.unlock();
}

void Crew::run(int64_t total, int64_t piece, void (*call)(const void*, int64_t, int64_t), const void* context) {
  if (total <= 0) return;
  if (threads_ == 1 || total <= piece) return call(context, 0, total);
  pool_.lead(threads_ - 1, total, piece, call, context);
}

}  // namespace exl2
