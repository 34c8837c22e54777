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
  int gates_at;  // float (strips of the gate, tokens, 32)
  int input_at;  // half (tokens, padded_row), or what attention needs
};

// Elements of one token's activations in shared memory: rows start in other banks, so that 8 tokens do not collide.
__host__ __device__ __forceinline__ int64_t padded_row(int64_t in_features) {
  return in_features % 64 == 32 ? in_features : in_features + 32;
}

// All CUDA blocks of the grid. The counter goes on from launch to launch; every launch adds a multiple of the grid.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(uint64_t* count) : count_(count) {}

  __device__ __forceinline__ void arrive() {
    sync_workers();
    if (threadIdx.x != 0) return;
    if (target_ == 0) {
      uint64_t before;
      asm volatile("atom.release.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(count_) : "memory");
      target_ = before / gridDim.x * gridDim.x;
    } else {
      asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(count_) : "memory");
    }
    target_ += gridDim.x;
  }

  // What other blocks wrote before they arrived is read with __ldcg after this.
  __device__ __forceinline__ void wait() {
    if (threadIdx.x == 0) {
      uint64_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(count_) : "memory");
      } while (seen < target_);
    }
    sync_workers();
  }

 private:
  uint64_t* count_;
  uint64_t target_ = 0;
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
  const uint16_t* const x = reinterpret_cast<const uint16_t*>(shared + step.input_at) + 8 * t +
                            (g < tokens ? g : 0) * padded_row(parts[first].in_features);
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
#pragma unroll 1
    for (int index = 0; strip < strips; ++index, strip += grid) {
      if (count == step.batch) {
        put_together();
        sync_workers();
      }
      Sums total = {};
#pragma unroll 1
      for (int i = 0; i < segments; ++i) {
        const uint8_t* stream = feed.wait();
        const Header header = *reinterpret_cast<const Header*>(stream);
        const uint16_t* from = x + header.first_block * kBlockRows;
        for_bits(header.bits,
                 [&](auto bits) { multiply_segment<decltype(bits)::value, kOne>(header, stream, from, lane, total); });
        feed.release();
      }
      if (threadIdx.x == 0) items[count] = {part, strip, index};
      float* const to = sums + (count * kWarps + warp) * each;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; i += kOne ? 2 : 1) {
          const int token = 2 * t + i % 2;
          if (token < tokens) to[token * kStripColumns + 16 * h + g + 8 * (i / 2)] = total[h][i];
        }
      }
      ++count;
    }
  }
  put_together();
}

__device__ __forceinline__ void copy_shared(void* to, const void* from, int bytes) {
  for (int i = threadIdx.x; i < bytes / 8; i += kWorkers) {
    static_cast<uint64_t*>(to)[i] = static_cast<const uint64_t*>(from)[i];
  }
}

// False on a GPU that holds layers in the middle of a model; there, the residual is the result.
__device__ __forceinline__ bool has_head(const Model& model) { return model.vocab != 0; }

enum Phase { kQkvPhase, kOutputPhase, kMlpPhase, kDownPhase, kPhases, kHeadPhase };

