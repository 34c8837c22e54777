// Decode attention: rope, the append to the cache, and one pass over the cache split along the sequence.
//
// A unit of work is one token, the query heads of one kv head (at most kHeads of them) and one part of the sequence:
// keys and values are read once for all of those heads. kLanes lanes share a cached token, 8 elements each, so a warp
// looks at 32 / kLanes tokens at a time; every such team keeps its own running maximum, sum and weighted values (online
// softmax), merged at the end over the warp, the CUDA block and, by the unit with the last part, the sequence.
//
// Tokens of this step are not in the cache yet: their keys and values are taken from the qkv buffer, and written to the
// cache by one of the units. Output: half, in the packed order of the output projection.
//
// Bytes moved: 4 D per cached token and kv head.
#pragma once

#include <cfloat>

#include "exchange.cuh"

namespace exl2::cuda {

constexpr int kElements = 8;        // of a head, per lane
constexpr int kHeadsAtOnce = 2;     // query heads that one unit serves at most
constexpr int kTokensPerPart = 128; // a part that has fewer is not worth its merging
constexpr int kPartsAtOnce = 4;     // that are asked for together

// Shared memory of a unit: queries, new keys, and what every warp found.
inline int64_t attention_bytes(int64_t head_dim, int tokens) {
  return 4 * (kHeadsAtOnce * head_dim + tokens * head_dim + kWarps * kHeadsAtOnce * (head_dim + 4));
}

// What a step's attention needs besides the layer; the same for all layers.
struct NewTokens {
  int count;
  int cached;          // tokens in the cache before them
  const float* turns;  // shared, (count, 2, rope_dim / 2): cosines and sines of their positions
};

// One head of new token j into shared memory, as soon as it is there: normalized (Qwen3) and rotated. By one warp.
template <int D>
__device__ __forceinline__ void load_head(const Model& model, const NewTokens& fresh, int j, const Packet* from,
                                          uint32_t stamp, const uint16_t* norm, float* to) {
  constexpr int kEach = (D + 31) / 32;
  const int lane = thread_index() % 32;
  const int half_dim = static_cast<int>(model.rope_dim) / 2;
  const float* turn = fresh.turns + 2 * j * half_dim;
  const auto partner_of = [&](int i) { return i < half_dim ? i + half_dim : i < 2 * half_dim ? i - half_dim : i; };
  Packet own[kEach] = {};
  Packet others[kEach] = {};
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane + 32 * e;
    if (i >= D) continue;
    own[e] = look(from + i);
    others[e] = look(from + partner_of(i));
  }
  float value[kEach] = {};
  float partner[kEach] = {};
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane + 32 * e;
    if (i >= D) continue;
    value[e] = await(own[e], from + i, stamp);
    partner[e] = await(others[e], from + partner_of(i), stamp);
  }
  if (norm != nullptr) {
    float squares = 0.f;
#pragma unroll
    for (int e = 0; e < kEach; ++e) squares += value[e] * value[e];
    const float factor = rsqrtf(warp_sum(squares) * (1.f / D) + static_cast<float>(model.eps));
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int i = lane + 32 * e;
      if (i >= D) continue;
      value[e] *= factor * half_float(norm[i]);
      partner[e] *= factor * half_float(norm[partner_of(i)]);
    }
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane + 32 * e;
    if (i < half_dim) {
      value[e] = value[e] * turn[i] - partner[e] * turn[half_dim + i];
    } else if (i < 2 * half_dim) {
      value[e] = value[e] * turn[i - half_dim] + partner[e] * turn[i];
    }
    if (i < D) to[i] = value[e];
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

__device__ __forceinline__ uint4 pack_elements(const float4& low, const float4& high) {
  const auto pair = [](float a, float b) { return static_cast<uint32_t>(half_bits(a)) | half_bits(b) << 16; };
  return make_uint4(pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w));
}

// How attention is cut into units; the same for all layers.
struct Units {
  int parts;  // of the sequence
  int count;
};

