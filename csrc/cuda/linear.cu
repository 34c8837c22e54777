// Linear layers of a decode step: up to 8 tokens times a packed weight, bound by reading the weight once.
//
// A CUDA block computes one strip of 32 columns (for the MLP the same strip of gate and up). Its warps take consecutive
// blocks of rows; each warp streams its bytes through a private ring in shared memory with cp.async, whatever their
// width, unpacks them to exact small integers in fp16 and multiplies them on the tensor cores (m16n8k16: 16 columns of
// the weight x 16 rows x 8 tokens), accumulating in fp32. A group's step size is applied once, to the group's sum.
// The first blocks of the ring are requested before waiting for the previous kernel, so that weights are on their way
// while the predecessor finishes (programmatic dependent launch).
//
// Bytes moved per weight: bits / 8, plus 4 / (8 group size) of scale codes; activations come from L2.
#include "kernels.h"
#include "unpack.cuh"

namespace exl2::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
// Blocks of rows that a warp has on the way: many if they are narrow, fewer if that already fills the bus.
constexpr int kManyStages = 8;
constexpr int kFewStages = 4;
constexpr int64_t kNarrowBytes = 128 * 6;
constexpr float kLargestHalf = 65504.f;

enum class Input { kNormalize, kPacked };
enum class Output { kStore, kAdd, kSwiGlu };

struct Job {
  Linear weight[3];
  int64_t out_column[3];  // kStore: where the columns of each weight begin in a row of out
  int count;
  int tokens;
  int slot_bytes;
  int stages;
  int shared_inputs;  // 1: all weights read the same activations in shared memory
  // Input::kNormalize: residual (tokens, hidden) fp32 and the norm's weight. Input::kPacked: half (tokens, in_stride).
  const float* residual;
  const uint16_t* norm;
  double eps;
  int64_t hidden;
  const uint16_t* input;
  int64_t in_stride;
  // Output::kStore, kAdd: fp32 (tokens, out_stride). Output::kSwiGlu: half, permuted for the next linear.
  float* out;
  int64_t out_stride;
  uint16_t* activated;
  const int32_t* activated_inverse;
};

// Elements of one token's activations in shared memory: rows start in other banks, so that 8 tokens do not collide.
EXL2_HD int64_t padded_row(int64_t in_features) { return in_features % 64 == 32 ? in_features : in_features + 32; }

EXL2_HD int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Shared memory of one weight's blocks table, scales and groups.
EXL2_HD int64_t table_bytes(const Linear& w) {
  return round_up(w.n_blocks * 8, 16) + round_up(strip_scale_bytes(w), 16) + round_up(strip_group_bytes(w), 16);
}

__device__ __forceinline__ void copy_words(void* to, const void* from, int64_t bytes, int thread, int threads) {
  for (int64_t i = thread; i < bytes / 2; i += threads) {
    static_cast<uint16_t*>(to)[i] = static_cast<const uint16_t*>(from)[i];
  }
}

__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  // Turing multiplies 8 rows at a time; the operands of the two halves are those of the one above.
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// sum[h]: columns 16 h + g (elements 0, 1: tokens 2t, 2t + 1) and 16 h + g + 8 (elements 2, 3).
template <int kBits>
__device__ __forceinline__ void multiply_block(const uint8_t* codes, int lane, const uint4& x, float (&sum)[2][4]) {
  uint32_t low[low_words(kBits)];
  uint32_t high[2];
  load_lane<kBits>(codes, lane, low, high);
  const uint32_t b[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      multiply(sum[h], as_bits(unpack_pair<kBits>(low, high, 2 * h, 2 * step)),
               as_bits(unpack_pair<kBits>(low, high, 2 * h + 1, 2 * step)),
               as_bits(unpack_pair<kBits>(low, high, 2 * h, 2 * step + 1)),
               as_bits(unpack_pair<kBits>(low, high, 2 * h + 1, 2 * step + 1)), b[2 * step], b[2 * step + 1]);
    }
  }
}

