// Decode attention: rope, the append to the cache, and one pass over the cache split along the sequence, on the tensor
// cores.
//
// A unit of work is one new token, the query heads of one kv head (at most most_heads of them) and one part of the
// sequence: keys and values are read once for all of those heads. The warps take 16 tokens at a time
// (attention_tile.cuh). What they found is merged, and then, by slices of 32 elements of the result, the parts: all units
// of a sequence take their share of that.
//
// Every unit that looks at tokens of this step writes their keys and values to the cache first, and reads them there as
// all others: units of the same kv head write the same bytes. Only a single new token is taken from shared memory, and
// joins what the warps found when that is merged. Output: half, in the packed order of the output projection.
//
// Bytes moved per cached token and kv head: 4 D with 16 bits, 2 D + 4 blocks with 8 (cache.cuh).
#pragma once

#include "attention_tile.cuh"
#include "exchange.cuh"

namespace exl2::cuda {

constexpr int kTokensPerPart = 128;  // a part that has fewer is not worth its merging
constexpr int kPartsAtOnce = 8;      // that are asked for together
constexpr int kSlice = 32;           // elements of the result that a warp puts together
constexpr float kLog2E = 1.4426950408889634f;

// Shared memory of a unit: see Desk.
inline int64_t attention_bytes(int64_t heads, int64_t kv_heads, int head_dim) {
  const int64_t together = heads / kv_heads < most_heads(head_dim) ? heads / kv_heads : most_heads(head_dim);
  return 2 * query_row(head_dim) * (together + 2) + 4 * kWarps * found_row(head_dim) * together;
}

// What a step's attention needs besides the layer; the same for all layers.
struct NewTokens {
  int count;
  int cached;          // tokens in the cache before them
  const float* turns;  // shared, (count, 2, rope_dim / 2): cosines and sines of their positions
};

// One head of a new token as soon as it is there, element lane + 32 e to value[e]: normalized (Qwen3) and rotated. By one
// warp. turn: cosines and sines of its position, null for values.
template <int D>
__device__ __forceinline__ void load_head(const Model& model, const Packet* from, uint32_t stamp, const uint16_t* norm,
                                          const float* turn, float (&value)[(D + 31) / 32]) {
  constexpr int kEach = (D + 31) / 32;
  const int lane = thread_index() % 32;
  const int half_dim = turn == nullptr ? 0 : static_cast<int>(model.rope_dim) / 2;
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
  float partner[kEach] = {};
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane + 32 * e;
    value[e] = 0.f;
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
  }
}

// How attention is cut into units; the same for all layers.
struct Units {
  int parts;  // of the sequence
  int count;
};

__device__ __forceinline__ int head_groups(const Model& model) {
  const int most = most_heads(static_cast<int>(model.head_dim));
  return (static_cast<int>(model.heads) / static_cast<int>(model.kv_heads) + most - 1) / most;
}

__device__ __forceinline__ Units cut_units(const Model& model, int tokens, int cached) {
  const int base = static_cast<int>(model.kv_heads) * head_groups(model) * tokens;
  const int parts = max(1, min(static_cast<int>(gridDim.x) / base, cached / kTokensPerPart));
  return {parts, base * parts};
}

// What one unit looks at: shared by a CUDA block, which keeps it in shared memory. There are not enough registers for it,
// and local memory is far away.
struct Unit {
  int part;
  int kv;
  int m;           // new token
  int first_head;  // of the query heads
  int heads;

  int begin;  // tokens
  int end;
  int fresh;  // tokens of this step among them

  __device__ __forceinline__ void choose(const Model& model, const Units& units, int index) {
    const int together = static_cast<int>(model.heads) / static_cast<int>(model.kv_heads);
    const int most = most_heads(static_cast<int>(model.head_dim));
    part = index % units.parts;
    index /= units.parts;
    kv = index % static_cast<int>(model.kv_heads);
    index /= static_cast<int>(model.kv_heads);
    const int groups = head_groups(model);
    const int group = index % groups;
    m = index / groups;
    first_head = kv * together + group * most;
    heads = min(most, together - group * most);
  }

  __device__ __forceinline__ void look(const Units& units, int cached, int window) {
    const int oldest = window > 0 ? max(0, cached + m + 1 - window) : 0;
    const int seen = max(0, cached - oldest);
    const bool is_last = part == units.parts - 1;
    begin = oldest + seen / units.parts * part;
    fresh = is_last ? m + 1 : 0;
    end = is_last ? cached + fresh : begin + seen / units.parts;
  }
};

// What a step's attention needs besides the layer, in shared memory.
struct Attending {
  NewTokens tokens;
  Units units;
  Unit unit;
};

// Where the parts of a unit's shared memory lie.
template <int D>
struct Desk {
  uint8_t* const shared;
  const int heads;

