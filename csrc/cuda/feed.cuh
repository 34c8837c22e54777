// The weights of a whole decode step as one stream per warp.
//
// A warp knows from the start which segments it will multiply: of every linear, in the order of the step, its share of
// every strip of its CUDA block. It keeps a ring of slots in shared memory full of the next ones, across the ends of
// strips, layers and barriers, so that memory stays busy while the block waits for others. On Hopper a segment is one
// bulk copy that reports to a barrier in shared memory; older GPUs copy 16 bytes per lane.
#pragma once

#include "common.cuh"

namespace exl2::cuda {

constexpr int kOldSlots = 4;  // before Hopper: cp.async.wait_group wants a constant

class Feed {
 public:
  __device__ Feed(const Linear* linears, int count, uint8_t* ring, uint64_t* full, int slots, int slot_bytes)
      : next_(linears), left_(count), ring_(ring), full_(shared_address(full)), slots_(slots), slot_bytes_(slot_bytes) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < slots; ++i) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(full_ + 8 * i) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
#endif
    coming_ = read_next();
    enter_next();
    for (slot_ = 0; slot_ < slots_; ++slot_) request();
    slot_ = 0;
  }

  // The oldest segment that is on its way, once it is there.
  __device__ const uint8_t* wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(full_ + 8 * slot_),
        "r"(parity_)
        : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kOldSlots - 1) : "memory");
    __syncwarp();
#endif
    return ring_ + slot_ * slot_bytes_;
  }

  // All lanes are done with that segment: its slot takes the next one.
  __device__ void release() {
    __syncwarp();
    request();
    if (++slot_ == slots_) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  // This warp's part of one linear: segments [begin, end) of the strips from `strip` on.
  struct Span {
    const uint8_t* codes;  // of `strip`
    const uint32_t* offsets;
    uint32_t strip_bytes;
    int strip;
    int strips;
    Share share;
  };

  __device__ Span read_next() {
    Span span = {};
    if (left_ == 0) return span;
    --left_;
    const Linear& linear = *next_++;
    span.offsets = linear.offsets;
    span.strip_bytes = static_cast<uint32_t>(linear.strip_bytes);
    span.strips = static_cast<int>(linear.strips);
    span.strip = static_cast<int>(blockIdx.x) - static_cast<int>(linear.offset);
    if (span.strip < 0) span.strip += static_cast<int>(gridDim.x);
    span.codes = linear.codes + static_cast<int64_t>(span.strip) * span.strip_bytes;
    span.share = linear.shares[threadIdx.x / 32];
    return span;
  }

  // Moves on to the next linear that has work for this warp. The one after it is looked up ahead of time.
  __device__ void enter_next() {
    do {
      now_ = coming_;
      if (now_.strips == 0) {
        alive_ = false;
        return;
      }
      coming_ = read_next();
    } while (now_.strip >= now_.strips || now_.share.begin == now_.share.end);
    first_segment();
  }

  __device__ void first_segment() {
    segment_ = now_.share.begin;
    from_ = now_.share.from;
    to_ = now_.share.to;
  }

  __device__ void request() {
    if (alive_) {
      copy(ring_ + slot_ * slot_bytes_, now_.codes + static_cast<int64_t>(from_) * 16, (to_ - from_) * 16);
      if (++segment_ < now_.share.end) {
        from_ = to_;
        to_ = __ldg(now_.offsets + segment_ + 1);
      } else if ((now_.strip += static_cast<int>(gridDim.x)) < now_.strips) {
        now_.codes += static_cast<int64_t>(gridDim.x) * now_.strip_bytes;
        first_segment();
      } else {
        enter_next();
      }
    }
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");  // also an empty one: the number of groups is waited for
#endif
  }

  __device__ void copy(uint8_t* to, const uint8_t* from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0) {
      const uint32_t full = full_ + 8 * slot_;
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
              shared_address(to)),
          "l"(from), "r"(bytes), "r"(full), "l"(policy_)
          : "memory");
    }
#elif __CUDA_ARCH__ >= 800
    for (uint32_t i = 16 * (threadIdx.x % 32); i < bytes; i += 16 * 32) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to + i)), "l"(from + i) : "memory");
    }
#endif
  }

  const Linear* next_;
  int left_;
  uint8_t* ring_;
  uint32_t full_;
  int slots_;
  int slot_bytes_;
  uint64_t policy_ = 0;
  Span now_;
  Span coming_;
  bool alive_ = true;
  int segment_ = 0;
  uint32_t from_ = 0;
  uint32_t to_ = 0;
  int slot_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace exl2::cuda