// Activations of all tokens into shared memory, in the packed order of `inverse`.
template <Input kInput>
__device__ void stage_input(const Job& job, const int32_t* inverse, int64_t in_features, uint16_t* x, float* scratch) {
  const int64_t stride = padded_row(in_features);
  for (int m = 0; m < job.tokens; ++m) {
    uint16_t* row = x + m * stride;
    if constexpr (kInput == Input::kPacked) {
      const uint4* from = reinterpret_cast<const uint4*>(job.input + m * job.in_stride);
      for (int64_t i = threadIdx.x; i < in_features / 8; i += kThreads) reinterpret_cast<uint4*>(row)[i] = from[i];
    } else {
      const float* from = job.residual + m * job.hidden;
      float squares = 0.f;
      for (int64_t i = threadIdx.x; i < job.hidden; i += kThreads) squares += from[i] * from[i];
      const float mean = block_sum(squares, scratch) / static_cast<float>(job.hidden);
      const float factor = rsqrtf(mean + static_cast<float>(job.eps));
      for (int64_t i = threadIdx.x; i < job.hidden; i += kThreads) {
        const float weight = __half2float(__ushort_as_half(job.norm[i]));
        const float value = fminf(fmaxf(from[i] * factor * weight, -kLargestHalf), kLargestHalf);
        row[inverse != nullptr ? inverse[i] : i] = __half_as_ushort(__float2half_rn(value));
      }
      for (int64_t i = job.hidden + threadIdx.x; i < in_features; i += kThreads) row[i] = 0;
      __syncthreads();  // scratch is used again
    }
  }
}

