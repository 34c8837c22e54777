// The weights of a whole decode step as one stream per warp.
//
// Which segments a warp will multiply is known from the start: of every linear, in the order of the step, its share of
// every strip of its CUDA block. One or two more warps, the feeders, keep a ring of slots per warp in shared memory full of
// the next ones, across the ends of strips, layers and barriers, so that memory stays busy while the block waits for others.
// A lane of a feeder serves one ring; one feeder for all cannot keep up with short segments, and is faster with long ones.
// On Hopper a segment is one bulk copy; older GPUs copy 16 bytes per lane.
// Each slot has two barriers in shared memory: `full` (the segment is there) and `empty` (the warp is done with it).
#pragma once

#include "common.cuh"

namespace exl2::cuda {

struct Rings {
  uint8_t* slots;  // (kWarps, count, slot_bytes)
  uint64_t* full;  // (kWarps, count)
  uint64_t* empty;
  int count;
  int slot_bytes;
};

__device__ __forceinline__ bool is_done(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// By one thread, before the CUDA block's first barrier.
__device__ inline void start_rings(const Rings& rings) {
#if __CUDA_ARCH__ >= 900
  constexpr int kArrivals = 1;
#else
  constexpr int kArrivals = 32;  // every lane of a feeder copies
#endif
  for (int i = 0; i < kWarps * rings.count; ++i) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(rings.full + i)), "n"(kArrivals) : "memory");
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(rings.empty + i)) : "memory");
  }
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// What a warp sees of its ring, while it multiplies. In between, only its position is kept.
class Feed {
 public:
  __device__ __forceinline__ Feed(const Rings& rings, int warp, int position)
      : to_empty_(shared_address(rings.empty) - shared_address(rings.full)), count_(rings.count),
        slot_bytes_(rings.slot_bytes) {
    const int slot = position / 2;
    at_ = rings.slots + (warp * rings.count + slot) * rings.slot_bytes;
    full_ = shared_address(rings.full + warp * rings.count + slot);
    left_ = rings.count - slot;
    parity_ = position % 2;
    there_ = false;
  }

  // The next segment, once it is there.
  __device__ __forceinline__ const uint8_t* wait() {
    while (!there_) there_ = is_done(full_, parity_);
    return at_;
  }

  // On to the next slot; whether it is full is asked now, as the answer takes longer than many instructions. Returns
  // what to release when the segment before has been read.
  __device__ __forceinline__ uint32_t move_on() {
    const uint32_t before = full_ + to_empty_;
    at_ += slot_bytes_;
    full_ += 8;
    if (--left_ == 0) {
      left_ = count_;
      at_ -= count_ * slot_bytes_;
      full_ -= 8 * count_;
      parity_ ^= 1;
    }
    there_ = is_done(full_, parity_);
    return before;
  }

  // Where to go on; 0 at the start of a step.
  __device__ __forceinline__ int position() const { return 2 * (count_ - left_) + static_cast<int>(parity_); }

  // All lanes are done with a segment.
  __device__ __forceinline__ static void release(uint32_t before) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(before) : "memory");
  }

 private:
  const uint8_t* at_;  // the current slot
  uint32_t full_;      // its barrier
  uint32_t to_empty_;
  int count_;
  int left_;  // slots up to the end of the ring
  int slot_bytes_;
  uint32_t parity_;
  bool there_;  // the current slot is known to be full
};

// A warp's part of one linear: segments [share.begin, share.end) of the strips from `strip` on, gridDim.x apart.
struct Span {
  const uint8_t* codes;
  const uint32_t* offsets;
  int64_t strips;
  int64_t strip_bytes;
  int64_t strip;
  alignas(16) Share share;
};
static_assert(sizeof(Span) == 64);

// Walks over the segments of one warp through all linears. The linear after the present one is asked for ahead of time.
// Both lie in shared memory, as on Hopper a feeder has few registers, and what it spilled would be as far away as L2.
class Cursor {
 public:
  // spans: shared, two that are kWarps apart.
  __device__ Cursor(const Linear* linears, int count, int warp, Span* spans)
      : next_(linears), left_(count), warp_(warp), present_(spans + kWarps), coming_(spans) {
    if (count == 0) return;
    ask_next();
    enter_next();
  }

  __device__ bool alive() const { return to_ != from_; }
  __device__ const uint8_t* from() const { return codes_ + static_cast<int64_t>(from_) * 16; }
  __device__ uint32_t bytes() const { return (to_ - from_) * 16; }

  __device__ void advance() {
    if (++segment_ < end_) {
      from_ = to_;
      to_ = __ldg(offsets_ + segment_ + 1);
    } else if ((strip_ += static_cast<int>(gridDim.x)) < static_cast<int>(present_->strips)) {
      codes_ += static_cast<int64_t>(gridDim.x) * static_cast<uint32_t>(present_->strip_bytes);
      first_segment();
    } else {
      enter_next();
    }
  }

