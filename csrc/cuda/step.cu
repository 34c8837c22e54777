// A decode step, from token ids to logits, as one kernel that stays on the GPU: one CUDA block per multiprocessor, five
// phases per layer, each waiting for the results of the one before (exchange.cuh). Decoding reads every weight once, so
// the kernel is built around keeping memory busy: each warp streams its share of all weights through a ring (feed.cuh)
// that runs ahead of the phases. While blocks wait for each other, stage activations or attend, the next weights arrive.
//
// A linear: strips of 32 columns are dealt to the CUDA blocks, the rows of a strip to the warps. Activations are staged
// once per phase in shared memory, in the packed order of the weight. Sums over warps have a fixed order and no column
// has two writers, so that a step gives the same bits every time.
//
// Bytes moved per weight: bits / 8, plus 32 bytes per segment of 128 rows and 32 columns (EXL2).
#include "attention.cuh"
#include "feed.cuh"
#include "kernels.h"
#include "product.cuh"

namespace exl2::cuda {
namespace {

constexpr int kWorkers = 32 * kWarps;     // threads that multiply; one more warp feeds them
constexpr int kThreads = kWorkers + 32;
constexpr int kMostSlots = 8;
constexpr int kFewestSlots = 3;
constexpr int kBatch = 8;          // strips (times tokens) whose sums are put together at once
static_assert(kBatch * kStripColumns <= kWorkers, "one thread per sum");
constexpr int kNormRounds = 2;     // of 4 * kWorkers elements that are kept in registers; wider residuals are read twice

constexpr int kLineWords = 16;     // uint64 per cache line

struct Step {
  Model model;
  int tokens;
  int slots;
  int batch;
  // Where things begin in shared memory, which starts with the ring.
  int barriers_at;  // full, empty: uint64 (kWarps, slots) each
  int turns_at;     // float (tokens, 2, rope_dim / 2): cosines and sines of the new tokens
  int sums_at;   // float (batch, kWarps, tokens, 32)
  int ones_at;   // float (blocks of rows, ones_step): sums of activations
  int gates_at;  // float (strips of the gate, tokens, 32)
  int input_at;  // half (tokens, padded_row), or what attention needs
};

EXL2_HD int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Elements of one token's activations in shared memory: rows start in other banks, so that 8 tokens do not collide.
__host__ __device__ __forceinline__ int64_t padded_row(int64_t in_features) {
  return in_features % 64 == 32 ? in_features : in_features + 32;
}

// From block to block of the sums of activations: room for pairs of tokens.
__host__ __device__ __forceinline__ int ones_step(int tokens) { return tokens == 1 ? 1 : (tokens + 1) / 2 * 2; }

// Counts CUDA blocks that are done with something. Only thread 0 has a part in it. The counter goes on from launch to
// launch; each has its own cache line.
class Arrivals {
 public:
  // first: what the counter is before anybody arrives in this launch.
  __device__ __forceinline__ Arrivals(uint64_t* count, uint64_t first)
      : count_(count), target_(static_cast<uint32_t>(first)) {}

  __device__ __forceinline__ void arrive() {
    if (thread_index() == 0) asm volatile("red.relaxed.gpu.global.add.u64 [%0], 1;" ::"l"(count_) : "memory");
  }

  __device__ __forceinline__ void skip(int blocks) { target_ += blocks; }