template <Input kInput, Output kOutput>
__global__ void __launch_bounds__(kThreads, 2) linear_kernel(const __grid_constant__ Job job) {
  extern __shared__ uint4 shared[];
  constexpr bool kPair = kOutput == Output::kSwiGlu;
  constexpr int kTeam = kPair ? kWarps / 2 : kWarps;  // warps that share one weight
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;

  int part = 0;
  int64_t strip = blockIdx.x;
  if constexpr (kPair) {
    part = warp / kTeam;
  } else {
    while (strip >= job.weight[part].strips) strip -= job.weight[part++].strips;
  }
  const Linear& w = job.weight[part];

  // Shared memory: rings | tables of the weight (of both) | activations (of both, if they differ)
  uint8_t* const ring = reinterpret_cast<uint8_t*>(shared) + warp * job.stages * job.slot_bytes;
  uint8_t* table = reinterpret_cast<uint8_t*>(shared) + kWarps * job.stages * job.slot_bytes;
  uint8_t* const activations = table + (kPair ? table_bytes(job.weight[0]) + table_bytes(job.weight[1]) : table_bytes(w));
  if (kPair && part == 1) table += table_bytes(job.weight[0]);
  Block* const blocks = reinterpret_cast<Block*>(table);
  uint8_t* const scales = table + round_up(w.n_blocks * 8, 16);
  uint8_t* const groups = scales + round_up(strip_scale_bytes(w), 16);
  uint16_t* x = reinterpret_cast<uint16_t*>(activations);
  const int64_t x_stride = padded_row(w.in_features);
  if (kPair && part == 1 && !job.shared_inputs) x += job.tokens * x_stride;

  const int team_thread = threadIdx.x % (32 * kTeam);
  copy_words(blocks, w.blocks, w.n_blocks * 8, team_thread, 32 * kTeam);
  __syncthreads();

  const int begin = static_cast<int>(w.n_blocks * (warp % kTeam) / kTeam);
  const int end = static_cast<int>(w.n_blocks * (warp % kTeam + 1) / kTeam);
  const uint8_t* const codes = w.codes + strip * w.strip_bytes;
  auto request = [&](int b) {
    if (b < end) {
      const Block block = blocks[b];
      const uint8_t* from = codes + static_cast<int64_t>(block.offset16) * 16;
      uint8_t* to = ring + ((b - begin) & (job.stages - 1)) * job.slot_bytes;
      for (int i = lane; i < 8 * block.bits; i += 32) copy_async_16(to + 16 * i, from + 16 * i);
    }
    commit_copies();  // also an empty group: the count of groups is what is waited for
  };
  for (int i = 0; i < job.stages; ++i) request(begin + i);
  copy_words(scales, strip_scales_at(w, strip), strip_scale_bytes(w), team_thread, 32 * kTeam);
  copy_words(groups, strip_groups_at(w, strip), strip_group_bytes(w), team_thread, 32 * kTeam);

  allow_next_kernel();
  wait_for_previous_kernel();
  __shared__ float scratch[kWarps];
  stage_input<kInput>(job, job.weight[kPair ? 0 : part].inverse, w.in_features,
                      reinterpret_cast<uint16_t*>(activations), scratch);
  if (kPair && !job.shared_inputs) {
    stage_input<kInput>(job, job.weight[1].inverse, w.in_features,
                        reinterpret_cast<uint16_t*>(activations) + job.tokens * x_stride, scratch);
  }
  __syncthreads();

  float total[2][4] = {};
  float sum[2][4] = {};
  float ones[4] = {};  // GPTQ: sum of the activations, which a zero point per column multiplies
  for (int b = begin; b < end; ++b) {
    const Block block = blocks[b];
    uint4 x8 = make_uint4(0, 0, 0, 0);
    if (g < job.tokens) x8 = *reinterpret_cast<const uint4*>(x + g * x_stride + b * kBlockRows + 8 * t);
    if (job.stages == kManyStages) {
      wait_for_copies<kManyStages - 1>();
    } else {
      wait_for_copies<kFewStages - 1>();
    }
    __syncwarp();
    const uint8_t* slot = ring + ((b - begin) & (job.stages - 1)) * job.slot_bytes;
    for_bits(block.bits, [&](auto bits) { multiply_block<decltype(bits)::value>(slot, lane, x8, sum); });
    if (w.kind == kGptq) {
      constexpr uint32_t kOnes = 0x3c003c00u;
      multiply(ones, kOnes, kOnes, kOnes, kOnes, x8.x, x8.y);
      multiply(ones, kOnes, kOnes, kOnes, kOnes, x8.z, x8.w);
    }
    __syncwarp();
    request(b + job.stages);
    if (block.group_end || b + 1 == end) {
      float scale[4];
      float zero[4];
      strip_scales(w.kind, w.zero_shift, scales, groups, block.group, g, scale, zero);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = 2 * h + i / 2;
          total[h][i] += scale[c] * (sum[h][i] - zero[c] * ones[i]);
          sum[h][i] = 0.f;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) ones[i] = 0.f;
    }
  }

  // Sum over the warps in a fixed order, through the rings, which nobody needs any more.
  wait_for_copies<0>();
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(shared);  // (kWarps, tokens, 32)
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * t + i % 2;
      const int column = 16 * h + g + 8 * (i / 2);
      if (token < job.tokens) sums[(warp * job.tokens + token) * kStripColumns + column] = total[h][i];
    }
  }
  __syncthreads();
  const int column = threadIdx.x % kStripColumns;
  const int token = threadIdx.x / kStripColumns;
  const int64_t n = strip * kStripColumns + column;
  if (token >= job.tokens || n >= w.out_features) return;
  auto column_sum = [&](const Linear& weight, int first) {
    float result = 0.f;
    for (int i = 0; i < kTeam; ++i) result += sums[((first + i) * job.tokens + token) * kStripColumns + column];
    return weight.bias != nullptr ? result + __half2float(__ushort_as_half(weight.bias[n])) : result;
  };
  if constexpr (kPair) {
    const float gate = column_sum(job.weight[0], 0);
    const float up = column_sum(job.weight[1], kTeam);
    const float value = fminf(fmaxf(gate / (1.f + __expf(-gate)) * up, -kLargestHalf), kLargestHalf);
    const int64_t to = job.activated_inverse != nullptr ? job.activated_inverse[n] : n;
    job.activated[token * job.out_stride + to] = __half_as_ushort(__float2half_rn(value));
  } else {
    float* out = job.out + token * job.out_stride + job.out_column[part] + n;
    const float value = column_sum(w, 0);
    *out = kOutput == Output::kAdd ? *out + value : value;
  }
}

