// Causal attention of some query rows over the cache of one kv head, in one pass (online softmax).
//
// A row is one query head of one token. Up to kItemRows rows walk over the cache together, kBlockTokens tokens at a
// time: the block's keys and values (16 KiB each at D = 64) are read from memory once and reused from L1 by all rows.
//
// Work per cached token and row: D multiply-adds for the score and D for the mix. Every vector of the cache is loaded
// and converted once for up to kMaxTogether rows; 8 accumulators hide the latency of the multiply-add.
#pragma once

#include "elementwise.h"

EXL2_ISA_BEGIN

constexpr int kItemRows = 32;
constexpr int64_t kBlockTokens = 128;
constexpr int64_t kBlockTiles = kBlockTokens / kTileTokens;
constexpr int kTileVectors = kTileTokens / kWidth;
constexpr int kAccumulators = 8;
constexpr int kMaxTogether = kAccumulators / kTileVectors;  // 8 rows with 16-wide vectors, else 4
static_assert(kRegisters >= 2 * kAccumulators, "accumulators, loaded vectors and a broadcast must fit");

// Scores of ROWS rows x TILES tiles. q: rows of D; scores: row stride kBlockTokens.
template <bool Q8, int ROWS, int TILES>
static void score_tiles(const CacheHead& cache, int64_t tile, const float* const* q, float* scores) {
  F total[ROWS][TILES][kTileVectors];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      for (int p = 0; p < kTileVectors; ++p) total[r][t][p] = splat(0.0f);

  const int64_t block_dims = Q8 ? kQuantBlock : cache.D;
  for (int64_t begin = 0, block = 0; begin < cache.D; begin += block_dims, ++block) {
    const int64_t end = begin + block_dims < cache.D ? begin + block_dims : cache.D;
    F part[ROWS][TILES][kTileVectors];
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < TILES; ++t)
        for (int p = 0; p < kTileVectors; ++p) part[r][t][p] = splat(0.0f);
    for (int64_t d = begin; d < end; ++d) {
      for (int t = 0; t < TILES; ++t) {
        for (int p = 0; p < kTileVectors; ++p) {
          const int64_t at = ((tile + t) * cache.D + d) * kTileTokens + p * kWidth;
          const F key = Q8 ? load_i8(static_cast<const int8_t*>(cache.k) + at)
                           : load_f16(static_cast<const uint16_t*>(cache.k) + at);
          for (int r = 0; r < ROWS; ++r) part[r][t][p] = fma(splat(q[r][d]), key, part[r][t][p]);
        }
      }
    }
    for (int t = 0; t < TILES; ++t) {
      for (int p = 0; p < kTileVectors; ++p) {
        const int64_t at = ((tile + t) * cache.blocks + block) * kTileTokens + p * kWidth;
        const F step = Q8 ? load_f16(cache.k_scale + at) : splat(1.0f);
        for (int r = 0; r < ROWS; ++r) total[r][t][p] = fma(part[r][t][p], step, total[r][t][p]);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TILES; ++t)
      for (int p = 0; p < kTileVectors; ++p)
        store(scores + r * kBlockTokens + t * kTileTokens + p * kWidth, total[r][t][p]);
}

template <bool Q8, int ROWS>
static void score_rows(const CacheHead& cache, int64_t tile, int64_t tiles, const float* const* q, float* scores) {
  constexpr int kTogether = kAccumulators / kTileVectors / ROWS;
  int64_t t = 0;
  for (; t + kTogether <= tiles; t += kTogether)
    score_tiles<Q8, ROWS, kTogether>(cache, tile + t, q, scores + t * kTileTokens);
  for (; t < tiles; ++t) score_tiles<Q8, ROWS, 1>(cache, tile + t, q, scores + t * kTileTokens);
}

// acc[r] += sum over tokens of weights[r][token] * value[token], for VECTORS vectors of dimensions from d.
// steps: scale of each token and quantization block, stride kBlockTokens (q8 only).
template <bool Q8, int ROWS, int VECTORS>
static void mix_dims(const CacheHead& cache, int64_t token, int64_t tokens, const float* weights, const float* steps,
                     int64_t d, float* acc) {
  F total[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) total[r][v] = load(acc + r * cache.Dp + d + v * kWidth);
  for (int64_t s = 0; s < tokens; ++s) {
    F value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = (token + s) * cache.Dp + d + v * kWidth;
      if (Q8) {
        const float step = steps[(d + v * kWidth) / kQuantBlock * kBlockTokens + s];
        value[v] = mul(load_i8(static_cast<const int8_t*>(cache.v) + at), splat(step));
      } else {
        value[v] = load_f16(static_cast<const uint16_t*>(cache.v) + at);
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      const F weight = splat(weights[r * kBlockTokens + s]);
      for (int v = 0; v < VECTORS; ++v) total[r][v] = fma(weight, value[v], total[r][v]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) store(acc + r * cache.Dp + d + v * kWidth, total[r][v]);
}

template <bool Q8, int ROWS>
static void mix_rows(const CacheHead& cache, int64_t token, int64_t tokens, const float* weights, const float* steps,
                     float* acc) {
  constexpr int kTogether = kAccumulators / ROWS;
  int64_t d = 0;
  for (; d + kTogether * kWidth <= cache.Dp; d += kTogether * kWidth)
    mix_dims<Q8, ROWS, kTogether>(cache, token, tokens, weights, steps, d, acc);
  for (; d < cache.Dp; d += kWidth) mix_dims<Q8, ROWS, 1>(cache, token, tokens, weights, steps, d, acc);
}

template <int N>
struct Rows {
  static constexpr int value = N;
};

// Cuts `rows` into the row counts that the kernels are compiled for.
template <typename Body>
EXL2_INLINE void each_row_group(int rows, Body body) {
  int r = 0;
  for (; r + kMaxTogether <= rows; r += kMaxTogether) body(r, Rows<kMaxTogether>{});
  for (; r + 4 <= rows; r += 4) body(r, Rows<4>{});
  for (; r + 2 <= rows; r += 2) body(r, Rows<2>{});
  for (; r < rows; ++r) body(r, Rows<1>{});
}

EXL2_INLINE float exp_scalar(float x) {
  float lanes[kWidth];
  store(lanes, exp(splat(x)));
  return lanes[0];
}

struct RowState {
  float largest;  // score so far
  float sum;      // of e^(score - largest)
  int64_t first;  // tokens [first, last) are visible
  int64_t last;
};

// Turns one row of scores of tokens [token, token + count) into weights; rescales what was accumulated before.
static void soften(RowState& row, float* scores, int64_t token, int64_t count, int64_t dims, float* acc) {
  constexpr float kMinusInfinity = -__builtin_inff();
  const int64_t padded = (count + kTileTokens - 1) / kTileTokens * kTileTokens;
  const int64_t first = row.first > token ? (row.first < token + count ? row.first - token : padded) : 0;
  const int64_t last = row.last < token + count ? (row.last > token ? row.last - token : 0) : count;
  for (int64_t s = 0; s < first; ++s) scores[s] = kMinusInfinity;
  for (int64_t s = last; s < padded; ++s) scores[s] = kMinusInfinity;

  F block = splat(kMinusInfinity);
  for (int64_t s = 0; s < padded; s += kWidth) block = max(block, load(scores + s));
  const float block_largest = maximum(block);
  if (!(block_largest > kMinusInfinity)) {  // nothing visible (or not a number): no weight
    for (int64_t s = 0; s < padded; ++s) scores[s] = 0.0f;
    return;
  }
  if (block_largest > row.largest) {
    const float factor = exp_scalar(row.largest - block_largest);  // 0 for the first block
    row.largest = block_largest;
    row.sum *= factor;
    scale(acc, factor, dims);
  }
  F sums = splat(0.0f);
  for (int64_t s = 0; s < padded; s += kWidth) {
    const F weight = exp(sub(load(scores + s), splat(row.largest)));
    store(scores + s, weight);
    sums = add(sums, weight);
  }
  row.sum += sum(sums);
}

template <bool Q8>
static void attend(const AttentionTask& task, int64_t first_row, int rows) {
  const CacheHead& cache = task.cache;
  alignas(64) float acc[kItemRows * kMaxHeadDim];
  alignas(64) float scores[kItemRows * kBlockTokens];
  alignas(64) float steps[Q8 ? kMaxHeadDim / kQuantBlock * kBlockTokens : 1];
  const float* q[kItemRows];
  RowState state[kItemRows];
  memset(acc, 0, sizeof(float) * static_cast<size_t>(rows * cache.Dp));

  int64_t first = INT64_MAX, last = 0;
  for (int r = 0; r < rows; ++r) {
    const int64_t token = (first_row + r) / task.heads, head = (first_row + r) % task.heads;
    q[r] = task.q + token * task.q_stride + head * cache.D;
    const int64_t end = task.position + token + 1;
    const int64_t begin = task.window > 0 && end > task.window ? end - task.window : 0;
    state[r] = {-__builtin_inff(), 0.0f, begin, end};
    first = begin < first ? begin : first;
    last = end > last ? end : last;
  }

  for (int64_t token = first / kTileTokens * kTileTokens; token < last; token += kBlockTokens) {
    const int64_t count = last - token < kBlockTokens ? last - token : kBlockTokens;
    const int64_t tile = token / kTileTokens, tiles = (count + kTileTokens - 1) / kTileTokens;
    each_row_group(rows, [&](int r, auto together) {
      score_rows<Q8, decltype(together)::value>(cache, tile, tiles, q + r, scores + r * kBlockTokens);
    });
    for (int r = 0; r < rows; ++r)
      soften(state[r], scores + r * kBlockTokens, token, count, cache.Dp, acc + r * cache.Dp);
    if (Q8) {
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t block = 0; block < cache.blocks; ++block) {
          const uint16_t* from = cache.v_scale + ((tile + t) * cache.blocks + block) * kTileTokens;
          float* to = steps + block * kBlockTokens + t * kTileTokens;
          for (int p = 0; p < kTileTokens; p += kWidth) store(to + p, load_f16(from + p));
        }
      }
    }
    each_row_group(rows, [&](int r, auto together) {
      mix_rows<Q8, decltype(together)::value>(cache, token, count, scores + r * kBlockTokens, steps,
                                              acc + r * cache.Dp);
    });
  }

  for (int r = 0; r < rows; ++r) {
    const int64_t token = (first_row + r) / task.heads, head = (first_row + r) % task.heads;
    float* out = task.out + token * task.out_stride + head * cache.D;
    scale(acc + r * cache.Dp, 1.0f / state[r].sum, cache.Dp);
    memcpy(out, acc + r * cache.Dp, sizeof(float) * static_cast<size_t>(cache.D));
  }
}

static void attention(const AttentionTask& task) {
  const int64_t all = task.tokens * task.heads;
  for (int64_t row = 0; row < all; row += kItemRows) {
    const int rows = static_cast<int>(all - row < kItemRows ? all - row : kItemRows);
    task.cache.q8 ? attend<true>(task, row, rows) : attend<false>(task, row, rows);
  }
}

EXL2_ISA_END
