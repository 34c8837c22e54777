// Decode attention: rope, the append to the cache, and one pass over the cache split along the sequence.
//
// A unit of work is one token, the query heads of one kv head (at most kHeads of them) and one part of the sequence:
// keys and values are read once for all of those heads. kLanes lanes share a cached token, 8 elements each, so a warp
// looks at 32 / kLanes tokens at a time; every such team keeps its own running maximum, sum and weighted values (online
// softmax), merged at the end over the warp, the CUDA block and, by the part that finishes last, the sequence.
//
// Tokens of this step are not in the cache yet: their keys and values are taken from the qkv buffer, and written to the
// cache by one of the units. Output: half, in the packed order of the output projection.
//
// Bytes moved: 4 D per cached token and kv head.
#pragma once

#include <cfloat>

#include "common.cuh"

namespace exl2::cuda {

constexpr int kElements = 8;        // of a head, per lane
constexpr int kHeadsAtOnce = 2;     // query heads that one unit serves at most
constexpr int kTokensPerPart = 128; // a part that has fewer is not worth its merging

// Shared memory of a unit: queries, new keys, and what every warp found.
inline int64_t attention_bytes(int64_t head_dim, int tokens) {
  return 4 * (kHeadsAtOnce * head_dim + tokens * head_dim + kWarps * kHeadsAtOnce * (head_dim + 2));
}

// What a step's attention needs besides the layer; the same for all layers.
struct NewTokens {
  int count;
  int cached;          // tokens in the cache before them
  const float* turns;  // shared, (count, 2, rope_dim / 2): cosines and sines of their positions
};

// One head of new token j into shared memory: normalized (Qwen3) and rotated. By one warp.
__device__ __forceinline__ void load_head(const Model& model, const NewTokens& fresh, int j, const float* from,
                                          const uint16_t* norm, float* to) {
  const int lane = threadIdx.x % 32;
  const int D = static_cast<int>(model.head_dim);
  float factor = 1.f;
  if (norm != nullptr) {
    float squares = 0.f;
    for (int i = lane; i < D; i += 32) squares += __ldcg(from + i) * __ldcg(from + i);
    factor = rsqrtf(warp_sum(squares) / static_cast<float>(D) + static_cast<float>(model.eps));
  }
  const int half_dim = static_cast<int>(model.rope_dim) / 2;
  const float* turn = fresh.turns + 2 * j * half_dim;
#pragma unroll 1
  for (int i = lane; i < D; i += 32) {
    const int other = i < half_dim ? i + half_dim : i < 2 * half_dim ? i - half_dim : i;
    float value = __ldcg(from + i);
    float partner = __ldcg(from + other);
    if (norm != nullptr) {
      value *= factor * half_float(norm[i]);
      partner *= factor * half_float(norm[other]);
    }
    if (i < half_dim) {
      value = value * turn[i] - partner * turn[half_dim + i];
    } else if (other != i) {
      value = value * turn[other] + partner * turn[half_dim + other];
    }
    to[i] = value;
  }
}

__device__ __forceinline__ void unpack_elements(const uint4& words, float (&to)[kElements]) {
  const half2* pairs = reinterpret_cast<const half2*>(&words);
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) {
    const float2 pair = __half22float2(pairs[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

template <int kHeads, int kLanes>
__device__ __noinline__ void attend(const Model& model, const Layer& layer, const Linear& o, const NewTokens& tokens,
                                    float* shared) {
  constexpr int kThreads = 32 * kWarps;
  const int D = static_cast<int>(model.head_dim);
  const int H = static_cast<int>(model.heads);
  const int G = static_cast<int>(model.kv_heads);
  const int per_kv = H / G;
  const int head_groups = (per_kv + kHeads - 1) / kHeads;
  const int cached = tokens.cached;
  const int base_units = G * head_groups * tokens.count;
  const int parts = max(1, min(static_cast<int>(gridDim.x) / base_units, cached / kTokensPerPart));
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int team = lane / kLanes;
  const int offset = lane % kLanes * kElements;
  constexpr int kTeams = 32 / kLanes;
  const int stride = D + 2;
  float* const query = shared;
  float* const fresh_keys = query + kHeads * D;
  float* const merged = fresh_keys + tokens.count * D;  // (kWarps, kHeads, D + 2)
  __shared__ bool last;

  for (int unit = blockIdx.x; unit < base_units * parts; unit += gridDim.x) {
    const int part = unit % parts;
    const int kv = unit / parts % G;
    const int group = unit / parts / G % head_groups;
    const int m = unit / parts / G / head_groups;
    const int first_head = kv * per_kv + group * kHeads;
    const int heads = min(kHeads, (kv + 1) * per_kv - first_head);
    const int position = cached + m;
    const int oldest = layer.window > 0 ? max(0, position + 1 - static_cast<int>(layer.window)) : 0;
    const int seen = max(0, cached - oldest);
    const int begin = oldest + static_cast<int>(static_cast<int64_t>(seen) * part / parts);
    const int end = oldest + static_cast<int>(static_cast<int64_t>(seen) * (part + 1) / parts);
    const int64_t row = static_cast<int64_t>(H + 2 * G) * D;
    const int64_t head_row = static_cast<int64_t>(kv) * model.capacity * D;
    const int fresh = part == parts - 1 ? m + 1 : 0;  // tokens of this step that this unit looks at
    // Warps that have something to look at; the others' results need no merging.
    const int busy = max(1, min(kWarps, max(fresh, (end - begin + kTeams - 1) / kTeams)));

    sync_workers();  // shared memory is free
#pragma unroll 1
    for (int task = warp; task < heads + fresh; task += kWarps) {
      if (task < heads) {
        const int head = first_head + task;
        const uint16_t* norm = layer.q_norm == nullptr ? nullptr : layer.q_norm + head * layer.q_norm_stride;
        load_head(model, tokens, m, model.qkv + m * row + static_cast<int64_t>(head) * D, norm, query + task * D);
      } else {
        const int j = task - heads;
        const uint16_t* norm = layer.k_norm == nullptr ? nullptr : layer.k_norm + kv * layer.k_norm_stride;
        load_head(model, tokens, j, model.qkv + j * row + static_cast<int64_t>(H + kv) * D, norm,
                  fresh_keys + j * D);
      }
    }
    sync_workers();

    float weighted[kHeads][kElements];
    float maximum[kHeads];
    float sum[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      maximum[h] = -FLT_MAX;
      sum[h] = 0.f;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        weighted[h][i] = 0.f;
      }
    }
    auto look_at = [&](const float (&k)[kElements], const float (&v)[kElements], bool valid) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float4* q = reinterpret_cast<const float4*>(query + h * D + offset);
        float score = q[0].x * k[0] + q[0].y * k[1] + q[0].z * k[2] + q[0].w * k[3] + q[1].x * k[4] + q[1].y * k[5] +
                      q[1].z * k[6] + q[1].w * k[7];
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) score += __shfl_xor_sync(0xffffffffu, score, step);
        score *= static_cast<float>(model.attention_scale);
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

    // Cached tokens of this part; those of several rounds are requested at a time.
    const uint16_t* keys = layer.keys + head_row + offset;
    const uint16_t* values = layer.values + head_row + offset;
    constexpr int kRound = kWarps * kTeams;
    constexpr int kAhead = 4 / kHeads;
#pragma unroll 1
    for (int base = begin + warp * kTeams; base < end; base += kAhead * kRound) {
      uint4 key[kAhead];
      uint4 value[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int s = base + i * kRound + team;
        const int64_t at = static_cast<int64_t>(s < end ? s : begin) * D;
        key[i] = __ldcg(reinterpret_cast<const uint4*>(keys + at));
        value[i] = __ldcg(reinterpret_cast<const uint4*>(values + at));
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float k[kElements];
        float v[kElements];
        unpack_elements(key[i], k);
        unpack_elements(value[i], v);
        look_at(k, v, base + i * kRound + team < end);
      }
    }

    // Tokens of this step, one per warp, and the newest one's way into the cache.
#pragma unroll 1
    for (int j = warp; j < fresh; j += kWarps) {
      const int where = cached + j;
      const float* fresh_key = fresh_keys + j * D;
      const float* fresh_value = model.qkv + j * row + static_cast<int64_t>(H + G + kv) * D;
      // Rounded as the cache rounds, so that a token looks the same now and later.
      float k[kElements];
      float v[kElements];
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        k[i] = half_float(half_bits(fresh_key[offset + i]));
        v[i] = half_float(half_bits(__ldcg(fresh_value + offset + i)));
      }
      look_at(k, v, where >= oldest && team == 0);
      if (j == m && group == 0 && team == 0) {
        const int64_t to = head_row + static_cast<int64_t>(where) * D + offset;
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          layer.keys[to + i] = half_bits(k[i]);
          layer.values[to + i] = half_bits(v[i]);
        }
      }
    }

    // Teams of a warp, then warps.
    if (warp < busy) {
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
        float* found = merged + (warp * kHeads + h) * stride;
#pragma unroll
        for (int i = 0; i < kElements; ++i) found[offset + i] = weighted[h][i];
        if (offset == 0) {
          found[D] = maximum[h];
          found[D + 1] = sum[h];
        }
      }
    }
    }
    sync_workers();
    auto finish = [&](int head, int i, float value) {
      const int feature = head * D + i;
      const int to = o.inverse != nullptr ? o.inverse[feature] : feature;
      model.attended[m * o.in_features + to] = half_bits(value);
    };
    auto partial = [&](int head, int which) {
      return model.partial + ((static_cast<int64_t>(m) * H + head) * parts + which) * stride;
    };
