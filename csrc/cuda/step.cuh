// A decode step, from token ids to logits, as one kernel that stays on the GPU: one CUDA block per multiprocessor, five
// phases per layer, each waiting for the results of the one before (exchange.cuh). Decoding reads every weight once, so
// the kernel is built around keeping memory busy: each warp streams its share of all weights through a ring (feed.cuh)
// that runs ahead of the phases. While blocks wait for each other, stage activations or attend, the next weights arrive.
//
// A linear: strips of 32 columns are dealt to the CUDA blocks, the rows of a strip to the warps. Activations are staged
// once per phase in shared memory, in the packed order of the weight; where they come in that order, one token's by every
// warp for itself. Sums over warps have a fixed order and no column has two writers, so that a step gives the same bits
// every time.
//
// Bytes moved per weight: bits / 8, plus 32 bytes per segment of 128 rows and 32 columns (EXL2).
#pragma once

#include "arrange.cuh"
#include "stage_one.cuh"
#include "strips.cuh"

namespace exl2::cuda {

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

// 640 threads can have 96 registers each. 128 of them need no more than 32: the 64 that each gives are 16 for each of the
// 512 others. No more than that: registers that the launch left over are not in the pool, who asks for them waits forever.
__device__ __forceinline__ void give_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
#endif
}

__device__ __forceinline__ void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
#endif
}

// The first look at results takes as long as the last CUDA blocks do, so it begins when this part of them is not done yet.
// If it were more, those who look in vain would be in the way of the weights. Attention has few who look.
constexpr int kEarlyProducts = 32;
constexpr int kEarlyAttention = 8;

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

// kOne: one token only. kHeadDim: 0 for any. kKeyBits, kValueBits: of the cache (cache.cuh).
template <bool kOne, int kHeadDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Step step) {
  extern __shared__ uint4 shared_words[];
  uint8_t* const shared = reinterpret_cast<uint8_t*>(shared_words);
  __shared__ alignas(16) Linear plans[2][3];  // of this phase and of the next
  __shared__ Layer layer_plans[2];
  __shared__ float scratch[kWarps];
  __shared__ float largest[kWarps];
  __shared__ Item items[kBatch];
  __shared__ uint32_t arrivals[2];
  __shared__ Attending attending;
  __shared__ alignas(16) Span spans[2 * kWarps];
  __shared__ Model shared_model;  // for code that is not inlined, which would read parameters from global memory
  const Model& model = step.model;
  const int layers = static_cast<int>(model.layers);
  auto* const barriers = reinterpret_cast<uint64_t*>(shared + step.barriers_at);
  const Rings rings = {shared, barriers, barriers + kWarps * step.slots, step.slots, static_cast<int>(model.slot_bytes)};
  if (threadIdx.x == 0) start_rings(rings);
  if (threadIdx.x == 0) {
    const NewTokens fresh = {kOne ? 1 : step.tokens, model.state[0], reinterpret_cast<float*>(shared + step.turns_at)};
    const Units units = cut_units(model, fresh.count, fresh.cached);
    attending.tokens = fresh;
    attending.units = units;
    attending.unit.choose(model, units, static_cast<int>(blockIdx.x));
  }
  copy_shared(&shared_model, &step.model, sizeof(Model));
  __syncthreads();
  if (threadIdx.x >= kWorkers) {
    give_registers();
    const int feeder = static_cast<int>(threadIdx.x - kWorkers) / 32;
    const int feeders = static_cast<int>(model.feeders);
    if (feeder < feeders) {
      feed_rings(model.linears, layers * kLinears + (has_head(model) ? 1 : 0), rings, feeder, feeders, spans);
    }
    return;
  }

  take_registers();

  int position = 0;  // in this warp's ring
  const int tokens = kOne ? 1 : step.tokens;
  auto* const x = reinterpret_cast<uint16_t*>(shared + step.input_at);
  auto* const ones = reinterpret_cast<float*>(shared + step.ones_at);
  auto* const zeros = reinterpret_cast<uint64_t*>(shared + step.zeros_at);
  if (threadIdx.x < 4) zeros[threadIdx.x] = 0;
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
  if (attending.units.parts > 1) clear(model.partial, attending.units.parts * tokens * model.heads * (model.head_dim + 2));
  for (int64_t i = first_thread; i < tokens * model.hidden; i += all_threads) {
    float value;
    if (model.embedding != nullptr) {
      value = half_float(model.embedding[model.state[1 + i / model.hidden] * model.hidden + i % model.hidden]);
    } else {
      value = model.residual[i];
    }
    model.entering[i] = short_packet(value, stamp_of(0));
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
  Arrivals attended(model.arrivals + kLineWords, Arrivals::look(model.arrivals + kLineWords), &arrivals[0]);
  Arrivals multiplied(model.arrivals, wait_for_grid(model.arrivals), &arrivals[1]);
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
      if (thread == 32) attending.unit.look(attending.units, cached, static_cast<int>(layer.window));
      multiplied.wait(grid, grid / kEarlyAttention);
#pragma unroll 1
      for (int unit = static_cast<int>(blockIdx.x);;) {
        attend_unit<kOne, kHeadDim, kKeyBits, kValueBits>(shared_model, layer, parts[0], attending, stamp,
                                                          shared + step.sums_at);
        sync_workers();
        if (attending.units.count <= grid) break;
        unit += grid;  // more new tokens than CUDA blocks for them
        if (thread == 0) {
          attending.unit.choose(shared_model, attending.units, unit < attending.units.count ? unit : blockIdx.x);
          attending.unit.look(attending.units, cached, static_cast<int>(layer.window));
        }
        sync_workers();
        if (unit >= attending.units.count) break;
      }
      attended.arrive();
    } else if (phase == kOutputPhase) {
      multiplied.skip(grid);
    }

    // What the residual will be multiplied with; asked for before it is waited for.
    const uint16_t* const norm =
        phase == kHeadPhase ? model.final_norm : phase == kQkvPhase ? layer.attention_norm : layer.mlp_norm;
    NearPlaces near = {};
    if (normalizes) load_near(near, norm, parts[0].inverse, static_cast<int>(model.hidden));

    // What the sums of this phase will be added to; there since two phases ago.
    const ShortPacket* const old = phase == kOutputPhase ? model.entering : model.middle;
    const ShortPacket* first_old_at = nullptr;
    ShortPacket first_old = {};
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
      const int attending_blocks = min(grid, attending.units.count);
      attended.wait(attending_blocks, attending_blocks / kEarlyAttention);
    } else if (index > 0) {
      multiplied.wait(grid, grid / kEarlyProducts);
    }
    const float first_value = first_old_at != nullptr ? await(first_old, first_old_at, stamp) : 0.f;

    auto finish = [&](bool has, const Item& item, int64_t n, int token, float sum) {
      if (phase == kMlpPhase) {
        float* const gate = gates + (item.index * tokens + token) * kStripColumns + n % kStripColumns;
        if (has && item.part == 0) *gate = sum;
        sync_workers();
        if (!has || item.part == 0) return;
        const int64_t to = parts[2].inverse != nullptr ? parts[2].inverse[n] : n;
        const float silu = __fdividef(*gate, 1.f + __expf(-*gate));
        put(model.activated + token * parts[2].in_features + to, half_bits(silu * sum), stamp);
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
          if (index + 1 == phases) model.residual[place] = shortened(value);
        }
      }
    };
