// A passage on the GPU (passage.cu), as csrc/cpu/passage.h.
#pragma once

#include <cuda_runtime.h>

#include "cpu/choosing.h"
#include "plan.h"

namespace exl2::cuda {

struct Mail;

struct Writer {
  Model model;  // whole, with a head
  int64_t gate_strips;
  int64_t vocab;  // logits that are looked at
  int64_t best;   // of these so many choose the token: at most kMostTop (kernels.h)
  // In pinned memory:
  Mail* mail;     // zeros before the first passage
  int64_t* ids;   // (best)
  float* values;
};

int64_t mail_bytes();

// Runs `token` behind the `position` tokens in the cache, and what is chosen behind it. tokens (choosing.count) takes what was
// chosen after each step; the last may be kUnsure: then the logits of all tokens, on the GPU, are for others to look at.
// Returns the number of steps, 0 if it was cancelled before the first. The cache has room for all of them.
int64_t write_passage(const Writer& writer, const Choosing& choosing, int64_t token, int64_t position,
                      const volatile uint8_t* cancel, int64_t* tokens, cudaStream_t stream);

}  // namespace exl2::cuda
