// One warp of decode attention, 16 tokens at a time, on the tensor cores.
//
// Scores are a product of m16n8k16 with the tokens as rows, the heads as columns; transposed (movmatrix) they are the right
// side of the second product, whose rows are the elements of the values. What is summed over (the elements of a head, or
// the tokens) may be taken in any order, if both sides have the same: so every lane loads elements that are neighbours in
// memory. The maximum, the sums and the weighted values are running ones (online softmax).
#pragma once

#include <cfloat>

#include "cache.cuh"
#include "product.cuh"

namespace exl2::cuda {

constexpr int kTileKeys = 16;  // tokens that a warp looks at together

// Query heads that one unit serves: columns of the product, fewer where shared memory is short.
EXL2_HD constexpr int most_heads(int head_dim) { return head_dim > 128 ? 4 : 8; }

EXL2_HD constexpr int query_row(int head_dim) { return head_dim + 32; }  // halves: neighbours start in other banks

EXL2_HD constexpr int found_row(int head_dim) { return head_dim + 4; }  // floats: values, maximum, sum of a head

__device__ __forceinline__ float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// An 8 x 8 matrix of halves, two of a row per lane, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

// What one warp finds out about the tokens it looks at, 16 at a time: for heads 2t and 2t + 1, where a lane is 4 g + t.
template <int D, int kKeyBits, int kValueBits>
struct Found {
  static constexpr int kChunk = D % 32 == 0 ? 32 : 16;  // elements that the lanes of a row load together
  static constexpr int kChunks = D / kChunk;
  static constexpr int kKeyRun = kChunk / 4;  // elements in a row per lane
  static constexpr int kValueRun = kChunk / 8;
  static constexpr int kTiles = kValueRun / 2;           // of 16 elements, per chunk
  static constexpr int kAtOnce = D > 128 ? 2 : kChunks;  // chunks that are asked for together
  const CachedHead<kKeyBits, D> key_rows;
  const CachedHead<kValueBits, D> value_rows;
  Run<kKeyBits, kKeyRun> keys[kAtOnce][2];
  Run<kValueBits, kValueRun> values[kAtOnce][4];
  float sums[kChunks * kTiles][4] = {};  // of values: element kValueRun g + 2 tile (+ 1) of a chunk, of both heads
  float maximum[2] = {-FLT_MAX, -FLT_MAX};
  float total[2] = {};

  // Of 16 tokens from `first` on; those behind `last` do not count.
  __device__ __forceinline__ void ask_keys(int chunk, int first, int last) {
    const int lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        keys[i][j].load(key_rows.row(min(first + lane / 4 + 8 * j, last)), (chunk + i) * kChunk + lane % 4 * kKeyRun);
      }
    }
  }

  __device__ __forceinline__ void ask_values(int chunk, int first, int last) {
    const int lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = min(first + 2 * (lane % 4) + j / 2 * 8 + j % 2, last);
        values[i][j].load(value_rows.row(token), (chunk + i) * kChunk + lane / 4 * kValueRun);
      }
    }
  }

  // queries: shared, half (heads, query_row).
  __device__ __forceinline__ void look_at(const uint16_t* queries, int heads, int first, int last) {
    const int lane = thread_index() % 32;
    const int g = lane / 4;
    const int t = lane % 4;
    ask_keys(0, first, last);
    ask_values(0, first, last);
    float score[4] = {};
    float other[4] = {};  // two sums, since a product waits for the one before
    const uint16_t* const query = queries + min(g, heads - 1) * query_row(D) + t * kKeyRun;
#pragma unroll
    for (int c = 0; c < kChunks; c += kAtOnce) {
      if (c > 0) ask_keys(c, first, last);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        uint32_t q[kKeyRun / 2];
        uint32_t low[kKeyRun / 2];
        uint32_t high[kKeyRun / 2];
        const uint2* const from = reinterpret_cast<const uint2*>(query + (c + i) * kChunk);
#pragma unroll
        for (int w = 0; w < kKeyRun / 4; ++w) q[2 * w] = from[w].x, q[2 * w + 1] = from[w].y;
        keys[i][0].halves(t * kKeyRun, low);
        keys[i][1].halves(t * kKeyRun, high);
#pragma unroll
        for (int w = 0; w < kKeyRun / 2; w += 2) {
          multiply(w == 0 ? score : other, low[w], high[w], low[w + 1], high[w + 1], q[w], q[w + 1]);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) score[e] = first + g + e / 2 * 8 > last ? -FLT_MAX : score[e] + other[e];
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = fmaxf(score[h], score[2 + h]);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
      top = fmaxf(top, maximum[h]);
      keep[h] = exp2_of(maximum[h] - top);
      maximum[h] = top;
      score[h] = exp2_of(score[h] - top);
      score[2 + h] = exp2_of(score[2 + h] - top);
      total[h] = total[h] * keep[h] + (score[h] + score[2 + h]);
    }
    const uint32_t b0 = transposed(half_words(__floats2half2_rn(score[0], score[1])));
    const uint32_t b1 = transposed(half_words(__floats2half2_rn(score[2], score[3])));
#pragma unroll
    for (int i = 0; i < kChunks * kTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][e] *= keep[e % 2];
    }
#pragma unroll
    for (int c = 0; c < kChunks; c += kAtOnce) {
      if (c > 0) ask_values(c, first, last);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        uint32_t v[4][kValueRun / 2];
#pragma unroll
        for (int j = 0; j < 4; ++j) values[i][j].halves(g * kValueRun, v[j]);
#pragma unroll
        for (int w = 0; w < kTiles; ++w) {
          multiply(sums[(c + i) * kTiles + w], __byte_perm(v[0][w], v[1][w], 0x5410), __byte_perm(v[0][w], v[1][w], 0x7632),
                   __byte_perm(v[2][w], v[3][w], 0x5410), __byte_perm(v[2][w], v[3][w], 0x7632), b0, b1);
        }
      }
    }
  }

  // To shared memory, float (heads, found_row).
  __device__ __forceinline__ void write(float* to, int heads) {
    const int lane = thread_index() % 32;
    const int g = lane / 4;
    const int t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) total[h] += __shfl_xor_sync(0xffffffffu, total[h], step);
      if (2 * t + h >= heads) continue;
      float* const row = to + (2 * t + h) * found_row(D);
#pragma unroll
      for (int i = 0; i < kChunks * kTiles; ++i) {
        const int element = i / kTiles * kChunk + g * kValueRun + i % kTiles * 2;
        *reinterpret_cast<float2*>(row + element) = make_float2(sums[i][h], sums[i][2 + h]);
      }
      if (g == 0) *reinterpret_cast<float2*>(row + D) = make_float2(maximum[h], total[h]);
    }
  }
};

}  // namespace exl2::cuda
