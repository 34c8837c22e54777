// The threads that work on one step together.
//
// One job covers the whole step; inside it threads meet at barriers (some hundred per token), which must cost less than
// a microsecond: they spin. Between jobs the workers spin for a moment, since the next token follows soon, and then
// sleep, so that an idle program uses no processor time.
#pragma once

#include <cstdint>

namespace exl2 {

constexpr int kMaxThreads = 256;

struct Meeting;  // what the threads of a job share

class Crew {
 public:
  Crew(Meeting& meeting, int thread, int threads) : meeting_(meeting), thread_(thread), threads_(threads) {}

  int thread() const { return thread_; }
  int threads() const { return threads_; }

  // Returns once every thread of the job is here; what they wrote before is visible. Starts the next loop of claim().
  void barrier();

  // Hands out [0, total) in pieces: false when nothing is left. A thread that is held up (the user interface has its
  // core) takes fewer pieces. Between the loops of two phases there must be a barrier.
  bool claim(int64_t total, int64_t piece, int64_t* begin, int64_t* end);

  // A piece size for claim() that leaves each thread a few pieces, but none below `least`.
  int64_t piece(int64_t total, int64_t least = 1) const;

 private:
  Meeting& meeting_;
  int thread_;
  int threads_;
};

// Runs job(crew, context) on `threads` threads, the caller being thread 0, and returns when all are done. Jobs of
// several callers run one after another. Safe after fork(): the child starts its own workers.
void run_job(int threads, void (*job)(Crew& crew, void* context), void* context);

}  // namespace exl2