// What one unit looks at; the same for all layers but for sliding windows.
struct Unit {
  int part;
  int kv;
  int group;  // of the query heads of one kv head
  int m;      // new token
};

__device__ __forceinline__ int head_groups(int heads, int kv_heads) {
  return (heads / kv_heads + kHeadsAtOnce - 1) / kHeadsAtOnce;
}

__device__ __forceinline__ Units cut_units(int heads, int kv_heads, int tokens, int cached) {
  const int base = kv_heads * head_groups(heads, kv_heads) * tokens;
  const int parts = max(1, min(static_cast<int>(gridDim.x) / base, cached / kTokensPerPart));
  return {parts, base * parts};
}

__device__ __forceinline__ Unit unit_at(int index, int parts, int heads, int kv_heads) {
  const int groups = head_groups(heads, kv_heads);
  Unit unit;
  unit.part = index % parts;
  index /= parts;
  unit.kv = index % kv_heads;
  index /= kv_heads;
  unit.group = index % groups;
  unit.m = index / groups;
  return unit;
}

// What a step's attention needs besides the layer. In shared memory: many divisions, done once.
struct Attending {
  NewTokens tokens;
  Units units;
  Unit first;  // of this CUDA block
};

template <int kHeads, int kLanes>
__device__ __forceinline__ void attend(const Model& model, const Layer& layer, const Linear& o, const Attending& attending,
                                       uint32_t stamp, float* shared) {
  constexpr int D = kLanes * kElements;
  constexpr int kThreads = 32 * kWarps;
  static_assert(kMaxTokens <= kWarps, "one warp per new token");
  static_assert(kHeads * D <= kThreads, "one thread per element of the result");
  const int H = static_cast<int>(model.heads);
  const int G = static_cast<int>(model.kv_heads);
  const NewTokens& tokens = attending.tokens;
  const int parts = attending.units.parts;
  const int thread = thread_index();
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int team = lane / kLanes;
  const int offset = lane % kLanes * kElements;
  constexpr int kTeams = 32 / kLanes;
  constexpr int kRound = kWarps * kTeams;   // tokens that the warps look at at the same time
  constexpr int kAhead = 4 / kHeads;        // rounds that are asked for, and looked at, together
  constexpr int kStride = D + 4;            // of what a warp found: values, maximum, sum
  constexpr int kPartial = D + 2;
  float* const query = shared;
  float* const fresh_keys = query + kHeads * D;
  float* const merged = fresh_keys + tokens.count * D;  // (kWarps, kHeads, kStride)

#pragma unroll 1
  for (int index = blockIdx.x; index < attending.units.count; index += gridDim.x) {
    const Unit unit = index == static_cast<int>(blockIdx.x) ? attending.first : unit_at(index, parts, H, G);
    const int part = unit.part;
    const int kv = unit.kv;
    const int m = unit.m;
    const int cached = tokens.cached;
    const int oldest = layer.window > 0 ? max(0, cached + m + 1 - static_cast<int>(layer.window)) : 0;
    const int seen = max(0, cached - oldest);
    const int begin = oldest + seen / parts * part;
    const int end = part == parts - 1 ? oldest + seen : begin + seen / parts;
    const int per_kv = kHeads == 1 ? 1 : H / G;
    const int first_head = kv * per_kv + unit.group * kHeads;
    const int heads = min(kHeads, (kv + 1) * per_kv - first_head);
    const int row = (H + 2 * G) * D;
    const int64_t head_row = static_cast<int64_t>(kv) * model.capacity * D;
    const int fresh = part == parts - 1 ? m + 1 : 0;  // tokens of this step that this unit looks at
    // Warps that have something to look at; the others' results need no merging.
    const int busy = max(1, min(kWarps, max(fresh, (end - begin + kTeams - 1) / kTeams)));
    const int heads_size = heads * D;
    const int feature = first_head * D + thread;  // of the result, if the thread has one

    const uint16_t* const keys = layer.keys + head_row + offset;
    const uint16_t* const values = layer.values + head_row + offset;
    int place = feature;
    if (o.inverse != nullptr && thread < heads_size) place = o.inverse[feature];

    sync_workers();  // shared memory is free
#pragma unroll 1
    for (int task = (warp + kMaxTokens) % kWarps; task < heads + fresh; task += kWarps) {  // by warps with no new value
      const bool is_query = task < heads;
      const int j = is_query ? m : task - heads;
      const int head = is_query ? first_head + task : H + kv;
      const uint16_t* norm = is_query ? layer.q_norm : layer.k_norm;
      if (norm != nullptr) norm += is_query ? head * layer.q_norm_stride : kv * layer.k_norm_stride;
      load_head<D>(model, tokens, j, model.qkv + j * row + head * D, stamp, norm,
                   shared + (is_query ? task : kHeads + j) * D);
    }
    uint4 newest = {};
    if (warp < fresh) {
      const Packet* from = model.qkv + warp * row + (H + G + kv) * D + offset;
      FourPackets low;
      FourPackets high;
      low.look(from);
      high.look(from + 4);
      const float4 first = low.await(from, stamp);
      newest = pack_elements(first, high.await(from + 4, stamp));
    }
    sync_workers();

    float weighted[kHeads][kElements] = {};
    float maximum[kHeads];
    float sum[kHeads] = {};
#pragma unroll
    for (int h = 0; h < kHeads; ++h) maximum[h] = -FLT_MAX;
    // Tokens first + team, and those a round apart, as far as they are below limit.
    auto look_at = [&](auto& key, auto& value, int first, int limit) {
      constexpr int kCount = sizeof(key) / sizeof(uint4);
      float score[kHeads][kCount];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float4* const q = reinterpret_cast<const float4*>(query + h * D + offset);
        const float4 low = q[0];
        const float4 high = q[1];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          float k[kElements];
          unpack_elements(key[i], k);
          score[h][i] = (low.x * k[0] + low.y * k[1] + low.z * k[2] + low.w * k[3]) +
                        (high.x * k[4] + high.y * k[5] + high.z * k[6] + high.w * k[7]);
        }
      }
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) score[h][i] += __shfl_xor_sync(0xffffffffu, score[h][i], step);
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float top = maximum[h];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          score[h][i] *= static_cast<float>(model.attention_scale);
          if (first + i * kRound + team < limit) top = fmaxf(top, score[h][i]);
        }
        const float keep = __expf(maximum[h] - top);
        maximum[h] = top;
        sum[h] *= keep;