template <bool kOne>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Step step) {
  extern __shared__ uint4 shared_words[];
  uint8_t* const shared = reinterpret_cast<uint8_t*>(shared_words);
  __shared__ Linear parts[3];
  __shared__ Layer layer;
  __shared__ float scratch[kWarps];
  __shared__ Item items[kBatch];
  __shared__ Model shared_model;  // for code that is not inlined, which would read parameters from global memory
  const Model& model = step.model;
  const int layers = static_cast<int>(model.layers);
  auto* const barriers = reinterpret_cast<uint64_t*>(shared + step.barriers_at);
  const Rings rings = {shared, barriers, barriers + kWarps * step.slots, step.slots, static_cast<int>(model.slot_bytes)};
  if (threadIdx.x == 0) start_rings(rings);
  copy_shared(&shared_model, &step.model, sizeof(Model));
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    feed_rings(model.linears, layers * kLinears + (has_head(model) ? 1 : 0), rings);
    return;
  }

  Feed feed(rings, threadIdx.x / 32);
  const int tokens = kOne ? 1 : step.tokens;
  auto* const x = reinterpret_cast<uint16_t*>(shared + step.input_at);
  auto* const gates = reinterpret_cast<float*>(shared + step.gates_at);
  auto* const turns = reinterpret_cast<float*>(shared + step.turns_at);
  const NewTokens fresh = {tokens, model.state[0], turns};
  const int half_dim = static_cast<int>(model.rope_dim) / 2;
  for (int i = threadIdx.x; i < 2 * tokens * half_dim; i += kWorkers) {
    const int64_t row = fresh.cached + i / (2 * half_dim);
    const int column = i % (2 * half_dim);
    turns[i] = column < half_dim ? model.cosines[row * half_dim + column] : model.sines[row * half_dim + column - half_dim];
  }
  GridBarrier barrier(model.barrier);
  const int64_t gathered = model.embedding != nullptr ? tokens * model.hidden : 0;
  for (int64_t i = blockIdx.x * kWorkers + threadIdx.x; i < gathered; i += gridDim.x * kWorkers) {
    const int64_t id = model.state[1 + i / model.hidden];
    model.residual[i] = half_float(model.embedding[id * model.hidden + i % model.hidden]);
  }

#pragma unroll 1
  for (int index = 0; index < kPhases * layers + (has_head(model) ? 1 : 0); ++index) {
    const int l = index / kPhases;
    const Phase phase = l == layers ? kHeadPhase : static_cast<Phase>(index % kPhases);
    const int first = phase == kOutputPhase ? kO : phase == kMlpPhase ? kGate : phase == kDownPhase ? kDown : kQ;
    const int count = phase == kQkvPhase ? 3 : phase == kMlpPhase ? 2 : 1;
    const Linear* const linears = model.linears + l * kLinears + first;

    // What does not depend on other blocks, before waiting for them.
    barrier.arrive();
    const int looked_up = phase == kMlpPhase ? 3 : count;  // what the MLP computes is laid out for the weight behind it
    copy_shared(parts, linears, looked_up * static_cast<int>(sizeof(Linear)));
    if (phase == kQkvPhase) copy_shared(&layer, model.layer + l, sizeof(Layer));
    const uint16_t* const norm_weight = phase == kHeadPhase  ? model.final_norm
                                        : phase == kQkvPhase ? model.layer[l].attention_norm
                                        : phase == kMlpPhase ? model.layer[l].mlp_norm
                                                             : nullptr;
    NormInput norm = {norm_weight, linears->inverse, {}};
    if (norm_weight != nullptr) norm.load(static_cast<int>(model.hidden));
    barrier.wait();
    if (phase == kOutputPhase) {
      attention(shared_model, layer, parts[0], fresh, reinterpret_cast<float*>(x));
      barrier.arrive();
      barrier.wait();
    }

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
      int next = part + 1;
      while (next < count && parts[next].inverse == parts[part].inverse) ++next;
      const int64_t in_features = parts[part].in_features;
      if (norm_weight == nullptr) {
        stage_packed(step, phase == kOutputPhase ? model.attended : model.activated, in_features, x);
      } else {
        if (part > 0) {
          norm.inverse = parts[part].inverse;
          norm.load(static_cast<int>(model.hidden));
          sync_workers();
        }
        stage_normalized<kOne>(step, norm, in_features, x, scratch);
      }
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
  const int64_t left = bytes - sums - gates - turns - input;
  const int64_t slots = left / (kWarps * (model.slot_bytes + 16));
  step.slots = static_cast<int>(slots < 0 ? 0 : slots > kMostSlots ? kMostSlots : slots);
  const int64_t ring = kWarps * step.slots * model.slot_bytes;
  step.barriers_at = static_cast<int>(ring);
  step.sums_at = static_cast<int>(ring + 16 * kWarps * step.slots);
  step.gates_at = static_cast<int>(step.sums_at + sums);
  step.turns_at = static_cast<int>(step.gates_at + gates);
  step.input_at = static_cast<int>(step.turns_at + turns);
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
  constexpr int64_t kStatic = 2048;  // the kernel's static shared memory
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