  // Until `blocks` more have arrived, and all workers know. What they wrote may be on its way still: its stamps tell.
  // Without this wait before the first look, all threads would ask for all results again and again, in the way of the
  // weights.
  __device__ __forceinline__ void wait(int blocks) {
    target_ += blocks;
    if (thread_index() == 0) {
      while (static_cast<int32_t>(static_cast<uint32_t>(look(count_)) - target_) < 0) {
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
  uint32_t target_;  // lower half
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

// The norm's weights and where the results go, for the 4 elements from i on.
struct NormPlace {
  uint2 weight;  // half (4)
  int4 rows;     // if they are in another order

  __device__ __forceinline__ void load(const uint16_t* norm, const int32_t* inverse, int i) {
    weight = *reinterpret_cast<const uint2*>(norm + i);
    if (inverse != nullptr) rows = *reinterpret_cast<const int4*>(inverse + i);
  }

  // The choice is made here: made in load(), it would wait for the rows to arrive.
  __device__ __forceinline__ void store(const float4& value, float factor, bool ordered, int i, uint16_t* row) const {
    const int4 place = ordered ? make_int4(i, i + 1, i + 2, i + 3) : rows;
    const float2 low = __half22float2(as_half2(weight.x));
    const float2 high = __half22float2(as_half2(weight.y));
    row[place.x] = half_bits(value.x * factor * low.x);
    row[place.y] = half_bits(value.y * factor * low.y);
    row[place.z] = half_bits(value.z * factor * high.x);
    row[place.w] = half_bits(value.w * factor * high.y);
  }
};

__device__ __forceinline__ float square_sum(const float4& v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// The residual, as soon as it is there, normalized.
template <bool kOne>
__device__ __forceinline__ void stage_normalized(const Step& step, const Packet* residual, uint32_t stamp,
                                                 const uint16_t* norm, const int32_t* inverse, int64_t in_features,
                                                 uint16_t* x, float* scratch) {
  const Model& model = step.model;
  const int thread = thread_index();
  const int hidden = static_cast<int>(model.hidden);
  constexpr int kFar = 4 * kWorkers * kNormRounds;
#pragma unroll 1
  for (int m = 0; m < (kOne ? 1 : step.tokens); ++m) {
    const Packet* from = residual + m * model.hidden;
    uint16_t* row = x + m * padded_row(in_features);
    FourPackets near[kNormRounds] = {};
    NormPlace place[kNormRounds] = {};
    float4 value[kNormRounds] = {};
    float squares = 0.f;
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) {
        place[r].load(norm, inverse, i);
        near[r].look(from + i);
      }
    }
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) value[r] = near[r].await(from + i, stamp);
      squares += square_sum(value[r]);
    }
    auto far_value = [&](int i) {
      FourPackets four;
      four.look(from + i);
      return four.await(from + i, stamp);
    };
#pragma unroll 2
    for (int i = kFar + 4 * thread; i < hidden; i += 4 * kWorkers) squares += square_sum(far_value(i));
    const float mean = __fdividef(workers_sum(squares, scratch), static_cast<float>(hidden));
    const float factor = rsqrtf(mean + static_cast<float>(model.eps));
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (thread + kWorkers * r);
      if (i < hidden) place[r].store(value[r], factor, inverse == nullptr, i, row);
    }
#pragma unroll 2
    for (int i = kFar + 4 * thread; i < hidden; i += 4 * kWorkers) {
      NormPlace far = {};
      far.load(norm, inverse, i);
      far.store(far_value(i), factor, inverse == nullptr, i, row);
    }
    for (int64_t i = hidden + thread; i < in_features; i += kWorkers) row[i] = 0;
    sync_workers();
  }
}

// Activations that the phase before leaves in packed order, as soon as they are there, and their sums (see sum_blocks):
// 8 threads share a block. size: of them; in_features of the weight may be more.
template <bool kOne>
__device__ __forceinline__ void stage_packed(const Step& step, const HalfPacket* input, uint32_t stamp, int64_t size,
                                             int64_t in_features, uint16_t* x, float* ones) {
  constexpr int kAtOnce = 6;
  const int thread = thread_index();
  const int tokens = kOne ? 1 : step.tokens;
  const int end = static_cast<int>(in_features);
#pragma unroll 1
  for (int m = 0; m < tokens; ++m) {
    const HalfPacket* from = input + m * in_features;
    uint16_t* const row = x + m * padded_row(in_features);
#pragma unroll 1
    for (int start = 0; start < end; start += 4 * kWorkers * kAtOnce) {
      const int first = start + 4 * thread;
      uint4 found[kAtOnce] = {};
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int i = first + 4 * kWorkers * r;
        if (i < end) found[r] = look_at_four(from + i);
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int i = first + 4 * kWorkers * r;
        float sum = 0.f;
        if (i < end) {
          const uint2 four = await_four(found[r], from + i, stamp, static_cast<int>(size) - i);
          *reinterpret_cast<uint2*>(row + i) = four;
          const float2 low = __half22float2(as_half2(four.x));
          const float2 high = __half22float2(as_half2(four.y));
          sum = (low.x + low.y) + (high.x + high.y);
        }
#pragma unroll
        for (int apart = 1; apart < 8; apart *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
        if (i < end && thread % 8 == 0) ones[i / kBlockRows * ones_step(tokens) + m] = sum;
      }
    }
  }
  sync_workers();
}

// Sums of the staged activations over each block of rows, float (blocks, ones_step), which the zero points of codes are
// multiplied by. Once per phase, for all strips. Four threads share a block.
template <bool kOne>
__device__ __forceinline__ void sum_blocks(const Step& step, int64_t in_features, const uint16_t* x, float* ones) {
  const int tokens = kOne ? 1 : step.tokens;
  const int thread = thread_index();
  const int blocks = static_cast<int>(in_features) / kBlockRows;
#pragma unroll 1
  for (int m = 0; m < tokens; ++m) {
    const uint16_t* row = x + m * padded_row(in_features);
#pragma unroll 1
    for (int first = 0; first < 4 * blocks; first += kWorkers) {
      const int i = first + thread;
      float sum = 0.f;
      if (i < 4 * blocks) {
        const uint4 words = *reinterpret_cast<const uint4*>(row + 8 * i);
        const float2 a = __half22float2(as_half2(words.x));
        const float2 b = __half22float2(as_half2(words.y));
        const float2 c = __half22float2(as_half2(words.z));
        const float2 d = __half22float2(as_half2(words.w));
        sum = ((a.x + a.y) + (b.x + b.y)) + ((c.x + c.y) + (d.x + d.y));
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (i < 4 * blocks && i % 4 == 0) ones[i / 4 * ones_step(tokens) + m] = sum;
    }
  }
  sync_workers();
}

// The first strip that this CUDA block computes; the others are a grid apart.
__device__ __forceinline__ int first_strip(const Linear& w) {
  const int strip = static_cast<int>(blockIdx.x) - static_cast<int>(w.offset);
  return strip < 0 ? strip + static_cast<int>(gridDim.x) : strip;
}

// A strip that this CUDA block computes, as those who add up its warps' sums find it.
struct Item {
  int part;
  int strip;
  int index;  // among the block's strips of the part
};

// All strips of parts [first, last) that belong to this CUDA block; they read the same activations. finish(has, item,
// n, token, sum) is called by all workers together, `has` tells whether the thread has a sum: that of column n.
template <bool kOne, typename Finish>
__device__ __forceinline__ void multiply_strips(const Step& step, const Linear* parts, int first, int last, const Rings& rings,
                                                int& position, uint8_t* shared, Item* items, Finish finish) {
  const int thread = thread_index();
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int tokens = kOne ? 1 : step.tokens;
  Feed feed(rings, warp, position);
  float* const sums = reinterpret_cast<float*>(shared + step.sums_at);
  // Lanes of tokens that are not there repeat the first one; nobody looks at their results.
  const Activations x = {reinterpret_cast<const uint16_t*>(shared + step.input_at) + 8 * t +
                             (g < tokens ? g : 0) * padded_row(parts[first].in_features),
                         reinterpret_cast<const float*>(shared + step.ones_at) + (2 * t < tokens ? 2 * t : 0),
                         ones_step(tokens)};
  const int each = tokens * kStripColumns;

  int count = 0;
  auto put_together = [&]() {
    sync_workers();
    const int which = thread / each;
    const bool mine = which < count;
    const Item item = mine ? items[which] : Item{first, 0, 0};
    const Linear& w = parts[item.part];
    const int64_t n = static_cast<int64_t>(item.strip) * kStripColumns + thread % kStripColumns;
    const bool has = mine && n < w.out_features;
    float sum = 0.f;
    if (has) {
      const float* from = sums + which * kWarps * each + thread % each;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) sum += from[other * each];
      if (w.bias != nullptr) sum += half_float(w.bias[n]);
    }
    finish(has, item, n, thread % each / kStripColumns, sum);
    count = 0;
  };

#pragma unroll 1
  for (int part = first; part < last; ++part) {
    const Linear& w = parts[part];
    const int grid = static_cast<int>(gridDim.x);
    const int strips = static_cast<int>(w.strips);
    const int segments = w.shares[warp].end - w.shares[warp].begin;
    int strip = first_strip(w);
    int index = 0;
    int left = segments;  // of the strip
    Sums total = {};
    auto end_strip = [&](float unit) {
      if (thread == 0) items[count] = {part, strip, index};
      float* const to = sums + (count * kWarps + warp) * each;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; i += kOne ? 2 : 1) {
          const int token = 2 * t + i % 2;
          if (token < tokens) to[token * kStripColumns + 16 * h + g + 8 * (i / 2)] = total[h][i] * unit;
          total[h][i] = 0.f;
        }
      }
      ++count;
      ++index;
      strip += grid;
      left = segments;
    };
#pragma unroll 1
    while (strip < strips) {
      if (count == step.batch) {
        put_together();
        sync_workers();
      }
      if (segments == 0) {
        end_strip(1.f);
        continue;
      }
      // As long as the width stays the same there is nothing to decide.
      const uint8_t* stream = feed.wait();
      Header header = *reinterpret_cast<const Header*>(stream);
      for_bits(header.bits, [&](auto bits) {
        constexpr int kBits = decltype(bits)::value;
        for (;;) {
          const uint32_t before = feed.move_on();
          const int kind = header.blocks == full_blocks(kBits) ? header.kind : kAnyKind;
          if (kBits == 16 && kind == kDense) {
            multiply_segment<kBits, kOne, kDense>(header, stream, x, lane, total);
          } else if (kBits != 16 && kind == kExl2) {
            multiply_segment<kBits, kOne, kExl2>(header, stream, x, lane, total);
          } else if (kBits != 16 && kind == kGptq) {
            multiply_segment<kBits, kOne, kGptq>(header, stream, x, lane, total);
          } else {
            multiply_segment<kBits, kOne, kAnyKind>(header, stream, x, lane, total);
          }
          feed.release(before);
          if (--left == 0) {
            end_strip(kBits == 16 ? 1.f : 1.f / kCodeUnit);
            if (strip >= strips || count == step.batch) return;
          }
          stream = feed.wait();
          header = *reinterpret_cast<const Header*>(stream);
          if (header.bits != kBits) return;
        }
      });
    }
  }
  put_together();
  position = feed.position();
}

