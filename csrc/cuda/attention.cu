// Decode attention: rope, the append to the cache, and one pass over the cache split along the sequence.
//
// A CUDA block serves the query heads of one kv head (at most kHeads of them) for one token and one part of the
// sequence: keys and values are read once for all of them. kLanes lanes share a cached token, 16 elements each, so a
// warp looks at 32 / kLanes tokens at a time; every such team keeps its own running maximum, sum and weighted values
// (online softmax), merged at the end over the warp, the block and, by the part that finishes last, the sequence.
//
// Tokens of this step are not in the cache yet: their keys and values are taken from the qkv buffer, and written to the
// cache by one of the blocks. Output: half, in the packed order of the output projection.
//
// Bytes moved: 4 D per cached token and kv head.
#include <cfloat>

#include "kernels.h"
#include "unpack.cuh"

namespace exl2::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kElements = 16;  // of a head, per lane
constexpr int kMaxHeadDim = 256;

struct Job {
  Model model;
  Layer layer;
  int tokens;
  int head_groups;  // blocks that share one kv head
};

// One head of a new token into shared memory: normalized (Qwen3) and rotated. All threads of the block.
__device__ void load_head(const Model& model, const float* from, const uint16_t* norm, int position, bool rotate, float* to,
                          float* scratch) {
  const int D = static_cast<int>(model.head_dim);
  float factor = 1.f;
  if (norm != nullptr) {
    float squares = 0.f;
    for (int i = threadIdx.x; i < D; i += kThreads) squares += from[i] * from[i];
    factor = rsqrtf(block_sum(squares, scratch) / static_cast<float>(D) + static_cast<float>(model.eps));
    __syncthreads();
  }
  auto value = [&](int i) { return norm != nullptr ? from[i] * factor * __half2float(__ushort_as_half(norm[i])) : from[i]; };
  const int half_dim = static_cast<int>(model.rope_dim) / 2;
  for (int i = threadIdx.x; i < D; i += kThreads) {
    float result = value(i);
    if (rotate && i < 2 * half_dim) {
      const int pair = i < half_dim ? i : i - half_dim;
      const float cosine = model.cosines[static_cast<int64_t>(position) * half_dim + pair];
      const float sine = model.sines[static_cast<int64_t>(position) * half_dim + pair];
      result = i < half_dim ? result * cosine - value(i + half_dim) * sine : result * cosine + value(i - half_dim) * sine;
    }
    to[i] = result;
  }
}