#pragma unroll 1
    for (int index = threadIdx.x; index < heads * D; index += kThreads) {
      const int h = index / D;
      const int i = index % D;
      float top = -FLT_MAX;
#pragma unroll 1
      for (int other = 0; other < busy; ++other) top = fmaxf(top, merged[(other * kHeads + h) * stride + D]);
      float value = 0.f;
      float total = 0.f;
#pragma unroll 1
      for (int other = 0; other < busy; ++other) {
        const float* found = merged + (other * kHeads + h) * stride;
        const float keep = __expf(found[D] - top);
        value += found[i] * keep;
        total += found[D + 1] * keep;
      }
      if (parts == 1) {
        finish(first_head + h, i, value / total);
        continue;
      }
      float* out = partial(first_head + h, part);
      out[i] = value;
      if (i == 0) {
        out[D] = top;
        out[D + 1] = total;
      }
    }
    if (parts == 1) continue;

    // The unit that finishes last for these heads puts the parts together, in a fixed order.
    __threadfence();
    sync_workers();
    if (threadIdx.x == 0) {
      int* counter = model.arrived + static_cast<int64_t>(m) * H + first_head;
      last = atomicAdd(counter, 1) == parts - 1;
      if (last) *counter = 0;
    }
    sync_workers();
    if (!last) continue;
    __threadfence();