#pragma unroll
        for (int e = 0; e < kElements; ++e) weighted[h][e] *= keep;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float weight = first + i * kRound + team < limit ? __expf(score[h][i] - top) : 0.f;
          float v[kElements];
          unpack_elements(value[i], v);
          sum[h] += weight;
#pragma unroll
          for (int e = 0; e < kElements; ++e) weighted[h][e] += weight * v[e];
        }
      }
    };

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
      look_at(key, value, base, end);
    }

    // Tokens of this step, one per warp, rounded as the cache rounds so that a token looks the same now and later. The
    // newest one goes into the cache.
    if (warp < fresh) {
      const float4* fresh_key = reinterpret_cast<const float4*>(fresh_keys + warp * D + offset);
      uint4 new_key[1] = {pack_elements(fresh_key[0], fresh_key[1])};
      uint4 new_value[1] = {newest};
      look_at(new_key, new_value, 0, cached + warp >= oldest ? 1 : 0);
      if (warp == m && unit.group == 0 && team == 0) {
        const int64_t to = head_row + static_cast<int64_t>(cached + warp) * D + offset;
        *reinterpret_cast<uint4*>(layer.keys + to) = new_key[0];
        *reinterpret_cast<uint4*>(layer.values + to) = new_value[0];
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
          float* const found = merged + (warp * kHeads + h) * kStride;
          float4* const to = reinterpret_cast<float4*>(found + offset);
          to[0] = make_float4(weighted[h][0], weighted[h][1], weighted[h][2], weighted[h][3]);
          to[1] = make_float4(weighted[h][4], weighted[h][5], weighted[h][6], weighted[h][7]);
          if (offset == 0) *reinterpret_cast<float2*>(found + D) = make_float2(maximum[h], sum[h]);
        }
      }
    }
    sync_workers();
    const bool has = thread < heads_size;  // an element i of head h of this unit
    const int h = thread / D;
    const int i = thread % D;
    // The unit with the last part puts all of them together, in a fixed order.
    auto partial = [&](int which) {
      return model.partial + ((static_cast<int64_t>(m) * H + first_head + h) * parts + which) * kPartial;
    };
    if (!has) continue;
    const float* const from = merged + h * kStride;
    float top = -FLT_MAX;