// To shared memory, 8 bytes at a time; wait_for_copies() waits for those of the calling thread.
__device__ __forceinline__ void copy_ahead(void* to, const void* from, int bytes) {
  const uint32_t place = shared_address(to);
  const int thread = thread_index();
  for (int i = 8 * thread; i < bytes; i += 8 * kWorkers) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(place + i), "l"(static_cast<const uint8_t*>(from) + i)
                 : "memory");
  }
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ void copy_shared(void* to, const void* from, int bytes) {
  const int thread = thread_index();
  for (int i = thread; i < bytes / 8; i += kWorkers) {
    static_cast<uint64_t*>(to)[i] = static_cast<const uint64_t*>(from)[i];
  }
}

// False on a GPU that holds layers in the middle of a model; there, the residual is the result.
__device__ __forceinline__ bool has_head(const Model& model) { return model.vocab != 0; }

enum Phase { kQkvPhase, kOutputPhase, kMlpPhase, kDownPhase, kPhases, kHeadPhase };

__device__ __forceinline__ Phase phase_at(int index, int layers) {
  return index == kPhases * layers ? kHeadPhase : static_cast<Phase>(index % kPhases);
}

__device__ __forceinline__ int first_linear(Phase phase) {
  return phase == kOutputPhase ? kO : phase == kMlpPhase ? kGate : phase == kDownPhase ? kDown : kQ;
}

