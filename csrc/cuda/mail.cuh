// How the host and the GPU hand each other tokens and logits: through words in memory that both can reach. So steps are
// launched before anybody knows their token, and what lies between two of them is the way of a few bytes over the bus.
#pragma once

#include "common.cuh"

namespace exl2::cuda {

// In pinned memory. Steps are numbered from 1; at most two of them are under way.
struct Mail {
  // Written by the host.
  alignas(64) uint64_t asked;  // steps up to this one know their token
  int32_t position;            // tokens in the cache before it
  int32_t token;
  uint64_t launched;           // for the host itself: steps so far,
  uint64_t missed;             // and those that did not wait for their token
  // Written by the GPU.
  alignas(64) uint64_t answered;  // steps up to this one have left their best logits
  uint64_t passed[2];             // the last odd and even step that did not wait any longer, and was the one before again
};

__device__ __forceinline__ uint64_t read_word(const uint64_t* word) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}

// Whatever the CUDA block wrote before its last barrier is there for whoever finds this.
__device__ __forceinline__ void write_word(uint64_t* word, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

}  // namespace exl2::cuda