#pragma unroll 4
    for (int other = 0; other < busy; ++other) top = fmaxf(top, from[other * kHeads * kStride + D]);
    float value = 0.f;
    float total = 0.f;
#pragma unroll 4
    for (int other = 0; other < busy; ++other) {
      const float* found = from + other * kHeads * kStride;
      const float keep = __expf(found[D] - top);
      value += found[i] * keep;
      total += found[D + 1] * keep;
    }
    if (part < parts - 1) {
      Packet* const to = partial(part);
      put(to + i, value, stamp);
      if (i == 0) {
        put(to + D, top, stamp);
        put(to + D + 1, total, stamp);
      }
      continue;
    }
#pragma unroll 1
    for (int first = 0; first < parts - 1; first += kPartsAtOnce) {
      Packet found[kPartsAtOnce][3];
#pragma unroll
      for (int other = 0; other < kPartsAtOnce; ++other) {
        const Packet* const there = partial(min(first + other, parts - 2));
        found[other][0] = look(there + i);
        found[other][1] = look(there + D);
        found[other][2] = look(there + D + 1);
      }
#pragma unroll
      for (int other = 0; other < kPartsAtOnce; ++other) {
        if (first + other >= parts - 1) break;
        const Packet* const there = partial(first + other);
        const float other_value = await(found[other][0], there + i, stamp);
        const float other_top = await(found[other][1], there + D, stamp);
        const float other_total = await(found[other][2], there + D + 1, stamp);
        const float highest = fmaxf(top, other_top);
        const float keep = __expf(top - highest);
        const float other_keep = __expf(other_top - highest);
        value = value * keep + other_value * other_keep;
        total = total * keep + other_total * other_keep;
        top = highest;
      }
    }
    put(model.attended + m * o.in_features + place, half_bits(__fdividef(value, total)), stamp);
  }
}

template <int kLanes>
__device__ __forceinline__ void attend_heads(const Model& model, const Layer& layer, const Linear& o,
                                             const Attending& attending, uint32_t stamp, float* shared) {
  if (model.heads == model.kv_heads) return attend<1, kLanes>(model, layer, o, attending, stamp, shared);
  return attend<kHeadsAtOnce, kLanes>(model, layer, o, attending, stamp, shared);
}

// All units of a layer, dealt to the CUDA blocks. head_dim: 16, 32, 64, 128 or 256.
__device__ __forceinline__ void attention(const Model& model, const Layer& layer, const Linear& o,
                                          const Attending& attending, uint32_t stamp, float* shared) {
  switch (model.head_dim) {
    case 16: return attend_heads<2>(model, layer, o, attending, stamp, shared);
    case 32: return attend_heads<4>(model, layer, o, attending, stamp, shared);
    case 64: return attend_heads<8>(model, layer, o, attending, stamp, shared);
    case 128: return attend_heads<16>(model, layer, o, attending, stamp, shared);
    default: return attend_heads<32>(model, layer, o, attending, stamp, shared);
  }
}

}  // namespace exl2::cuda