// The MLP looks at three: what it computes is laid out for the weight behind it.
__device__ __forceinline__ int planned_linears(Phase phase) { return phase == kQkvPhase || phase == kMlpPhase ? 3 : 1; }

template <bool kOne>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Step step) {
  extern __shared__ uint4 shared_words[];
  uint8_t* const shared = reinterpret_cast<uint8_t*>(shared_words);
  __shared__ alignas(16) Linear plans[2][3];  // of this phase and of the next
  __shared__ Layer layer_plans[2];
  __shared__ float scratch[kWarps];
  __shared__ Item items[kBatch];
  __shared__ Attending attending;
  __shared__ Model shared_model;  // for code that is not inlined, which would read parameters from global memory
  const Model& model = step.model;
  const int layers = static_cast<int>(model.layers);
  auto* const barriers = reinterpret_cast<uint64_t*>(shared + step.barriers_at);
  const Rings rings = {shared, barriers, barriers + kWarps * step.slots, step.slots, static_cast<int>(model.slot_bytes)};
  if (threadIdx.x == 0) start_rings(rings);
  if (threadIdx.x == 0) {
    const int heads = static_cast<int>(model.heads);
    const int kv_heads = static_cast<int>(model.kv_heads);
    const NewTokens fresh = {kOne ? 1 : step.tokens, model.state[0], reinterpret_cast<float*>(shared + step.turns_at)};
    const Units units = cut_units(heads, kv_heads, fresh.count, fresh.cached);
    attending = {fresh, units, unit_at(static_cast<int>(blockIdx.x), units.parts, heads, kv_heads)};
  }
  copy_shared(&shared_model, &step.model, sizeof(Model));
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    feed_rings(model.linears, layers * kLinears + (has_head(model) ? 1 : 0), rings);
    return;
  }

  int position = 0;  // in this warp's ring
  const int tokens = kOne ? 1 : step.tokens;
  auto* const x = reinterpret_cast<uint16_t*>(shared + step.input_at);
  auto* const ones = reinterpret_cast<float*>(shared + step.ones_at);
  auto* const gates = reinterpret_cast<float*>(shared + step.gates_at);
  auto* const turns = reinterpret_cast<float*>(shared + step.turns_at);
  const int cached = model.state[0];
  const int half_dim = static_cast<int>(model.rope_dim) / 2;
  for (int i = threadIdx.x; i < 2 * tokens * half_dim; i += kWorkers) {
    const int64_t row = cached + i / (2 * half_dim);
    const int column = i % (2 * half_dim);
    turns[i] = column < half_dim ? model.cosines[row * half_dim + column] : model.sines[row * half_dim + column - half_dim];
  }
  const int64_t first_thread = blockIdx.x * kWorkers + threadIdx.x;
  const int64_t all_threads = gridDim.x * kWorkers;
  auto clear = [&](auto* words, int64_t count) {  // no results yet
    for (int64_t i = first_thread; i < count; i += all_threads) words[i] = {};
  };
  const int64_t heads_size = model.heads * model.head_dim;
  clear(model.middle, tokens * model.hidden);
  clear(model.qkv, tokens * (heads_size + 2 * model.kv_heads * model.head_dim));
  clear(model.attended, tokens * round_up(heads_size, kBlockRows));
  clear(model.activated, tokens * round_up(model.ffn, kBlockRows));
  clear(model.partial, static_cast<int64_t>(attending.units.parts) * tokens * model.heads * (model.head_dim + 2));
  for (int64_t i = first_thread; i < tokens * model.hidden; i += all_threads) {
    float value;
    if (model.embedding != nullptr) {
      value = half_float(model.embedding[model.state[1 + i / model.hidden] * model.hidden + i % model.hidden]);
    } else {
      value = model.residual[i];
    }
    model.entering[i] = {value, stamp_of(0)};
  }

  const int phases = kPhases * layers + (has_head(model) ? 1 : 0);
  // Copies what a phase is told about its linears and its layer; without waiting for it.
  auto plan_ahead = [&](int index) {
    if (index >= phases) return;
    const Phase phase = phase_at(index, layers);
    const int l = index / kPhases;
    copy_ahead(plans[index % 2], model.linears + l * kLinears + first_linear(phase),
               planned_linears(phase) * static_cast<int>(sizeof(Linear)));
    if (phase == kQkvPhase) copy_ahead(&layer_plans[l % 2], model.layer + l, sizeof(Layer));
  };
  plan_ahead(0);
  wait_for_copies();
  Arrivals attended(model.arrivals + kLineWords, Arrivals::look(model.arrivals + kLineWords));
  Arrivals multiplied(model.arrivals, wait_for_grid(model.arrivals));
  const int grid = static_cast<int>(gridDim.x);