#pragma unroll 1
    for (int part = 0; part < count;) {
      int next = part;
      bool has_strips = false;
      const bool has_codes = parts[part].kind != kDense;
      const auto goes_along = [&](const Linear& other) {
        return other.inverse == parts[part].inverse && (other.kind != kDense) == has_codes;
      };
      for (; next < count && goes_along(parts[next]); ++next) has_strips |= first_strip(parts[next]) < parts[next].strips;
      const int64_t in_features = parts[part].in_features;
      if (has_strips) {  // and must not read without: see exchange.cuh
        const ShortPacket* const residual = phase == kMlpPhase ? model.middle : model.entering;
        const HalfPacket* const packed = phase == kDownPhase ? model.activated : model.attended;
        const int64_t size = phase == kDownPhase ? model.ffn : model.heads * model.head_dim;
        if (normalizes && part > 0) load_near(near, norm, parts[part].inverse, static_cast<int>(model.hidden));
        float unit = 1.f;
        if (kOne && has_codes) {
          uint8_t* const input = shared + step.input_at;
          const Digitized to = {input, input + lowest_offset(in_features), reinterpret_cast<int32_t*>(ones)};
          if (normalizes) {
            float* const values = reinterpret_cast<float*>(input + values_offset(in_features));
            unit = digitize_normalized(step, residual, stamp, norm, parts[part].inverse, near,
                                       static_cast<int>(in_features), to, values, scratch, largest);
          } else {
            unit = digitize_packed(packed, stamp, static_cast<int>(size), parts[part].shares[thread / 32], to);
          }
        } else if (normalizes) {
          stage_normalized<kOne>(step, residual, stamp, norm, parts[part].inverse, near, in_features, x,
                                 reinterpret_cast<float*>(shared + step.sums_at), scratch);
          if (!kOne && has_codes) sum_blocks(step, in_features, x, ones);
        } else {
          stage_packed<kOne>(step, packed, stamp, size, in_features, x, ones);
        }
        multiply_strips<kOne>(step, parts, part, next, rings, position, shared, unit, items, finish);
      }
      part = next;
    }
    wait_for_copies();
    sync_workers();  // the next plans are there, and nobody needs this one
    multiplied.arrive();
  }
}

}  // namespace exl2::cuda