template <Input kInput, Output kOutput>
void run(const Model& model, Job& job, cudaStream_t stream) {
  constexpr bool kPair = kOutput == Output::kSwiGlu;
  int64_t strips = 0;
  int64_t max_bits = 0;
  int64_t tables = 0;
  for (int i = 0; i < job.count; ++i) {
    const Linear& w = job.weight[i];
    strips += w.strips;
    max_bits = w.max_bits > max_bits ? w.max_bits : max_bits;
    tables = kPair ? tables + table_bytes(w) : (table_bytes(w) > tables ? table_bytes(w) : tables);
  }
  if (kPair) strips = job.weight[0].strips;
  job.shared_inputs = !kPair || job.weight[0].inverse == job.weight[1].inverse;
  job.slot_bytes = static_cast<int>(128 * max_bits);
  job.stages = job.slot_bytes <= kNarrowBytes ? kManyStages : kFewStages;
  const int64_t row = padded_row(job.weight[0].in_features) * 2 * (job.shared_inputs ? 1 : 2);
  const int64_t fixed = kWarps * job.stages * job.slot_bytes + tables;

  // As many tokens at once as shared memory holds. The sums of all warps must fit where the rings were.
  static int64_t limit = 0;
  if (limit == 0) {
    int device = 0;
    int bytes = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory limit");
    check(cudaFuncSetAttribute(linear_kernel<kInput, kOutput>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes - 1024),
          "shared memory limit");
    limit = bytes - 1024;
  }
  const int most = static_cast<int>((limit - fixed) / row);
  if (most < 1) throw std::runtime_error("a linear layer is too wide for this GPU's shared memory");
  const int total = job.tokens;
  for (int first = 0; first < total; first += most) {
    Job share = job;
    share.tokens = total - first < most ? total - first : most;
    share.residual = job.residual == nullptr ? nullptr : job.residual + first * job.hidden;
    share.input = job.input == nullptr ? nullptr : job.input + first * job.in_stride;
    share.out = job.out == nullptr ? nullptr : job.out + first * job.out_stride;
    share.activated = job.activated == nullptr ? nullptr : job.activated + first * job.out_stride;
    const size_t bytes = static_cast<size_t>(fixed + row * share.tokens);
    launch(linear_kernel<kInput, kOutput>, dim3(static_cast<unsigned>(strips)), kThreads, bytes, stream,
           model.overlap != 0, share);
  }
}

Job normalized(const Model& model, const uint16_t* norm, int tokens) {
  Job job = {};
  job.tokens = tokens;
  job.residual = model.residual;
  job.norm = norm;
  job.eps = model.eps;
  job.hidden = model.hidden;
  return job;
}

}  // namespace

void attention_input(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  Job job = normalized(model, layer.attention_norm, tokens);
  const int64_t query = model.heads * model.head_dim;
  const int64_t key = model.kv_heads * model.head_dim;
  job.weight[0] = layer.q;
  job.weight[1] = layer.k;
  job.weight[2] = layer.v;
  job.out_column[1] = query;
  job.out_column[2] = query + key;
  job.count = 3;
  job.out = model.qkv;
  job.out_stride = query + 2 * key;
  run<Input::kNormalize, Output::kStore>(model, job, stream);
}

void attention_output(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  Job job = {};
  job.tokens = tokens;
  job.weight[0] = layer.o;
  job.count = 1;
  job.input = model.attended;
  job.in_stride = layer.o.in_features;
  job.out = model.residual;
  job.out_stride = model.hidden;
  run<Input::kPacked, Output::kAdd>(model, job, stream);
}

void mlp_input(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  Job job = normalized(model, layer.mlp_norm, tokens);
  job.weight[0] = layer.gate;
  job.weight[1] = layer.up;
  job.count = 2;
  job.activated = model.activated;
  job.out_stride = layer.down.in_features;
  job.activated_inverse = layer.down.inverse;
  run<Input::kNormalize, Output::kSwiGlu>(model, job, stream);
}

void mlp_output(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  Job job = {};
  job.tokens = tokens;
  job.weight[0] = layer.down;
  job.count = 1;
  job.input = model.activated;
  job.in_stride = layer.down.in_features;
  job.out = model.residual;
  job.out_stride = model.hidden;
  run<Input::kPacked, Output::kAdd>(model, job, stream);
}

void logits(const Model& model, const Linear& head, int tokens, cudaStream_t stream) {
  Job job = normalized(model, model.final_norm, tokens);
  job.weight[0] = head;
  job.count = 1;
  job.out = model.logits;
  job.out_stride = model.vocab;
  run<Input::kNormalize, Output::kStore>(model, job, stream);
}

}  // namespace exl2::cuda