__device__ __forceinline__ void load_16(const uint16_t* from, float (&to)[kElements]) {
  const uint4 words[2] = {reinterpret_cast<const uint4*>(from)[0], reinterpret_cast<const uint4*>(from)[1]};
  const half2* pairs = reinterpret_cast<const half2*>(words);
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) {
    const float2 pair = __half22float2(pairs[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

template <int kHeads, int kLanes>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Job job) {
  const Model& model = job.model;
  const Layer& layer = job.layer;
  const int D = static_cast<int>(model.head_dim);
  const int H = static_cast<int>(model.heads);
  const int G = static_cast<int>(model.kv_heads);
  const int per_kv = H / G;
  const int kv = blockIdx.x / job.head_groups;
  const int first_head = kv * per_kv + blockIdx.x % job.head_groups * kHeads;
  const int part = blockIdx.y;
  const int parts = gridDim.y;
  const int m = blockIdx.z;
  const int heads = min(kHeads, (kv + 1) * per_kv - first_head);

  __shared__ float query[kHeads][kMaxHeadDim];
  __shared__ float fresh_key[kMaxHeadDim];
  __shared__ float scratch[kWarps];
  __shared__ float merged[kWarps][kHeads][kMaxHeadDim + 2];
  __shared__ bool last;

  allow_next_kernel();
  wait_for_previous_kernel();

  const int cached = model.state[0];
  const int position = cached + m;
  const int64_t row = static_cast<int64_t>(H + 2 * G) * D;
  const float* qkv = model.qkv + m * row;
  for (int h = 0; h < heads; ++h) {
    const int head = first_head + h;
    const uint16_t* norm = layer.q_norm == nullptr ? nullptr : layer.q_norm + head * layer.q_norm_stride;
    load_head(model, qkv + static_cast<int64_t>(head) * D, norm, position, true, query[h], scratch);
  }
  __syncthreads();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int team = lane / kLanes;
  const int offset = lane % kLanes * kElements;
  constexpr int kTeams = 32 / kLanes;
  float q[kHeads][kElements];
  float weighted[kHeads][kElements];
  float maximum[kHeads];
  float sum[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    maximum[h] = -FLT_MAX;
    sum[h] = 0.f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      q[h][i] = h < heads ? query[h][offset + i] * static_cast<float>(model.attention_scale) : 0.f;
      weighted[h][i] = 0.f;
    }
  }

  auto look_at = [&](const float (&k)[kElements], const float (&v)[kElements], bool valid) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score = 0.f;
#pragma unroll
      for (int i = 0; i < kElements; ++i) score += q[h][i] * k[i];
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) score += __shfl_xor_sync(0xffffffffu, score, step);
      if (!valid) continue;
      const float top = fmaxf(maximum[h], score);
      const float keep = __expf(maximum[h] - top);
      const float weight = __expf(score - top);
      maximum[h] = top;
      sum[h] = sum[h] * keep + weight;
#pragma unroll
      for (int i = 0; i < kElements; ++i) weighted[h][i] = weighted[h][i] * keep + weight * v[i];
    }
  };

  // Cached tokens of this part.
  const int oldest = layer.window > 0 ? max(0, position + 1 - static_cast<int>(layer.window)) : 0;
  const int seen = max(0, cached - oldest);
  const int begin = oldest + static_cast<int>(static_cast<int64_t>(seen) * part / parts);
  const int end = oldest + static_cast<int>(static_cast<int64_t>(seen) * (part + 1) / parts);
  const int64_t head_row = static_cast<int64_t>(kv) * model.capacity * D;
  const uint16_t* keys = layer.keys + head_row + offset;
  const uint16_t* values = layer.values + head_row + offset;
  for (int base = begin + warp * kTeams; base < end; base += kWarps * kTeams) {
    const int s = base + team;
    const bool valid = s < end;
    const int64_t at = static_cast<int64_t>(valid ? s : begin) * D;
    float k[kElements];
    float v[kElements];
    load_16(keys + at, k);
    load_16(values + at, v);
    look_at(k, v, valid);
  }

  // Tokens of this step, and their way into the cache.
  if (part == parts - 1) {
    for (int j = 0; j <= m; ++j) {
      const int where = cached + j;
      if (where < oldest) continue;
      const float* fresh = model.qkv + j * row + static_cast<int64_t>(H + kv) * D;
      const float* fresh_value = fresh + static_cast<int64_t>(G) * D;
      const uint16_t* norm = layer.k_norm == nullptr ? nullptr : layer.k_norm + kv * layer.k_norm_stride;
      __syncthreads();
      load_head(model, fresh, norm, where, true, fresh_key, scratch);
      __syncthreads();
      // Rounded as the cache rounds, so that a token looks the same now and later.
      float k[kElements];
      float v[kElements];
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        k[i] = __half2float(__float2half_rn(fresh_key[offset + i]));
        v[i] = __half2float(__float2half_rn(fresh_value[offset + i]));
      }
      look_at(k, v, warp == 0 && team == 0);
      if (j == m && first_head == kv * per_kv) {
        const int64_t to = head_row + static_cast<int64_t>(where) * D;
        for (int i = threadIdx.x; i < D; i += kThreads) {
          layer.keys[to + i] = __half_as_ushort(__float2half_rn(fresh_key[i]));
          layer.values[to + i] = __half_as_ushort(__float2half_rn(fresh_value[i]));
        }
      }
    }
  }

  // Teams of a warp, then warps.
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int step = kLanes; step < 32; step *= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, maximum[h], step);
      const float top = fmaxf(maximum[h], other);
      const float keep = __expf(maximum[h] - top);
      maximum[h] = top;
      sum[h] *= keep;
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], step);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        weighted[h][i] *= keep;
        weighted[h][i] += __shfl_xor_sync(0xffffffffu, weighted[h][i], step);
      }
    }
    if (team == 0) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) merged[warp][h][offset + i] = weighted[h][i];
      if (offset == 0) {
        merged[warp][h][D] = maximum[h];
        merged[warp][h][D + 1] = sum[h];
      }
    }
  }
  __syncthreads();
  const int stride = D + 2;
  auto partial = [&](int head, int which) {
    return model.partial + ((static_cast<int64_t>(m) * H + head) * parts + which) * stride;
  };
  for (int index = threadIdx.x; index < heads * D; index += kThreads) {
    const int h = index / D;
    const int i = index % D;
    float top = merged[0][h][D];
    for (int other = 1; other < kWarps; ++other) top = fmaxf(top, merged[other][h][D]);
    float value = 0.f;
    float total = 0.f;
    for (int other = 0; other < kWarps; ++other) {
      const float keep = __expf(merged[other][h][D] - top);
      value += merged[other][h][i] * keep;
      total += merged[other][h][D + 1] * keep;
    }
    float* out = partial(first_head + h, part);
    out[i] = value;
    if (i == 0) {
      out[D] = top;
      out[D + 1] = total;
    }
  }

  // The block that finishes last for these heads puts the parts together, in a fixed order.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* counter = model.arrived + static_cast<int64_t>(m) * H + first_head;
    last = atomicAdd(counter, 1) == parts - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int index = threadIdx.x; index < heads * D; index += kThreads) {
    const int head = first_head + index / D;
    const int i = index % D;
    float top = -FLT_MAX;
    for (int other = 0; other < parts; ++other) top = fmaxf(top, __ldcg(partial(head, other) + D));
    float value = 0.f;
    float total = 0.f;
    for (int other = 0; other < parts; ++other) {
      const float* from = partial(head, other);
      const float keep = __expf(__ldcg(from + D) - top);
      value += __ldcg(from + i) * keep;
      total += __ldcg(from + D + 1) * keep;
    }
    const int feature = head * D + i;
    const int to = layer.o.inverse != nullptr ? layer.o.inverse[feature] : feature;
    model.attended[m * layer.o.in_features + to] = __half_as_ushort(__float2half_rn(value / total));
  }
}