 private:
#if __CUDA_ARCH__ >= 900
  __device__ void ask_next() {
    if (left_ == 0) {
      coming_->strips = 0;
      return;
    }
    --left_;
    const Linear& linear = *next_++;
    ask(&coming_->codes, &linear.codes);
    ask(&coming_->offsets, &linear.offsets);
    ask(&coming_->strips, &linear.strips);
    ask(&coming_->strip_bytes, &linear.strip_bytes);
    ask(&coming_->strip, &linear.offset);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&coming_->share)),
                 "l"(&linear.shares[warp_])
                 : "memory");
  }

  template <typename To, typename From>
  __device__ static void ask(To* to, const From* from) {
    static_assert(sizeof(To) == 8 && sizeof(From) == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(to)), "l"(from) : "memory");
  }

  __device__ void await_next() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
  // Only loads, nothing that would wait for them: the weights are on their way with cp.async, too.
  __device__ void ask_next() {
    read_ = {};
    if (left_ == 0) return;
    --left_;
    const Linear& linear = *next_++;
    read_ = {linear.codes, linear.offsets, linear.strips, linear.strip_bytes, linear.offset, linear.shares[warp_]};
  }

  __device__ void await_next() { *coming_ = read_; }
#endif

  // Moves on to the next linear that has work for this warp.
  __device__ void enter_next() {
    do {
      await_next();
      Span* const before = present_;
      present_ = coming_;
      coming_ = before;
      if (present_->strips == 0) {
        from_ = to_;
        return;
      }
      strip_ = static_cast<int>(blockIdx.x) - static_cast<int>(present_->strip);
      if (strip_ < 0) strip_ += static_cast<int>(gridDim.x);
      ask_next();
    } while (strip_ >= static_cast<int>(present_->strips) || present_->share.begin == present_->share.end);
    codes_ = present_->codes + static_cast<int64_t>(strip_) * static_cast<uint32_t>(present_->strip_bytes);
    offsets_ = present_->offsets;
    first_segment();
  }

  __device__ void first_segment() {
    segment_ = present_->share.begin;
    end_ = present_->share.end;
    from_ = present_->share.from;
    to_ = present_->share.to;
  }

  const Linear* next_;
  int left_;
  int warp_;
  Span* present_;
  Span* coming_;
#if __CUDA_ARCH__ < 900
  Span read_;
#endif
  const uint8_t* codes_;     // of the strip
  const uint32_t* offsets_;  // of the linear
  int strip_;
  int segment_;
  int end_;
  uint32_t from_ = 0;  // where the segment lies in the strip; nowhere: there is none
  uint32_t to_ = 0;
};

// The whole work of a feeder, number `feeder` of 1 or 2 `feeders`. By one warp. spans: shared, (2, kWarps).
__device__ inline void feed_rings(const Linear* linears, int count, const Rings& rings, int feeder, int feeders,
                                  Span* spans) {
  const int each = kWarps / feeders;
  const int lane = threadIdx.x % 32;
  const int ring = feeder * each + (lane < each ? lane : 0);
  Cursor cursor(linears, lane < each ? count : 0, ring, spans + ring);
  int slot = 0;
  uint32_t parity = 1;  // what a barrier that nobody used yet counts as done for
  const uint32_t slots = shared_address(rings.slots + ring * rings.count * rings.slot_bytes);
  const uint32_t full = shared_address(rings.full + ring * rings.count);
  const uint32_t empty = shared_address(rings.empty + ring * rings.count);
#if __CUDA_ARCH__ >= 900
  // Weights are read once per step, what else is in L2 shall stay: what createpolicy gives for evict_first.
  constexpr uint64_t policy = 0x12f0000000000000;
#endif
  while (__any_sync(0xffffffffu, cursor.alive())) {
    const bool ready = cursor.alive() && is_done(empty + 8 * slot, parity);
#if __CUDA_ARCH__ >= 900
    if (ready) {
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(full + 8 * slot), "r"(cursor.bytes())
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
              slots + slot * rings.slot_bytes),
          "l"(cursor.from()), "r"(cursor.bytes()), "r"(full + 8 * slot), "l"(policy)
          : "memory");
    }
#else
    for (uint32_t left = __ballot_sync(0xffffffffu, ready); left != 0; left &= left - 1) {
      const int which = __ffs(static_cast<int>(left)) - 1;
      const uint32_t to = __shfl_sync(0xffffffffu, slots + slot * rings.slot_bytes, which);
      const uint32_t arrive = __shfl_sync(0xffffffffu, full + 8 * slot, which);
      const uint32_t bytes = __shfl_sync(0xffffffffu, cursor.bytes(), which);
      const auto from = __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(cursor.from()), which);
      for (uint32_t i = 16 * lane; i < bytes; i += 16 * 32) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
      }
      asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(arrive) : "memory");
    }
#endif
    if (ready) {
      cursor.advance();
      if (++slot == rings.count) {
        slot = 0;
        parity ^= 1;
      }
    }
    if (!__any_sync(0xffffffffu, ready)) __nanosleep(100);
  }
}

}  // namespace exl2::cuda
