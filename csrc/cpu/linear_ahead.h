// Asking for weights ahead of their use.
//
// One token: each line is read once, at the speed of memory, and what is under way must cover its latency. More than
// that makes up for pauses, such as the change from one section to the next. How to ask differs (Lanes::kDecodeAhead in
// bytes, kAskInCall, kAskIntoL2), measured with one core, one token, 4 and 6 bits:
//
// Zen 5, which reads at 46 GB/s (41 GB/s times 150 ns are 6 KiB): 38.6 and 37.5 GB/s with 8 KiB, 39.4 with 12, 16 or
// 20, 41.4 and 40.7 with 24, which is half of L1. Asked for into L2 only: 36.6 and 34.1. Its prefetchers learn a stream
// by the address of the instruction that reads it, and what software asks for is not enough alone: with prefetches in
// the loop of each width, every section of a tile began as a new stream. So codes of every width are asked for by one
// instruction, never inlined, never unrolled (8 KiB ahead, tiles of two sections: 37 GB/s; 32 inlined, 30 unrolled four
// times). It costs a sixth of the speed where weights are in L2.
//
// Emerald Rapids, which reads at 13.9 GB/s: so, 12.3 to 12.8 and 11.6 to 12.2 GB/s. What is asked for into L1 occupies
// one of its 16 buffers until it comes from memory, and then whatever else misses L1 waits. Into L2: 13.0 and 12.5
// with 64 KiB; inlined 13.4 to 13.8 and 12.3 to 13.4 with 16 KiB, which scatters less than 8 or 32 do.
//
// Many tokens: a tile's share of a chunk is 2 to 8 KiB, and where lines come into L1, it holds the chunk. (Past the end
// of the blob all of this is harmless.)
#pragma once

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kDecodeAhead = Lanes::kDecodeAhead;
constexpr int kChunkAhead = 2048;

static EXL2_INLINE void ask_for_each(const uint8_t* codes, int lines) {
#pragma GCC unroll 1
  for (int i = 0; i < lines; i++) __builtin_prefetch(codes + i * kLine, 0, Lanes::kAskIntoL2 ? 2 : 3);
}

static __attribute__((noinline)) void ask_in_call(const uint8_t* codes, int lines) {
  asm volatile("");  // or the calls of a function without effects would be left out
  ask_for_each(codes, lines);
}

static EXL2_INLINE void ask_for(const uint8_t* codes, int lines) {
  Lanes::kAskInCall ? ask_in_call(codes, lines) : ask_for_each(codes, lines);
}

}  // namespace EXL2_ISA
}  // namespace exl2