template <int kHeads, int kLanes>
void run(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  Job job = {model, layer, tokens, 0};
  const int per_kv = static_cast<int>(model.heads / model.kv_heads);
  job.head_groups = (per_kv + kHeads - 1) / kHeads;
  const dim3 grid(static_cast<unsigned>(model.kv_heads * job.head_groups), static_cast<unsigned>(model.splits),
                  static_cast<unsigned>(tokens));
  launch(attention_kernel<kHeads, kLanes>, grid, kThreads, 0, stream, model.overlap != 0, job);
}

template <int kLanes>
void run_heads(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  const int64_t per_kv = model.heads / model.kv_heads;
  if (per_kv == 1) return run<1, kLanes>(model, layer, tokens, stream);
  if (per_kv == 2) return run<2, kLanes>(model, layer, tokens, stream);
  return run<4, kLanes>(model, layer, tokens, stream);
}

__global__ void embed_kernel(const __grid_constant__ Model model) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int m = blockIdx.y;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= model.hidden) return;
  const int64_t id = model.state[1 + m];
  model.residual[m * model.hidden + i] =
      __half2float(static_cast<const half*>(model.embedding)[id * model.hidden + i]);
}

}  // namespace

void attention(const Model& model, const Layer& layer, int tokens, cudaStream_t stream) {
  switch (model.head_dim) {
    case 16: return run_heads<1>(model, layer, tokens, stream);
    case 32: return run_heads<2>(model, layer, tokens, stream);
    case 64: return run_heads<4>(model, layer, tokens, stream);
    case 128: return run_heads<8>(model, layer, tokens, stream);
    case 256: return run_heads<16>(model, layer, tokens, stream);
    default: throw std::runtime_error("decode attention takes a head_dim of 16, 32, 64, 128 or 256");
  }
}

void embed(const Model& model, int tokens, cudaStream_t stream) {
  constexpr int kEmbedThreads = 256;
  const dim3 grid(static_cast<unsigned>((model.hidden + kEmbedThreads - 1) / kEmbedThreads), static_cast<unsigned>(tokens));
  launch(embed_kernel, grid, kEmbedThreads, 0, stream, model.overlap != 0, model);
}

void decode_step(const Model& model, const Layer* layers, const Linear& head, int tokens, cudaStream_t stream) {
  embed(model, tokens, stream);
  for (int64_t i = 0; i < model.layers; ++i) {
    attention_input(model, layers[i], tokens, stream);
    attention(model, layers[i], tokens, stream);
    attention_output(model, layers[i], tokens, stream);
    mlp_input(model, layers[i], tokens, stream);
    mlp_output(model, layers[i], tokens, stream);
  }
  logits(model, head, tokens, stream);
}

}  // namespace exl2::cuda
