// A decode step, from token ids to logits, as one kernel that stays on the GPU: one CUDA block per multiprocessor, all
// of them meeting at a barrier after every phase (5 per layer). Decoding reads every weight once, so the kernel is built
// around keeping memory busy: each warp streams its share of all weights through a ring (feed.cuh) that runs ahead of
// the barriers. While blocks wait for each other, stage activations or attend, the next weights arrive.
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

// Elements of one token's activations in shared memory: rows start in other banks, so that 8 tokens do not collide.
__host__ __device__ __forceinline__ int64_t padded_row(int64_t in_features) {
  return in_features % 64 == 32 ? in_features : in_features + 32;
}

// From block to block of the sums of activations: room for pairs of tokens.
__host__ __device__ __forceinline__ int ones_step(int tokens) { return tokens == 1 ? 1 : (tokens + 1) / 2 * 2; }

// All CUDA blocks of the grid. The counter goes on from launch to launch; every launch adds a multiple of the grid.
class GridBarrier {
 public:
  // target: in shared memory, 0 before the first arrival.
  __device__ GridBarrier(uint64_t* count, uint64_t* target) : count_(count), target_(target) {}

  __device__ __forceinline__ void arrive() {
    sync_workers();
    if (threadIdx.x != 0) return;
    uint64_t target = *target_;
    if (target == 0) {
      uint64_t before;
      asm volatile("atom.release.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(count_) : "memory");
      target = before / gridDim.x * gridDim.x;
    } else {
      asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(count_) : "memory");
    }
    *target_ = target + gridDim.x;
  }

  // What other blocks wrote before they arrived is read with __ldcg after this.
  __device__ __forceinline__ void wait() {
    if (threadIdx.x == 0) {
      const uint64_t target = *target_;
      uint64_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(count_) : "memory");
      } while (seen < target);
    }
    sync_workers();
  }

 private:
  uint64_t* count_;
  uint64_t* target_;
};

// The norm's weights and where the results go, for the 4 elements from i on.
struct NormPlace {
  uint2 weight;  // half (4)
  uint2 place;   // uint16 (4)

  __device__ __forceinline__ void load(const uint16_t* norm, const int32_t* inverse, int i) {
    weight = *reinterpret_cast<const uint2*>(norm + i);
    const int4 rows = inverse != nullptr ? *reinterpret_cast<const int4*>(inverse + i) : make_int4(i, i + 1, i + 2, i + 3);
    place = make_uint2(static_cast<uint32_t>(rows.x | rows.y << 16), static_cast<uint32_t>(rows.z | rows.w << 16));
  }

  __device__ __forceinline__ void store(const float4& value, float factor, uint16_t* row) const {
    const float2 low = __half22float2(as_half2(weight.x));
    const float2 high = __half22float2(as_half2(weight.y));
    row[place.x & 0xffff] = half_bits(value.x * factor * low.x);
    row[place.x >> 16] = half_bits(value.y * factor * low.y);
    row[place.y & 0xffff] = half_bits(value.z * factor * high.x);
    row[place.y >> 16] = half_bits(value.w * factor * high.y);
  }
};

// What normalizing needs besides the residual; the same for all tokens, and known before the previous phase ends.
struct NormInput {
  const uint16_t* norm;
  const int32_t* inverse;
  NormPlace near[kNormRounds];

  __device__ __forceinline__ void load(int hidden) {
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (threadIdx.x + kWorkers * r);
      if (i < hidden) near[r].load(norm, inverse, i);
    }
  }
};

__device__ __forceinline__ float square_sum(const float4& v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

template <bool kOne>
__device__ __forceinline__ void stage_normalized(const Step& step, const NormInput& input, int64_t in_features, uint16_t* x,
                                                 float* scratch) {
  const Model& model = step.model;
  const int hidden = static_cast<int>(model.hidden);
  constexpr int kFar = 4 * kWorkers * kNormRounds;
#pragma unroll 1
  for (int m = 0; m < (kOne ? 1 : step.tokens); ++m) {
    const float* from = model.residual + m * model.hidden;
    uint16_t* row = x + m * padded_row(in_features);
    float4 value[kNormRounds] = {};
    float squares = 0.f;
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (threadIdx.x + kWorkers * r);
      if (i < hidden) value[r] = __ldcg(reinterpret_cast<const float4*>(from + i));
    }
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) squares += square_sum(value[r]);
#pragma unroll 2
    for (int i = kFar + 4 * threadIdx.x; i < hidden; i += 4 * kWorkers) {
      squares += square_sum(__ldcg(reinterpret_cast<const float4*>(from + i)));
    }
    const float mean = workers_sum(squares, scratch) * __frcp_rn(static_cast<float>(hidden));
    const float factor = rsqrtf(mean + static_cast<float>(model.eps));
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      if (4 * (static_cast<int>(threadIdx.x) + kWorkers * r) < hidden) input.near[r].store(value[r], factor, row);
    }
