// How the CUDA blocks of a decode step hand each other results: without barriers. A number and a stamp lie in one word,
// which is written and read at once, so whoever finds the stamp has the number too (the idea of NCCL's LL protocol). A
// barrier would cost the way to memory four times: a fence, an arrival, a poll and then the reading.
//
// The stamp is the layer's number + 1; all words are cleared before a step. No word is written again while somebody
// may still read it: a block reads results only to compute columns of the next phase from them, and the next result in
// the same place, a layer later, depends on all of those columns.
#pragma once

#include "common.cuh"

namespace exl2::cuda {

__device__ __forceinline__ uint32_t stamp_of(int layer) { return static_cast<uint32_t>(layer) + 1; }

__device__ __forceinline__ void put(Packet* to, float value, uint32_t stamp) {
  asm volatile("{\n.reg .b64 w;\nmov.b64 w, {%1, %2};\nst.relaxed.gpu.global.b64 [%0], w;\n}\n" ::"l"(to), "f"(value),
               "r"(stamp)
               : "memory");
}

__device__ __forceinline__ void put(HalfPacket* to, uint16_t value, uint32_t stamp) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(stamp << 16 | value) : "memory");
}

__device__ __forceinline__ Packet look(const Packet* from) {
  Packet found;
  asm volatile("{\n.reg .b64 w;\nld.relaxed.gpu.global.b64 w, [%2];\nmov.b64 {%0, %1}, w;\n}\n"
               : "=f"(found.value), "=r"(found.stamp)
               : "l"(from)
               : "memory");
  return found;
}

// Waits for what was not there yet. To have the answers to several questions at once: look() at all, then await() each.
__device__ __forceinline__ float await(Packet found, const Packet* from, uint32_t stamp) {
  while (found.stamp != stamp) found = look(from);
  return found.value;
}

// What a short packet tells of a value: 16 bits of its mantissa.
__device__ __forceinline__ float shortened(float value) {
  return __uint_as_float((__float_as_uint(value) + 0x80u) & ~0xffu);
}

__device__ __forceinline__ ShortPacket short_packet(float value, uint32_t stamp) {
  return {__float_as_uint(shortened(value)) | stamp};
}

__device__ __forceinline__ void put(ShortPacket* to, float value, uint32_t stamp) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(short_packet(value, stamp).word) : "memory");
}

__device__ __forceinline__ ShortPacket look(const ShortPacket* from) {
  ShortPacket found;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(found.word) : "l"(from) : "memory");
  return found;
}

__device__ __forceinline__ float value_of(uint32_t word) { return __uint_as_float(word & ~0xffu); }

__device__ __forceinline__ float await(ShortPacket found, const ShortPacket* from, uint32_t stamp) {
  while ((found.word & 0xffu) != stamp) found = look(from);
  return value_of(found.word);
}

// Four in a row, aligned to 16 bytes.
template <typename FourBytes>
__device__ __forceinline__ uint4 look_at_four(const FourBytes* from) {
  static_assert(sizeof(FourBytes) == 4);
  uint4 found;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
               : "l"(from)
               : "memory");
  return found;
}

__device__ __forceinline__ float4 await_four(uint4 found, const ShortPacket* from, uint32_t stamp) {
  while ((((found.x ^ stamp) | (found.y ^ stamp) | (found.z ^ stamp) | (found.w ^ stamp)) & 0xffu) != 0) {
    found = look_at_four(from);
  }
  return make_float4(value_of(found.x), value_of(found.y), value_of(found.z), value_of(found.w));
}

// Four halves. Only the first `count` of them will ever be written; the others are zero.
__device__ __forceinline__ uint2 await_four(uint4 found, const HalfPacket* from, uint32_t stamp, int count) {
  const auto missing = [&](uint32_t word, int i) { return word >> 16 != stamp && i < count; };
  while (missing(found.x, 0) || missing(found.y, 1) || missing(found.z, 2) || missing(found.w, 3)) {
    found = look_at_four(from);
  }
  return make_uint2(__byte_perm(found.x, found.y, 0x5410), __byte_perm(found.z, found.w, 0x5410));
}

constexpr int kLineWords = 16;  // uint64 per cache line

// Counts CUDA blocks that are done with something. Only thread 0 has a part in it, so what it waits for lies in shared
// memory and takes no register of all. The counter goes on from launch to launch; each has its own cache line.
class Arrivals {
 public:
  // first: what the counter is before anybody arrives in this launch. target: shared, its lower half.
  __device__ __forceinline__ Arrivals(uint64_t* count, uint64_t first, uint32_t* target) : count_(count), target_(target) {
    if (thread_index() == 0) *target = static_cast<uint32_t>(first);
  }

  __device__ __forceinline__ void arrive() {
    if (thread_index() == 0) asm volatile("red.relaxed.gpu.global.add.u64 [%0], 1;" ::"l"(count_) : "memory");
  }

  __device__ __forceinline__ void skip(int blocks) {
    if (thread_index() == 0) *target_ += blocks;
  }

  // Until `blocks` more have arrived, but `early` of them, and all workers know. What they wrote may be on its way still:
  // its stamps tell.
  // Without this wait before the first look, all threads would ask for all results again and again, in the way of the
  // weights.
  __device__ __forceinline__ void wait(int blocks, int early) {
    if (thread_index() == 0) {
      const uint32_t target = (*target_ += blocks) - static_cast<uint32_t>(early);
      while (static_cast<int32_t>(static_cast<uint32_t>(look(count_)) - target) < 0) {
      }
    }
    sync_workers();
  }

  __device__ __forceinline__ static uint64_t look(const uint64_t* count) {
    uint64_t seen;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(count) : "memory");
    return seen;
  }

 private:
  uint64_t* count_;
  uint32_t* target_;
};

// A barrier of all CUDA blocks, once per step. Returns the counter's value when all have arrived, to thread 0.
__device__ __forceinline__ uint64_t wait_for_grid(uint64_t* count) {
  uint64_t target = 0;
  sync_workers();
  if (threadIdx.x == 0) {
    uint64_t seen;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;" : "=l"(seen) : "l"(count) : "memory");
    target = (seen / gridDim.x + 1) * gridDim.x;
    do {
      asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(count) : "memory");
    } while (seen < target);
  }
  sync_workers();
  return target;
}

}  // namespace exl2::cuda