#pragma unroll 1
    for (int index = threadIdx.x; index < heads * D; index += kThreads) {
      const int head = first_head + index / D;
      const int i = index % D;
      float top = -FLT_MAX;
#pragma unroll 4
      for (int other = 0; other < parts; ++other) top = fmaxf(top, __ldcg(partial(head, other) + D));
      float value = 0.f;
      float total = 0.f;
#pragma unroll 4
      for (int other = 0; other < parts; ++other) {
        const float* from = partial(head, other);
        const float keep = __expf(__ldcg(from + D) - top);
        value += __ldcg(from + i) * keep;
        total += __ldcg(from + D + 1) * keep;
      }
      finish(head, i, value / total);
    }
  }
}

template <int kLanes>
__device__ void attend_heads(const Model& model, const Layer& layer, const Linear& o, const NewTokens& tokens,
                             float* shared) {
  const int64_t per_kv = model.heads / model.kv_heads;
  if (per_kv == 1) return attend<1, kLanes>(model, layer, o, tokens, shared);
  return attend<kHeadsAtOnce, kLanes>(model, layer, o, tokens, shared);
}

// All units of a layer, dealt to the CUDA blocks. head_dim: 16, 32, 64, 128 or 256.
__device__ inline void attention(const Model& model, const Layer& layer, const Linear& o, const NewTokens& tokens,
                             float* shared) {
  switch (model.head_dim) {
    case 16: return attend_heads<2>(model, layer, o, tokens, shared);
    case 32: return attend_heads<4>(model, layer, o, tokens, shared);
    case 64: return attend_heads<8>(model, layer, o, tokens, shared);
    case 128: return attend_heads<16>(model, layer, o, tokens, shared);
    default: return attend_heads<32>(model, layer, o, tokens, shared);
  }
}

}  // namespace exl2::cuda