#pragma unroll 2
    for (int i = kFar + 4 * threadIdx.x; i < hidden; i += 4 * kWorkers) {
      NormPlace far;
      far.load(input.norm, input.inverse, i);
      far.store(__ldcg(reinterpret_cast<const float4*>(from + i)), factor, row);
    }
    for (int64_t i = hidden + threadIdx.x; i < in_features; i += kWorkers) row[i] = 0;
    sync_workers();
  }
}

// Activations that a phase before has already left in packed order: half (tokens, in_features).
__device__ __forceinline__ void stage_packed(const Step& step, const uint16_t* input, int64_t in_features, uint16_t* x) {
  for (int m = 0; m < step.tokens; ++m) {
    const uint4* from = reinterpret_cast<const uint4*>(input + m * in_features);
    uint4* row = reinterpret_cast<uint4*>(x + m * padded_row(in_features));
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < in_features / 8; i += kWorkers) row[i] = __ldcg(from + i);
  }
  sync_workers();
}

// Sums of the staged activations over each block of rows, float (blocks, ones_step), which the zero points of codes are
// multiplied by. Once per phase, for all strips. Four threads share a block.
template <bool kOne>
__device__ __forceinline__ void sum_blocks(const Step& step, int64_t in_features, const uint16_t* x, float* ones) {
  const int tokens = kOne ? 1 : step.tokens;
  const int blocks = static_cast<int>(in_features) / kBlockRows;
#pragma unroll 1
  for (int m = 0; m < tokens; ++m) {
    const uint16_t* row = x + m * padded_row(in_features);
#pragma unroll 1
    for (int first = 0; first < 4 * blocks; first += kWorkers) {
      const int i = first + threadIdx.x;
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

// A strip that this CUDA block computes, as those who add up its warps' sums find it.
struct Item {
  int part;
  int strip;
  int index;  // among the block's strips of the part
};

// All strips of parts [first, last) that belong to this CUDA block; they read the same activations. finish(has, item,
// n, token, sum) is called by all workers together, `has` tells whether the thread has a sum: that of column n.
template <bool kOne, typename Finish>
__device__ __forceinline__ void multiply_strips(const Step& step, const Linear* parts, int first, int last, Feed& feed,
                                                uint8_t* shared, Item* items, Finish finish) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int tokens = kOne ? 1 : step.tokens;
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
    const int which = threadIdx.x / each;
    const bool mine = which < count;
    const Item item = mine ? items[which] : Item{first, 0, 0};
    const Linear& w = parts[item.part];
    const int64_t n = static_cast<int64_t>(item.strip) * kStripColumns + threadIdx.x % kStripColumns;
    const bool has = mine && n < w.out_features;
    float sum = 0.f;
    if (has) {
      const float* from = sums + which * kWarps * each + threadIdx.x % each;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) sum += from[other * each];
      if (w.bias != nullptr) sum += half_float(w.bias[n]);
    }
    finish(has, item, n, static_cast<int>(threadIdx.x) % each / kStripColumns, sum);
    count = 0;
  };

#pragma unroll 1
  for (int part = first; part < last; ++part) {
    const Linear& w = parts[part];
    const int grid = static_cast<int>(gridDim.x);
    const int strips = static_cast<int>(w.strips);
    const int segments = w.shares[warp].end - w.shares[warp].begin;
    int strip = static_cast<int>(blockIdx.x) - static_cast<int>(w.offset);
    if (strip < 0) strip += grid;
    int index = 0;
    int left = segments;  // of the strip
    Sums total = {};
    auto end_strip = [&](float unit) {
      if (threadIdx.x == 0) items[count] = {part, strip, index};
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
}

// To shared memory, 8 bytes at a time; wait_for_copies() waits for those of the calling thread.
__device__ __forceinline__ void copy_ahead(void* to, const void* from, int bytes) {
  const uint32_t place = shared_address(to);
  for (int i = 8 * threadIdx.x; i < bytes; i += 8 * kWorkers) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(place + i), "l"(static_cast<const uint8_t*>(from) + i)
                 : "memory");
  }
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ void copy_shared(void* to, const void* from, int bytes) {
  for (int i = threadIdx.x; i < bytes / 8; i += kWorkers) {
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
  __shared__ uint64_t target;
  __shared__ float scratch[kWarps];
  __shared__ Item items[kBatch];
  __shared__ Model shared_model;  // for code that is not inlined, which would read parameters from global memory
  const Model& model = step.model;
  const int layers = static_cast<int>(model.layers);
  auto* const barriers = reinterpret_cast<uint64_t*>(shared + step.barriers_at);
  const Rings rings = {shared, barriers, barriers + kWarps * step.slots, step.slots, static_cast<int>(model.slot_bytes)};
  if (threadIdx.x == 0) {
    start_rings(rings);
    target = 0;
  }
  copy_shared(&shared_model, &step.model, sizeof(Model));
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    feed_rings(model.linears, layers * kLinears + (has_head(model) ? 1 : 0), rings);
    return;
  }

  Feed feed(rings, threadIdx.x / 32);
  const int tokens = kOne ? 1 : step.tokens;
  auto* const x = reinterpret_cast<uint16_t*>(shared + step.input_at);
  auto* const ones = reinterpret_cast<float*>(shared + step.ones_at);
  auto* const gates = reinterpret_cast<float*>(shared + step.gates_at);
  auto* const turns = reinterpret_cast<float*>(shared + step.turns_at);
  const NewTokens fresh = {tokens, model.state[0], turns};
  const int half_dim = static_cast<int>(model.rope_dim) / 2;
  for (int i = threadIdx.x; i < 2 * tokens * half_dim; i += kWorkers) {
    const int64_t row = fresh.cached + i / (2 * half_dim);
    const int column = i % (2 * half_dim);
    turns[i] = column < half_dim ? model.cosines[row * half_dim + column] : model.sines[row * half_dim + column - half_dim];
  }
  GridBarrier barrier(model.barrier, &target);
  const int64_t gathered = model.embedding != nullptr ? tokens * model.hidden : 0;
  for (int64_t i = blockIdx.x * kWorkers + threadIdx.x; i < gathered; i += gridDim.x * kWorkers) {
    const int64_t id = model.state[1 + i / model.hidden];
    model.residual[i] = half_float(model.embedding[id * model.hidden + i % model.hidden]);
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

#pragma unroll 1
  for (int index = 0; index < phases; ++index) {
    const int l = index / kPhases;
    const Phase phase = phase_at(index, layers);
    const int count = phase == kQkvPhase ? 3 : phase == kMlpPhase ? 2 : 1;
    const Linear* const parts = plans[index % 2];
    const Layer& layer = layer_plans[l % 2];

    wait_for_copies();
    barrier.arrive();
    const bool normalizes = phase != kOutputPhase && phase != kDownPhase;
    NormInput norm;
    if (phase == kOutputPhase) {
      barrier.wait();
      plan_ahead(index + 1);
      attention(shared_model, layer, parts[0], fresh, reinterpret_cast<float*>(x));
      barrier.arrive();
    } else if (normalizes) {  // what does not depend on other blocks, before waiting for them
      norm.norm = phase == kHeadPhase ? model.final_norm : phase == kQkvPhase ? layer.attention_norm : layer.mlp_norm;
      norm.inverse = parts[0].inverse;
      norm.load(static_cast<int>(model.hidden));
    }
    barrier.wait();
    if (phase != kOutputPhase) plan_ahead(index + 1);

    auto finish = [&](bool has, const Item& item, int64_t n, int token, float sum) {
      if (phase == kMlpPhase) {
        float* const gate = gates + (item.index * tokens + token) * kStripColumns + n % kStripColumns;
        if (has && item.part == 0) *gate = sum;
        sync_workers();
        if (!has || item.part == 0) return;
        const int64_t to = parts[2].inverse != nullptr ? parts[2].inverse[n] : n;
        model.activated[token * parts[2].in_features + to] = half_bits(*gate / (1.f + __expf(-*gate)) * sum);
      } else if (has && phase == kQkvPhase) {
        const int64_t column = item.part == 0 ? n : n + (model.heads + (item.part - 1) * model.kv_heads) * model.head_dim;
        model.qkv[token * (model.heads + 2 * model.kv_heads) * model.head_dim + column] = sum;
      } else if (has && phase == kHeadPhase) {
        model.logits[token * model.vocab + n] = sum;
      } else if (has) {
        atomicAdd(model.residual + token * model.hidden + n, sum);  // its only writer: no need to wait for the old value
      }
    };
#pragma unroll 1
    for (int part = 0; part < count;) {
      int next = part;
      bool has_codes = false;
      for (; next < count && parts[next].inverse == parts[part].inverse; ++next) has_codes |= parts[next].kind != kDense;
      const int64_t in_features = parts[part].in_features;
      if (!normalizes) {
        stage_packed(step, phase == kOutputPhase ? model.attended : model.activated, in_features, x);
      } else {
        if (part > 0) {
          norm.inverse = parts[part].inverse;
          norm.load(static_cast<int>(model.hidden));
          sync_workers();
        }
        stage_normalized<kOne>(step, norm, in_features, x, scratch);
      }
      if (has_codes) sum_blocks<kOne>(step, in_features, x, ones);
      multiply_strips<kOne>(step, parts, part, next, feed, shared, items, finish);
      part = next;
    }
  }
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

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
