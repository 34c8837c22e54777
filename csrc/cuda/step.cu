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

constexpr int kThreads = 32 * kWarps;
constexpr int kMostSlots = 8;
constexpr int kFewestSlots = 3;
constexpr int kBatch = 8;          // strips (times tokens) whose sums are put together at once
constexpr int kNormRounds = 4;     // 4 * kThreads elements each: the widest residual is 8192
constexpr int kZeroBytes = 2 * kBlockRows * kMaxBlocks;

struct Step {
  Model model;
  int tokens;
  int slots;
  int batch;
  // Where things begin in shared memory, which starts with the ring.
  int full_at;
  int sums_at;   // float (batch, kWarps, tokens, 32)
  int gates_at;  // float (strips of the gate, tokens, 32)
  int zeros_at;  // the activations of tokens that are not there
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

  __device__ void arrive() {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    const unsigned long long before = atomicAdd(reinterpret_cast<unsigned long long*>(count_), 1ull);
    if (target_ == 0) target_ = before / gridDim.x * gridDim.x;
    target_ += gridDim.x;
  }

  // What other blocks wrote before they arrived is read with __ldcg after this.
  __device__ void wait() {
    if (threadIdx.x == 0) {
      uint64_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(count_) : "memory");
      } while (seen < target_);
    }
    __syncthreads();
  }

 private:
  uint64_t* count_;
  uint64_t target_ = 0;
};

// What normalizing needs besides the residual; the same for all tokens, and known before the previous phase ends.
struct NormInput {
  uint2 weight[kNormRounds];
  int4 place[kNormRounds];

  __device__ __forceinline__ void load(const Model& model, const uint16_t* norm, const int32_t* inverse) {
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (threadIdx.x + kThreads * r);
      if (i >= model.hidden) break;
      weight[r] = *reinterpret_cast<const uint2*>(norm + i);
      place[r] = inverse != nullptr ? *reinterpret_cast<const int4*>(inverse + i) : make_int4(i, i + 1, i + 2, i + 3);
    }
  }
};

__device__ __forceinline__ void stage_normalized(const Step& step, const NormInput& norm, int64_t in_features, uint16_t* x,
                                                 float* scratch) {
  const Model& model = step.model;
  for (int m = 0; m < step.tokens; ++m) {
    const float* from = model.residual + m * model.hidden;
    uint16_t* row = x + m * padded_row(in_features);
    float4 value[kNormRounds];
    float squares = 0.f;
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      const int i = 4 * (threadIdx.x + kThreads * r);
      if (i >= model.hidden) break;
      value[r] = __ldcg(reinterpret_cast<const float4*>(from + i));
    }
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      if (4 * (threadIdx.x + kThreads * r) >= model.hidden) break;
      squares += value[r].x * value[r].x + value[r].y * value[r].y + value[r].z * value[r].z + value[r].w * value[r].w;
    }
    const float mean = block_sum(squares, scratch) / static_cast<float>(model.hidden);
    const float factor = rsqrtf(mean + static_cast<float>(model.eps));
#pragma unroll
    for (int r = 0; r < kNormRounds; ++r) {
      if (4 * (threadIdx.x + kThreads * r) >= model.hidden) break;
      const float2 low = __half22float2(as_half2(norm.weight[r].x));
      const float2 high = __half22float2(as_half2(norm.weight[r].y));
      row[norm.place[r].x] = half_bits(value[r].x * factor * low.x);
      row[norm.place[r].y] = half_bits(value[r].y * factor * low.y);
      row[norm.place[r].z] = half_bits(value[r].z * factor * high.x);
      row[norm.place[r].w] = half_bits(value[r].w * factor * high.y);
    }
    for (int64_t i = model.hidden + threadIdx.x; i < in_features; i += kThreads) row[i] = 0;
    __syncthreads();
  }
}

// Activations that a phase before has already left in packed order: half (tokens, in_features).
__device__ __forceinline__ void stage_packed(const Step& step, const uint16_t* input, int64_t in_features, uint16_t* x) {
  for (int m = 0; m < step.tokens; ++m) {
    const uint4* from = reinterpret_cast<const uint4*>(input + m * in_features);
    uint4* row = reinterpret_cast<uint4*>(x + m * padded_row(in_features));
    for (int64_t i = threadIdx.x; i < in_features / 8; i += kThreads) row[i] = __ldcg(from + i);
  }
  __syncthreads();
}