  // The queries, and the key and the value of the new token: half (heads + 2, query_row).
  __device__ __forceinline__ uint16_t* queries() const { return reinterpret_cast<uint16_t*>(shared); }
  __device__ __forceinline__ uint16_t* key() const { return queries() + query_row(D) * heads; }
  __device__ __forceinline__ uint16_t* value() const { return key() + query_row(D); }
  __device__ __forceinline__ float* found() const {  // what every warp found, (kWarps, heads, found_row)
    return reinterpret_cast<float*>(shared + 2 * query_row(D) * (heads + 2));
  }
};

template <bool kOne, int D, int kKeyBits, int kValueBits>
__device__ __forceinline__ void attend(const Model& model, const Layer& layer, const Linear& o, const Attending& attending,
                                       uint32_t stamp, uint8_t* shared) {
  constexpr bool kTurned = kKeyBits != 16;
  constexpr int kBlocks = (D + 31) / 32;
  // The way to L2 and back is what a single new token would wait for in the cache. Coded, it is another one there.
  constexpr bool kDirect = kOne && kKeyBits == 16 && kValueBits == 16 && D % 32 == 0;
  const Unit& unit = attending.unit;
  const auto desk = [&] { return Desk<D>{shared, unit.heads}; };
  const auto keys = [&] { return CachedHead<kKeyBits, D>(layer.keys, layer.key_units, unit.kv * model.capacity); };
  const auto values = [&] { return CachedHead<kValueBits, D>(layer.values, layer.value_units, unit.kv * model.capacity); };

  // Where the first element goes that this thread will have of the result: asked for in time.
  const int parts = attending.units.parts;
  const int soon = parts == 1 ? thread_index() : kSlice * (unit.part + parts * (thread_index() / 32)) + thread_index() % 32;
  int soon_at = unit.first_head * D + soon;
  if (o.inverse != nullptr && soon < unit.heads * D) soon_at = o.inverse[soon_at];

#pragma unroll 1
  for (int task = thread_index() / 32; task < unit.heads + 2 * unit.fresh; task += kWarps) {
    const int H = static_cast<int>(model.heads);
    const int G = static_cast<int>(model.kv_heads);
    const bool is_query = task < unit.heads;
    const bool is_value = task >= unit.heads + unit.fresh;
    const int j = is_query ? unit.m : task - unit.heads - (is_value ? unit.fresh : 0);
    const int head = is_query ? unit.first_head + task : is_value ? H + G + unit.kv : H + unit.kv;
    const uint16_t* norm = is_query ? layer.q_norm : is_value ? nullptr : layer.k_norm;
    if (norm != nullptr) norm += is_query ? head * layer.q_norm_stride : unit.kv * layer.k_norm_stride;
    const float* const turns = is_value ? nullptr : attending.tokens.turns + j * model.rope_dim;
    float value[kBlocks];
    load_head<D>(model, model.qkv + (j * (H + 2 * G) + head) * D, stamp, norm, turns, value);
    const int lane = thread_index() % 32;
#pragma unroll
    for (int e = 0; e < kBlocks; ++e) {
      if constexpr (kTurned) value[e] = turn<kBlockOf<D>>(value[e]);
      if (is_query) {
        const float scaled = value[e] * (static_cast<float>(model.attention_scale) * kLog2E);
        if (lane + 32 * e < D) desk().queries()[task * query_row(D) + lane + 32 * e] = half_bits(scaled);
      } else {
        if (is_value) {
          values().row(attending.tokens.cached + j).store(e, value[e]);
        } else {
          keys().row(attending.tokens.cached + j).store(e, value[e]);
        }
        if constexpr (kDirect) (is_value ? desk().value() : desk().key())[lane + 32 * e] = half_bits(value[e]);
      }
    }
  }
  sync_workers();

  const auto end = [&] { return kDirect ? unit.end - unit.fresh : unit.end; };
  if (!kDirect || unit.begin < end()) {
    const int warp = thread_index() / 32;
    if (warp * kTileKeys < end() - unit.begin) {
      Found<D, kKeyBits, kValueBits> own = {keys(), values()};
#pragma unroll 1
      for (int first = unit.begin + warp * kTileKeys; first < end(); first += kWarps * kTileKeys) {
        own.look_at(desk().queries(), unit.heads, first, end() - 1);
        asm volatile("" ::: "memory");  // what is in shared memory is not worth a register from tile to tile
      }
      own.write(desk().found() + warp * unit.heads * found_row(D), unit.heads);
    }
    sync_workers();
  }

  const int busy = min(kWarps, (end() - unit.begin + kTileKeys - 1) / kTileKeys);  // warps that looked at something
  const int warp = thread_index() / 32;
  const int lane = thread_index() % 32;
  const int elements = unit.heads * D;
  auto finish = [&](int element, float value) {  // of the result, by a whole warp
    if constexpr (kTurned) value = turn<kBlockOf<D>>(value);
    if (element >= unit.heads * D) return;
    int place = soon_at;
    if (element != soon) {
      place = unit.first_head * D + element;
      if (o.inverse != nullptr) place = o.inverse[place];
    }
    put(model.attended + unit.m * o.in_features + place, half_bits(value), stamp);
  };
  auto partial = [&](int head) {  // the first part's
    return model.partial + (unit.m * static_cast<int>(model.heads) + unit.first_head + head) * parts * (D + 2);
  };
#pragma unroll 1
  for (int slice = warp; kSlice * slice < elements; slice += kWarps) {
    const int element = kSlice * slice + lane;
    const int h = min(element / D, unit.heads - 1);
    const float* const from = desk().found() + h * found_row(D);
    const int apart = unit.heads * found_row(D);  // from warp to warp
    float top = -FLT_MAX;
#pragma unroll 4
    for (int other = 0; other < busy; ++other) top = fmaxf(top, from[other * apart + D]);
    float value = 0.f;
    float total = 0.f;
    if constexpr (kDirect) {
      if (unit.fresh != 0) {
        const uint16_t* const query = desk().queries() + h * query_row(D);
        float score = 0.f;
#pragma unroll
        for (int e = 0; e < kBlocks; ++e) {
          score += half_float(query[lane + 32 * e]) * half_float(desk().key()[lane + 32 * e]);
        }
        score = warp_sum(score);
        top = fmaxf(top, score);
        total = exp2_of(score - top);
        value = half_float(desk().value()[element % D]) * total;
      }
    }
#pragma unroll 4
    for (int other = 0; other < busy; ++other) {
      const float2 top_total = *reinterpret_cast<const float2*>(from + other * apart + D);
      const float keep = exp2_of(top_total.x - top);
      value += from[other * apart + element % D] * keep;
      total += top_total.y * keep;
    }
    if (parts == 1) {
      finish(element, __fdividef(value, total));
    } else if (element < elements) {
      Packet* const to = partial(h) + unit.part * (D + 2);
      put(to + element % D, value, stamp);
      if (element % D == 0) {
        put(to + D, top, stamp);
        put(to + D + 1, total, stamp);
      }
    }
  }
  if (parts > 1) {  // slices part, part + parts, ...: one per warp
#pragma unroll 1
    for (int slice = unit.part + parts * warp; kSlice * slice < elements; slice += parts * kWarps) {
      const int element = kSlice * slice + lane;
      const int h = min(element / D, unit.heads - 1);
      float top = -FLT_MAX;
      float total = 0.f;
      float value = 0.f;
#pragma unroll 1
      for (int first = 0; first < parts; first += kPartsAtOnce) {
        const Packet* const there = partial(h);
        Packet found[kPartsAtOnce][3];
        bool missing = true;
        while (missing) {
          missing = false;
#pragma unroll
          for (int other = 0; other < kPartsAtOnce; ++other) {
            const Packet* const from = there + min(first + other, parts - 1) * (D + 2);
            found[other][0] = look(from + element % D);
            found[other][1] = look(from + D);
            found[other][2] = look(from + D + 1);
          }
#pragma unroll
          for (int other = 0; other < kPartsAtOnce; ++other) {
            for (const Packet& packet : found[other]) missing |= packet.stamp != stamp;
          }
        }
#pragma unroll
        for (int other = 0; other < kPartsAtOnce; ++other) {
          if (first + other >= parts) break;
          const float highest = fmaxf(top, found[other][1].value);
          const float keep = exp2_of(top - highest);
          const float other_keep = exp2_of(found[other][1].value - highest);
          value = value * keep + found[other][0].value * other_keep;
          total = total * keep + found[other][2].value * other_keep;
          top = highest;
        }
      }
      finish(element, __fdividef(value, total));
    }
  }
}

// attending.unit of a layer. kHeadDim: 0 for any of 16, 32, 64, 96, 128 and 256. shared: aligned to 16 bytes.
template <bool kOne, int kHeadDim, int kKeyBits, int kValueBits>
__device__ __forceinline__ void attend_unit(const Model& model, const Layer& layer, const Linear& o,
                                            const Attending& attending, uint32_t stamp, uint8_t* shared) {
  if constexpr (kHeadDim != 0) {
    return attend<kOne, kHeadDim, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
  }
  switch (model.head_dim) {
    case 16: return attend<kOne, 16, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
    case 32: return attend<kOne, 32, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
    case 64: return attend<kOne, 64, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
    case 96: return attend<kOne, 96, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
    case 128: return attend<kOne, 128, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
    default: return attend<kOne, 256, kKeyBits, kValueBits>(model, layer, o, attending, stamp, shared);
  }
}

}  // namespace exl2::cuda