#pragma unroll 1
  for (int index = 0; index < phases; ++index) {
    const int l = index / kPhases;
    const Phase phase = phase_at(index, layers);
    const int count = phase == kQkvPhase ? 3 : phase == kMlpPhase ? 2 : 1;
    const Linear* const parts = plans[index % 2];
    const Layer& layer = layer_plans[l % 2];

    const uint32_t stamp = stamp_of(l);
    const int thread = thread_index();
    plan_ahead(index + 1);
    const bool normalizes = phase != kOutputPhase && phase != kDownPhase;
    const bool attends = phase == kOutputPhase && static_cast<int>(blockIdx.x) < attending.units.count;
    if (attends) {
      multiplied.wait(grid);
      attention(shared_model, layer, parts[0], attending, stamp, reinterpret_cast<float*>(x));
      sync_workers();
      attended.arrive();
    } else if (phase == kOutputPhase) {
      multiplied.skip(grid);
    }

    // What the sums of this phase will be added to; there since two phases ago.
    const Packet* const old = phase == kOutputPhase ? model.entering : model.middle;
    const Packet* first_old_at = nullptr;
    Packet first_old = {};
    if (!normalizes) {
      const int which = kOne ? thread / kStripColumns : thread / (tokens * kStripColumns);
      const int token = kOne ? 0 : thread / kStripColumns % tokens;
      const int n = (first_strip(parts[0]) + which * grid) * kStripColumns + thread % kStripColumns;
      if (which < step.batch && n < model.hidden) {
        first_old_at = old + token * model.hidden + n;
        first_old = look(first_old_at);
      }
    }
    if (phase == kOutputPhase) {
      attended.wait(min(grid, attending.units.count));
    } else if (index > 0) {
      multiplied.wait(grid);
    }
    const float first_value = first_old_at != nullptr ? await(first_old, first_old_at, stamp) : 0.f;

    auto finish = [&](bool has, const Item& item, int64_t n, int token, float sum) {
      if (phase == kMlpPhase) {
        float* const gate = gates + (item.index * tokens + token) * kStripColumns + n % kStripColumns;
        if (has && item.part == 0) *gate = sum;
        sync_workers();
        if (!has || item.part == 0) return;
        const int64_t to = parts[2].inverse != nullptr ? parts[2].inverse[n] : n;
        put(model.activated + token * parts[2].in_features + to, half_bits(__fdividef(*gate, 1.f + __expf(-*gate)) * sum), stamp);
      } else if (has && phase == kQkvPhase) {
        const int64_t column = item.part == 0 ? n : n + (model.heads + (item.part - 1) * model.kv_heads) * model.head_dim;
        put(model.qkv + token * (model.heads + 2 * model.kv_heads) * model.head_dim + column, sum, stamp);
      } else if (has && phase == kHeadPhase) {
        model.logits[token * model.vocab + n] = sum;
      } else if (has) {
        const int64_t place = token * model.hidden + n;
        const float value = sum + (item.index < step.batch ? first_value : await(look(old + place), old + place, stamp));
        if (phase == kOutputPhase) {
          put(model.middle + place, value, stamp);
        } else {
          put(model.entering + place, value, stamp_of(l + 1));
          if (index + 1 == phases) model.residual[place] = value;
        }
      }
    };
#pragma unroll 1
    for (int part = 0; part < count;) {
      int next = part;
      bool has_codes = false;
      bool has_strips = false;
      for (; next < count && parts[next].inverse == parts[part].inverse; ++next) {
        has_codes |= parts[next].kind != kDense;
        has_strips |= first_strip(parts[next]) < parts[next].strips;
      }
      const int64_t in_features = parts[part].in_features;
      if (!has_strips) {  // and must not read: see exchange.cuh
      } else if (phase == kOutputPhase) {
        stage_packed<kOne>(step, model.attended, stamp, model.heads * model.head_dim, in_features, x, ones);
      } else if (phase == kDownPhase) {
        stage_packed<kOne>(step, model.activated, stamp, model.ffn, in_features, x, ones);
      } else {
        const Packet* const residual = phase == kMlpPhase ? model.middle : model.entering;
        const uint16_t* norm =
            phase == kHeadPhase ? model.final_norm : phase == kQkvPhase ? layer.attention_norm : layer.mlp_norm;
        stage_normalized<kOne>(step, residual, stamp, norm, parts[part].inverse, in_features, x, scratch);
      }
      if (has_strips) {
        if (has_codes && normalizes) sum_blocks<kOne>(step, in_features, x, ones);
        multiply_strips<kOne>(step, parts, part, next, rings, position, shared, items, finish);
      }
      part = next;
    }
    wait_for_copies();
    sync_workers();  // the next plans are there, and nobody needs this one
    multiplied.arrive();
  }
}