// All strips of one weight that belong to this CUDA block. store(i, n, token, sum): column n of the block's strip i.
template <bool kOne, typename Store>
__device__ __forceinline__ void multiply_strips(const Step& step, const Linear& w, Feed& feed, uint8_t* shared, Store store) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int tokens = kOne ? 1 : step.tokens;
  float* const sums = reinterpret_cast<float*>(shared + step.sums_at);
  const uint16_t* x = reinterpret_cast<const uint16_t*>(shared + (g < tokens ? step.input_at : step.zeros_at)) + 8 * t;
  if (g < tokens) x += g * padded_row(w.in_features);
  const int x_step = g < tokens ? kBlockRows : 0;

  const int grid = static_cast<int>(gridDim.x);
  const int strips = static_cast<int>(w.strips);
  int strip = static_cast<int>(blockIdx.x) - static_cast<int>(w.offset);
  if (strip < 0) strip += grid;
  const int segments = w.shares[warp].end - w.shares[warp].begin;
  for (int first = 0; strip < strips; first += step.batch) {
    const int first_strip = strip;
    int count = 0;
    for (; count < step.batch && strip < strips; ++count, strip += grid) {
      Sums total = {};
      for (int i = 0; i < segments; ++i) {
        const uint8_t* stream = feed.wait();
        const Header header = *reinterpret_cast<const Header*>(stream);
        const uint16_t* from = x + header.first_block * x_step;
        for_bits(header.bits,
                 [&](auto bits) { multiply_segment<decltype(bits)::value, kOne>(header, stream, from, lane, total); });
        feed.release();
      }
      float* const to = sums + (count * kWarps + warp) * tokens * kStripColumns;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; i += kOne ? 2 : 1) {
          const int token = 2 * t + i % 2;
          if (token < tokens) to[token * kStripColumns + 16 * h + g + 8 * (i / 2)] = total[h][i];
        }
      }
    }
    __syncthreads();
    const int each = tokens * kStripColumns;
    for (int index = threadIdx.x; index < count * each; index += kThreads) {
      const int i = index / each;
      const float* from = sums + i * kWarps * each + index % each;
      float sum = 0.f;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) sum += from[other * each];
      const int64_t n = static_cast<int64_t>(first_strip + i * grid) * kStripColumns + index % kStripColumns;
      if (n >= w.out_features) continue;
      if (w.bias != nullptr) sum += half_float(w.bias[n]);
      store(first + i, n, index % each / kStripColumns, sum);
    }
    if (strip < strips) __syncthreads();
  }
}

__device__ __forceinline__ void copy_shared(void* to, const void* from, int bytes) {
  for (int i = threadIdx.x; i < bytes / 8; i += kThreads) {
    static_cast<uint64_t*>(to)[i] = static_cast<const uint64_t*>(from)[i];
  }
}

enum Phase { kQkv, kOutput, kMlp, kDownPhase, kPhases, kHead };

