// The threads that work on one step together.
//
// The caller leads: it walks through the step alone and hands out the loops that are worth it, working on them itself.
// Each thread takes pieces from the front of a share of its own, so that it reads memory in one stream, and when that is
// empty from the back of the others': a loop ends when its pieces are done, not when every thread has come by. A worker
// whose core is taken (by the user interface, by another program) takes no pieces, and nobody waits for it; unless it
// was taken in the middle of a piece, which is why the user interface says so beforehand (spare_core.h).
// Loops follow each other within microseconds, so workers spin between them; after a moment without work they sleep, so
// that an idle program uses no processor time. While they wait, they fetch what was said to come next.
#pragma once

#include <cstdint>

namespace exl2 {

constexpr int kMaxThreads = 256;

class Crew {
 public:
  // Claims the workers of the process; another thread's Crew waits for its turn until this one is destroyed.
  // Safe after fork(): the child starts its own workers. Fewer threads than asked for, if the system grants no more.
  explicit Crew(int threads);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  int threads() const { return threads_; }

  // Calls work(begin, end) for pieces of [0, total), on any threads at once; returns when all are done. What was
  // written before is visible inside, and what was written inside is visible afterwards.
  template <typename Work>
  void share(int64_t total, int64_t piece, const Work& work) {
    run(
        total, piece,
        [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Work*>(context))(begin, end); },
        &work);
  }

  // Where thread `thread` (0 is the caller) begins in the next loop with these numbers.
  int64_t share_begin(int64_t total, int64_t piece, int thread) const {
    const int64_t pieces = (total + piece - 1) / piece;
    return pieces * thread / threads_ * piece;
  }

  // What `thread` will read soon: it asks for these bytes while it has nothing else to do. Only a hint: the memory need
  // not even be there any more.
  void expect(int thread, const uint8_t* data, int64_t bytes);

  // A piece that leaves each thread some of [0, total), at least 1.
  int64_t even_piece(int64_t total) const {
    constexpr int64_t kPiecesPerThread = 8;
    const int64_t pieces = threads_ * kPiecesPerThread;
    return total > pieces ? (total + pieces - 1) / pieces : 1;
  }

 private:
  void run(int64_t total, int64_t piece, void (*call)(const void*, int64_t, int64_t), const void* context);

  class Pool;
  static Pool& pool();

  Pool& pool_;
  int threads_;
};

}  // namespace exl2
