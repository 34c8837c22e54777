// What a CUDA block computes of the linears of a phase: its strips, each by all its warps, whose sums are put together.
#pragma once

#include "arrange.cuh"
#include "feed.cuh"
#include "product.cuh"

namespace exl2::cuda {

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

// All strips of parts [first, last) that belong to this CUDA block; they read the same activations. unit: of these, where
// they are whole numbers. finish(has, item, n, token, sum) is called by all workers together, `has` tells whether the
// thread has a sum: that of column n.
template <bool kOne, typename Finish>
__device__ __forceinline__ void multiply_strips(const Step& step, const Linear* parts, int first, int last, const Rings& rings,
                                                int& position, uint8_t* shared, float unit, Item* items, Finish finish) {
  const int thread = thread_index();
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int tokens = kOne ? 1 : step.tokens;
  Feed feed(rings, warp, position);
  float* const sums = reinterpret_cast<float*>(shared + step.sums_at);
  // Lanes of tokens that are not there repeat the first one; nobody looks at their results.
  Activations x;
  x.halves = shared + step.input_at + 16 * t + (g < tokens ? g : 0) * 2 * padded_row(parts[first].in_features);
  x.digits = g == 2   ? shared + step.zeros_at + 8 * t
             : g == 3 ? shared + step.input_at + lowest_offset(parts[first].in_features) + 8 * t
                      : shared + step.input_at + 16 * t + 8 * (g % 2);
  x.digits_step = g == 2 ? 0 : g == 3 ? kBlockRows : 2 * kBlockRows;
  x.sums = shared + step.ones_at + 4 * (2 * t < tokens ? 2 * t : 0);
  x.sums_step = ones_step(tokens);
  x.lead = t == 0 ? 1.f / 256 : 0.f;
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
    // What totals are worth: of one token, those of the higher digits and those of the low ones.
    const float lower = w.kind == kDense ? (kOne ? 0.f : 1.f) : kOne ? unit : 1.f / kCodeUnit;
    const float higher = w.kind == kDense ? 1.f : 256.f * unit;
    const int strips = static_cast<int>(w.strips);
    const int segments = w.shares[warp].end - w.shares[warp].begin;
    int strip = first_strip(w);
    int index = 0;
    int left = segments;  // of the strip
    Totals total = {};
    auto end_strip = [&]() {
      if (thread == 0) items[count] = {part, strip, index};
      float* const to = sums + (count * kWarps + warp) * each;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 4; i += kOne ? 2 : 1) {
          const int token = 2 * t + i % 2;
          float value = total[h][i] * (kOne ? higher : lower);
          if constexpr (kOne) value = fmaf(__shfl_down_sync(0xffffffffu, total[h][i], 1), lower, value);
          if (token < tokens) to[token * kStripColumns + 16 * h + g + 8 * (i / 2)] = value;
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
        end_strip();
        continue;
      }
      // As long as the layout stays the same there is nothing to decide.
      const uint8_t* stream = feed.wait();
      Header header = read_header(stream);
      for_layout(header, [&](auto layout) {
        using Layout = decltype(layout);
        do {
          const uint32_t before = feed.move_on();
          multiply_segment<Layout, kOne>(header, stream, x, lane, total);
          Feed::release(before);
          if (--left == 0) {
            end_strip();
            if (strip >= strips || count == step.batch) return;
          }
          stream = feed.wait();
          header = read_header(stream);
        } while (Layout::fits(header));
      });
    }
  }
  put_together();
  position = feed.position();
}

}  // namespace exl2::cuda