// How `tokens` tokens share a CUDA block's memory; no slots if they do not fit.
Step arrange(const Model& model, int64_t gate_strips, int tokens, int64_t bytes) {
  Step step = {};
  step.model = model;
  step.tokens = tokens;
  step.batch = kBatch / tokens;
  const int64_t row = 4 * tokens * kStripColumns;
  const int64_t sums = row * kWarps * step.batch;
  const int64_t gates = row * ((gate_strips + model.grid - 1) / model.grid);
  const int64_t activations = 2 * tokens * padded_row(model.widest_input);
  const int64_t attention = attention_bytes(model.head_dim, tokens);
  const int64_t input = round_up(activations > attention ? activations : attention, 16);
  const int64_t turns = round_up(4 * tokens * model.rope_dim, 16);
  const int64_t ones = round_up(4 * ones_step(tokens) * (model.widest_input / kBlockRows), 16);
  const int64_t left = bytes - sums - gates - turns - ones - input;
  const int64_t slots = left / (kWarps * (model.slot_bytes + 16));
  step.slots = static_cast<int>(slots < 0 ? 0 : slots > kMostSlots ? kMostSlots : slots);
  const int64_t ring = kWarps * step.slots * model.slot_bytes;
  step.barriers_at = static_cast<int>(ring);
  step.sums_at = static_cast<int>(ring + 16 * kWarps * step.slots);
  step.gates_at = static_cast<int>(step.sums_at + sums);
  step.turns_at = static_cast<int>(step.gates_at + gates);
  step.ones_at = static_cast<int>(step.turns_at + turns);
  step.input_at = static_cast<int>(step.ones_at + ones);
  return step;
}

template <bool kOne>
void start(const Step& step, int64_t bytes, cudaStream_t stream) {
  check(cudaFuncSetAttribute(step_kernel<kOne>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory limit");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(step.model.grid));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, step_kernel<kOne>, step), "decode step");
}

}  // namespace

int decode_step(const Model& model, int64_t gate_strips, int tokens, cudaStream_t stream) {
  int device = 0;
  int limit = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory limit");
  constexpr int64_t kStatic = 3072;  // the kernel's static shared memory
  const int64_t bytes = (limit - kStatic) / 128 * 128;
  Step step = arrange(model, gate_strips, tokens, bytes);
  while (step.slots < kFewestSlots && step.tokens > 1) step = arrange(model, gate_strips, step.tokens / 2, bytes);
  if (step.slots < kFewestSlots) throw std::runtime_error("a linear layer is too wide for this GPU's shared memory");
  if (tokens == 1) {
    start<true>(step, bytes, stream);
  } else {
    start<false>(step, bytes, stream);
  }
  return step.tokens;
}

}  // namespace exl2::cuda
