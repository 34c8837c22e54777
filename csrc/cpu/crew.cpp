#include "crew.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "spare_core.h"

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

// Of a worker that stands aside: long enough that it is not in the way, short enough that it is soon back.
constexpr std::chrono::microseconds kNap{50};

// Lines of 64 bytes that are asked for before the next look at whether there is work: some 20 nanoseconds.
constexpr int64_t kLine = 64;
constexpr int64_t kLinesAtOnce = 16;

// What is left of a thread's share, in pieces, and the number of the loop that they belong to.
struct Left {
  static constexpr int64_t kMostPieces = UINT16_MAX;
  uint32_t loop;
  uint16_t begin;
  uint16_t end;
};
static_assert(std::atomic<Left>::is_always_lock_free, "threads must not wait for each other here");

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
        std::thread([this, thread = workers_ + 1] { work(thread); }).detach();
      }
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return workers_;
  }

  void lead(int threads, int64_t total, int64_t piece, void (*call)(const void*, int64_t, int64_t),
            const void* context) {
    call_ = call;
    context_ = context;
    total_ = total;
    piece_ = std::max(piece, (total + Left::kMostPieces - 1) / Left::kMostPieces);
    const int64_t pieces = (total + piece_ - 1) / piece_;
    done_.store(0, std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
    const uint32_t loop = loop_.load(std::memory_order_relaxed) + 1;
    for (int thread = 0; thread < threads; ++thread) {
      shares_[thread].left.store({loop, static_cast<uint16_t>(pieces * thread / threads),
                                  static_cast<uint16_t>(pieces * (thread + 1) / threads)},
                                 std::memory_order_release);
    }
    loop_.store(loop, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      // Empty critical section: a worker is either not yet past its check, or waiting already.
      {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
      }
      wake_.notify_all();
    }
    while (take(0)) {
    }
    for (int i = 0; done_.load(std::memory_order_acquire) < pieces; ++i) {
      if (fetch(0)) continue;
      i < kLeaderSpins ? relax() : static_cast<void>(sched_yield());
    }
  }

  void expect(int thread, const uint8_t* data, int64_t bytes) {
    shares_[thread].lines.store(bytes / kLine, std::memory_order_relaxed);
    shares_[thread].next.store(data, std::memory_order_release);
  }

 private:
  // What lies on a line of its own is written by one thread most of the time.
  struct alignas(64) Share {
    std::atomic<Left> left{Left{}};
    std::atomic<const uint8_t*> next{nullptr};  // what the thread will read soon, null once it has begun to fetch it
    std::atomic<int64_t> lines{0};
    const uint8_t* at = nullptr;  // the rest of it, the thread's own
    int64_t lines_left = 0;
  };

  // Does one piece of the thread's share, or of another's if there is none left; false if there is none anywhere.
  bool take(int thread) {
    const int threads = threads_.load(std::memory_order_relaxed);
    for (int i = 0; i < threads; ++i) {
      const int owner = (thread + i) % threads;
      if (take_from(owner, owner == thread)) return true;
    }
    return false;
  }

  // A stale `left` fails to be exchanged: it holds the loop's number. Once the exchange has succeeded the description of
  // the loop stands still, since the leader waits for this piece.
  bool take_from(int owner, bool front) {
    std::atomic<Left>& place = shares_[owner].left;
    Left left = place.load(std::memory_order_acquire), rest;
    int64_t index;
    do {
      if (left.begin >= left.end) return false;
      rest = left;
      index = front ? rest.begin++ : --rest.end;
    } while (!place.compare_exchange_weak(left, rest, std::memory_order_acq_rel, std::memory_order_acquire));
    const int64_t begin = index * piece_;
    call_(context_, begin, std::min(begin + piece_, total_));
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  // Asks for some of what the thread will read soon; false if nothing is left of it.
  bool fetch(int thread) {
    Share& mine = shares_[thread];
    if (mine.next.load(std::memory_order_relaxed) != nullptr) {
      mine.at = mine.next.exchange(nullptr, std::memory_order_acquire);
      mine.lines_left = mine.lines.load(std::memory_order_relaxed);
    }
    if (mine.lines_left <= 0) return false;
    for (int64_t i = 0; i < kLinesAtOnce; ++i) __builtin_prefetch(mine.at + i * kLine, 0, 2);
    mine.at += kLinesAtOnce * kLine;
    mine.lines_left -= kLinesAtOnce;
    return true;
  }

  bool takes_part(int thread) const { return thread < threads_.load(std::memory_order_relaxed); }

  // Whether the thread leaves its core to who wants one: the last one does, where no core is free anyway.
  bool stands_aside(int thread) const {
    const int threads = threads_.load(std::memory_order_relaxed);
    return thread == threads - 1 && threads >= cores_ && spare_core_is_wanted();
  }

  void work(int thread) {
    uint32_t finished = 0;  // the loop in which nothing is left to take
    for (;;) {
      uint32_t loop = 0;
      count_working(1);
      for (int idle = 0; idle < kWorkerSpins; ++idle) {
        if (stands_aside(thread)) {
          std::this_thread::sleep_for(kNap);
          continue;
        }
        loop = loop_.load(std::memory_order_acquire);
        if (loop != finished && takes_part(thread)) {
          idle = 0;
          if (!take(thread)) finished = loop;
        } else if (!fetch(thread)) {
          relax();
        }
      }
      count_working(-1);
      // Any later loop wakes it, even one that is over by then: the next one follows soon, and it should be there.
      std::unique_lock<std::mutex> lock(sleep_mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return loop_.load(std::memory_order_seq_cst) != loop && takes_part(thread); });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  // What threads spin on lies on cache lines of its own.
  alignas(64) std::atomic<uint32_t> loop_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> threads_{0};  // that take part: workers are numbered from 1
  Share shares_[kMaxThreads];
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* context_ = nullptr;
  int64_t total_ = 0;
  int64_t piece_ = 1;
  std::atomic<int> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
  const int cores_ = static_cast<int>(std::thread::hardware_concurrency());  // that the process may use
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
  pool_.lead(threads_, total, piece, call, context);
}

void Crew::expect(int thread, const uint8_t* data, int64_t bytes) {
  if (threads_ > 1) pool_.expect(thread, data, bytes);
}

}  // namespace exl2