template <bool kOne>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Step step) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 shared_words[];
  uint8_t* const shared = reinterpret_cast<uint8_t*>(shared_words);
  __shared__ Linear parts[3];
  __shared__ Layer layer;
  __shared__ float scratch[kWarps];
  const Model& model = step.model;
  const int tokens = kOne ? 1 : step.tokens;
  const int warp = threadIdx.x / 32;
  const int layers = static_cast<int>(model.layers);
  auto* const x = reinterpret_cast<uint16_t*>(shared + step.input_at);
  auto* const gates = reinterpret_cast<float*>(shared + step.gates_at);
  const int slot_bytes = static_cast<int>(model.slot_bytes);

  Feed feed(model.linears, layers * kLinears + 1, shared + warp * step.slots * slot_bytes,
            reinterpret_cast<uint64_t*>(shared + step.full_at) + warp * step.slots, step.slots, slot_bytes);
  if (threadIdx.x < kZeroBytes / 4) reinterpret_cast<uint32_t*>(shared + step.zeros_at)[threadIdx.x] = 0;
  GridBarrier barrier(model.barrier);
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < tokens * model.hidden; i += gridDim.x * kThreads) {
    const int64_t id = model.state[1 + i / model.hidden];
    model.residual[i] = half_float(model.embedding[id * model.hidden + i % model.hidden]);
  }

  for (int index = 0; index <= kPhases * layers; ++index) {
    const int l = index / kPhases;
    const Phase phase = l == layers ? kHead : static_cast<Phase>(index % kPhases);
    const int first = phase == kQkv || phase == kHead ? kQ : phase == kOutput ? kO : phase == kMlp ? kGate : kDown;
    const int count = phase == kQkv ? 3 : phase == kMlp ? 2 : 1;

    // What does not depend on other blocks, before waiting for them.
    barrier.arrive();
    const int looked_up = phase == kMlp ? 3 : count;  // what the MLP computes is laid out for the weight behind it
    copy_shared(parts, model.linears + l * kLinears + first, looked_up * static_cast<int>(sizeof(Linear)));
    if (phase == kQkv) copy_shared(&layer, model.layer + l, sizeof(Layer));
    NormInput norm;
    const uint16_t* norm_weight = nullptr;
    if (phase == kQkv || phase == kMlp || phase == kHead) {
      norm_weight = phase == kHead ? model.final_norm : phase == kQkv ? model.layer[l].attention_norm : model.layer[l].mlp_norm;
      norm.load(model, norm_weight, model.linears[l * kLinears + first].inverse);
    }
    barrier.wait();

    if (phase == kOutput) {
      attention(model, layer, parts[0], tokens, reinterpret_cast<float*>(x));
      barrier.arrive();
      barrier.wait();
    }
    int64_t column = 0;
    for (int part = 0; part < count; ++part) {
      const Linear& w = parts[part];
      if (norm_weight != nullptr) {
        if (part == 0 || w.inverse != parts[part - 1].inverse) {
          if (part > 0) norm.load(model, norm_weight, w.inverse);
          __syncthreads();
          stage_normalized(step, norm, w.in_features, x, scratch);
        }
      } else {
        stage_packed(step, phase == kOutput ? model.attended : model.activated, w.in_features, x);
      }
      multiply_strips<kOne>(step, w, feed, shared, [&](int i, int64_t n, int token, float sum) {
        if (phase == kQkv) {
          model.qkv[token * (model.heads + 2 * model.kv_heads) * model.head_dim + column + n] = sum;
        } else if (phase == kHead) {
          model.logits[token * model.vocab + n] = sum;
        } else if (phase == kMlp) {
          float* gate = gates + (i * tokens + token) * kStripColumns + n % kStripColumns;
          if (part == 0) {
            *gate = sum;
          } else {
            const int64_t to = parts[2].inverse != nullptr ? parts[2].inverse[n] : n;
            model.activated[token * parts[2].in_features + to] = half_bits(*gate / (1.f + __expf(-*gate)) * sum);
          }
        } else {
          float* residual = model.residual + token * model.hidden + n;
          *residual = __ldcg(residual) + sum;
        }
      });
      if (part + 1 < count) __syncthreads();  // sums are used again
      column += w.out_features;
    }
  }
#endif
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// How `tokens` tokens share a CUDA block's memory; no slots if they do not fit.
Step arrange(const Model& model, int64_t gate_strips, int tokens, int64_t bytes, bool hopper) {
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
  const int64_t left = bytes - sums - gates - kZeroBytes - input;
  const int64_t slots = left / (kWarps * (model.slot_bytes + 8));
  step.slots = static_cast<int>(slots < 0 ? 0 : slots > kMostSlots ? kMostSlots : slots);
  if (!hopper && step.slots > kOldSlots) step.slots = kOldSlots;
  const int64_t ring = kWarps * step.slots * model.slot_bytes;
  step.full_at = static_cast<int>(ring);
  step.sums_at = static_cast<int>(ring + 8 * kWarps * step.slots);
  step.gates_at = static_cast<int>(step.sums_at + sums);
  step.zeros_at = static_cast<int>(step.gates_at + gates);
  step.input_at = step.zeros_at + kZeroBytes;
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
  int major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory limit");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  constexpr int64_t kStatic = 2048;  // parts, layer and scratch of the kernel
  const int64_t bytes = (limit - kStatic) / 128 * 128;
  const bool hopper = major >= 9;
  Step step = arrange(model, gate_strips, tokens, bytes, hopper);
  const int fewest = hopper ? kFewestSlots : kOldSlots;
  while (step.slots < fewest && step.tokens > 1) step = arrange(model, gate_strips, step.tokens / 2, bytes, hopper);
  if (step.slots < fewest) throw std::runtime_error("a linear layer is too wide for this GPU's shared memory");
  if (tokens == 1) {
    start<true>(step, bytes, stream);
  } else {
    start<false>(step, bytes, stream);
  }
  return step.tokens;
}

}  // namespace exl2::cuda
