// The product of a packed linear (linear_layout.h) in terms of `Lanes`, the 16-column vector that each linear_*.cpp
// defines: the same text for scalar C++, AVX2 and AVX-512; the scalar Lanes in linear_generic.cpp say what each
// operation means. Widths differ only in the plane table of unpack().
//
// Two paths, each with a form for few tokens and one for many:
//
//                 few tokens (decode): weights are unpacked    many tokens: a chunk of four tiles is unpacked into L1
//                 in registers, each line is read once         once and run over all tokens, kTokens x kStageTiles at a
//                 time
//   integer       direct_integer                               staged_integer
//   fp32, exact   direct_exact, direct_dense                   staged_float (quantized and dense weights alike)
//
// Integer: out[m,n] = sum over blocks  S[g,n] * sx[m,block] * sum_k (q[k,n] - zero) * x8[m,k]; the inner sum is exact
// in int32; the zero point enters once per block, through the sum of the block's activations. Exact: out[m,n] = sum
// over groups  S[g,n] * sum_k (q[k,n] - zero) * x[m,k] in fp32.
//
// Activations lie in scratch by token blocks of Lanes::kTokens (the last one shorter), each [row quad][token][4 rows]
// int8, or [row][token] float, so that the inner loops read them in address order.
#pragma once

#include "linear_pack.h"

namespace exl2 {
namespace EXL2_ISA {

using F = Lanes::F;
using I = Lanes::I;
using Acc = Lanes::Acc;

constexpr int kTokens = Lanes::kTokens;
constexpr int kStageTiles = Lanes::kStageTiles;
constexpr int kSuperTiles = 4;        // tiles unpacked together: their activations are then read from L1
constexpr int kByteChunkRows = 512;   // 4 tiles * 512 rows * 16 B = 32 KiB
constexpr int kFloatChunkRows = 128;  // 4 tiles * 128 rows * 64 B = 32 KiB

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// --- scratch ---

// Per token of the integer path: x_bytes of activations, then for each block its scale and, for each term, where its
// sum of products starts: -sum(x), times the zero point where that is one number (EXL2). So (q - zero) costs nothing.
struct BlockMeta {
  float scale;
  int32_t start[2];
};

static inline int64_t token_bytes(const Header& h) {
  return h.exact ? h.packed_rows * 4 : h.x_bytes + h.n_blocks * int64_t(sizeof(BlockMeta));
}

static inline int64_t token_block_at(const Header& h, int64_t token) {  // token: multiple of kTokens
  return align_line(token_bytes(h) * kTokens) * (token / kTokens);
}

static int64_t scratch_bytes(const uint8_t* blob, int64_t M) {
  const Header& h = header_of(blob);
  return token_block_at(h, M / kTokens * kTokens) + align_line(token_bytes(h) * (M % kTokens));
}

// Part of the activations of one token block: tokens are interleaved, mb of them.
struct Activations {
  const uint8_t* base;
  int64_t mb;
  const int32_t* quads(int64_t x_offset) const { return reinterpret_cast<const int32_t*>(base + x_offset * mb); }
  const BlockMeta* meta(const Header& h, int64_t block) const {
    return reinterpret_cast<const BlockMeta*>(base + h.x_bytes * mb) + block * mb;
  }
  const float* rows(int64_t row) const { return reinterpret_cast<const float*>(base) + row * mb; }
};

static inline Activations activations_of(const Header& h, const uint8_t* scratch, int64_t token, int64_t M) {
  return {scratch + token_block_at(h, token), min64(kTokens, M - token)};
}

// --- prepare ---

// Rows [row, row + 16) of one token's activations, in packed order; zero where a group is padded.
static inline F gather_rows(const Header& h, const int32_t* map, const float* x, int64_t row) {
  return map ? Lanes::gather(x, map + row) : Lanes::load_partial(x + row, int(min64(16, h.packed_rows - row)));
}

// One block of one token: quads[i * mb] receives rows 4i..4i+3.
static inline void quantize_block(const Header& h, const Section& s, const int32_t* map, const float* x, int64_t row,
                                  int32_t* quads, int64_t mb, BlockMeta& meta) {
  const int steps = s.slabs * 2;  // of 16 rows
  F values[8];
  F top = Lanes::zero(), poison = Lanes::zero();
  for (int i = 0; i < steps; i++) {
    values[i] = gather_rows(h, map, x, row + i * 16);
    top = Lanes::max_abs(top, values[i]);
    poison = Lanes::fma(values[i], Lanes::zero(), poison);  // NaN if any is NaN or infinite: never hidden by rounding
  }
  const float range = s.terms == 1 ? 127.0f : 32639.0f;  // 32639 = 127 * 256 + 127: both bytes fit int8
  const float amax = Lanes::reduce_max(top);
  const float inverse = amax > 1e-30f ? range / amax : 0.0f;
  meta.scale = (amax > 1e-30f ? amax / range : 0.0f) + Lanes::reduce_add(poison);
  I sum[2] = {Lanes::zero_i(), Lanes::zero_i()};
  for (int i = 0; i < steps; i++) {
    I low = Lanes::round(Lanes::mul(values[i], Lanes::set1(inverse)));
    int32_t bytes[4];
    if (s.terms == 2) {
      const I high = Lanes::high_byte(low);  // (v + 128) >> 8, so that what is left fits int8
      low = Lanes::sub_i(low, Lanes::shift_left8(high));
      sum[0] = Lanes::add_i(sum[0], high);
      Lanes::store_bytes(bytes, high);
      for (int q = 0; q < 4; q++) quads[(i * 4 + q) * mb] = bytes[q];
    }
    sum[s.terms - 1] = Lanes::add_i(sum[s.terms - 1], low);
    Lanes::store_bytes(bytes, low);
    int32_t* out = quads + (s.terms - 1) * s.slabs * kSlabQuads * mb;
    for (int q = 0; q < 4; q++) out[(i * 4 + q) * mb] = bytes[q];
  }
  for (int t = 0; t < 2; t++) meta.start[t] = -common_zero(h, s) * Lanes::reduce_add_i(sum[t]);
}

// Work is numbered (token block, block of rows), so that one token is shared by all parts as well as many are.
static void prepare(const uint8_t* blob, const float* x, int64_t M, int64_t ldx, uint8_t* scratch, int part,
                    int parts) {
  const Header& h = header_of(blob);
  const int32_t* map = h.has_row_map ? reinterpret_cast<const int32_t*>(blob + h.row_map_at) : nullptr;
  const int64_t token_blocks = (M + kTokens - 1) / kTokens;
  constexpr int64_t kRows = 16;
  const int64_t units = h.exact ? (h.packed_rows + kRows - 1) / kRows : h.n_blocks;  // per token block
  const int64_t begin = token_blocks * units * part / parts, end = token_blocks * units * (part + 1) / parts;
  for (int64_t at = begin; at < end;) {
    const int64_t token = at / units * kTokens, first = at % units;
    const int64_t last = min64(units, first + end - at);
    const Activations a = activations_of(h, scratch, token, M);
    uint8_t* base = const_cast<uint8_t*>(a.base);
    if (h.exact) {
      for (int64_t m = 0; m < a.mb; m++) {
        float* out = reinterpret_cast<float*>(base) + m;
        for (int64_t row = first * kRows; row < min64(h.packed_rows, last * kRows); row += kRows) {
          const int rows = int(min64(kRows, h.packed_rows - row));
          if (a.mb == 1) {
            Lanes::store_partial(out + row, gather_rows(h, map, x + token * ldx, row), rows);
            continue;
          }
          alignas(kLine) float values[16];
          Lanes::store_partial(values, gather_rows(h, map, x + (token + m) * ldx, row), 16);
          for (int r = 0; r < rows; r++) out[(row + r) * a.mb] = values[r];
        }
      }
    } else {
      const Section* s = sections_of(blob);
      for (int64_t block = first; block < last; block++) {
        while (block >= s->first_block + int64_t(s->blocks_per_group) * s->groups) s++;
        const int64_t index = block - s->first_block, rows = int64_t(s->slabs) * kSlabRows;
        int32_t* quads = const_cast<int32_t*>(a.quads(s->x_offset + index * rows * s->terms));
        BlockMeta* meta = const_cast<BlockMeta*>(a.meta(h, block));
        for (int64_t m = 0; m < a.mb; m++) {
          quantize_block(h, *s, map, x + (token + m) * ldx, s->first_row + index * rows, quads + m, a.mb, meta[m]);
        }
      }
    }
    at += last - first;
  }
}

// --- codes ---

template <int WIDTH, int BASE, int J>
static inline I plane_shifted(const I* lines) {
  const I line = lines[J * WIDTH / 8];
  constexpr int shift = J * WIDTH % 8 - BASE;
  if constexpr (shift > 0) return Lanes::shift_right16<shift>(line);
  if constexpr (shift < 0) return Lanes::shift_left16<-shift>(line);
  return line;
}

// Quad J of a slab of BITS lines: 64 codes, one per byte. Shifts act on 16 bits; what crosses a byte is masked away.
template <int BITS, int J>
static inline I unpack(const I* lines) {
  if constexpr (BITS == 8) {
    return lines[J];
  } else {
    constexpr int LOW = low_plane(BITS), HIGH = BITS - LOW;
    const I code = Lanes::and_bytes<(1 << LOW) - 1>(plane_shifted<LOW, 0, J>(lines));
    if constexpr (HIGH == 0) {
      return code;
    } else {
      return Lanes::or_masked<((1 << HIGH) - 1) << LOW>(code, plane_shifted<HIGH, LOW, J>(lines + LOW));
    }
  }
}

template <int J>
struct Index {
  static constexpr int value = J;
};

// f(Index<0>) ... f(Index<7>): the quads of a slab, with the index known at compile time.
template <typename Body>
static EXL2_INLINE void for_each_quad(Body&& f) {
  f(Index<0>{}), f(Index<1>{}), f(Index<2>{}), f(Index<3>{});
  f(Index<4>{}), f(Index<5>{}), f(Index<6>{}), f(Index<7>{});
}

// Lines are read once per token: ask for those of the next few kilobytes. (Past the end of the blob this is harmless.)
constexpr int kPrefetchBytes = 2048;

template <int BITS>
static EXL2_INLINE void load_slab(I* lines, const uint8_t* codes) {
  for (int i = 0; i < BITS; i++) {
    __builtin_prefetch(codes + kPrefetchBytes + i * kLine, 0, 3);
    lines[i] = Lanes::load_line(codes + i * kLine);
  }
}

// Scales and zero points of one tile.
struct Exl2Params {
  const uint8_t* tile;
  const float* table;
  Exl2Params(const uint8_t* blob, const uint8_t* tile_)
      : tile(tile_), table(reinterpret_cast<const float*>(blob + header_of(blob).tables_at)) {}
  F scale(int64_t g) const { return Lanes::lookup(table + g * 16, tile + g * 8); }
  I zero(int64_t, int bits) const { return Lanes::set1_i(1 << (bits - 1)); }
  static I start(I, int32_t value) { return Lanes::set1_i(value); }
};

struct GptqParams {
  const uint8_t* tile;
  GptqParams(const uint8_t*, const uint8_t* tile_) : tile(tile_) {}
  const uint16_t* group(int64_t g) const { return reinterpret_cast<const uint16_t*>(tile + g * kLine); }
  F scale(int64_t g) const { return Lanes::load_f16(group(g)); }
  I zero(int64_t g, int) const { return Lanes::load_u16(group(g) + kColumns); }
  static I start(I zero, int32_t value) { return Lanes::multiply16(zero, value); }
};

// --- few tokens ---

template <int BITS, int TERMS, int MB, typename Params>
static EXL2_INLINE void direct_integer(const Header& h, const Section& s, const Params& params, const uint8_t* tile,
                                       const Activations& a, F* out) {
  // A chain of dependent multiply-adds per token would wait for its own latency: short of tokens, use several.
  constexpr int CHAINS = MB * TERMS >= 4 ? 1 : 4 / (MB * TERMS);
  const uint8_t* codes = tile + s.code_offset;
  const int32_t* x = a.quads(s.x_offset);
  const BlockMeta* meta = a.meta(h, s.first_block);
  const int64_t term = int64_t(s.slabs) * kSlabQuads * MB;
  for (int g = s.first_group; g < s.first_group + s.groups; g++) {
    const F scale = params.scale(g);
    const I zero = params.zero(g, BITS);
    for (int b = 0; b < s.blocks_per_group; b++, meta += MB, x += term * TERMS) {
      Acc acc[TERMS][MB][CHAINS];
      for (int t = 0; t < TERMS; t++) {
        for (int m = 0; m < MB; m++) {
          acc[t][m][0] = Lanes::start(Params::start(zero, meta[m].start[t]));
          for (int c = 1; c < CHAINS; c++) acc[t][m][c] = Lanes::start(Lanes::zero_i());
        }
      }
      const int32_t* quad = x;
      for (int slab = 0; slab < s.slabs; slab++, codes += BITS * kLine, quad += kSlabQuads * MB) {
        I lines[BITS];
        load_slab<BITS>(lines, codes);
        for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
          constexpr int J = decltype(j)::value;
          const I code = unpack<BITS, J>(lines);
          for (int t = 0; t < TERMS; t++) {
            for (int m = 0; m < MB; m++) {
              Lanes::dot4<BITS, J / CHAINS, J / CHAINS == (kSlabQuads - 1) / CHAINS>(acc[t][m][J % CHAINS], code,
                                                                                     quad[t * term + J * MB + m]);
            }
          }
        });
      }
      for (int m = 0; m < MB; m++) {
        I sum[TERMS];
        for (int t = 0; t < TERMS; t++) {
          sum[t] = Lanes::value(acc[t][m][0]);
          for (int c = 1; c < CHAINS; c++) sum[t] = Lanes::add_i(sum[t], Lanes::value(acc[t][m][c]));
        }
        if constexpr (TERMS == 2) sum[0] = Lanes::add_i(Lanes::shift_left8(sum[0]), sum[1]);
        out[m] = Lanes::fma(Lanes::to_float(sum[0]), Lanes::mul(scale, Lanes::set1(meta[m].scale)), out[m]);
      }
    }
  }
}

template <int BITS, int MB, typename Params>
static EXL2_INLINE void direct_exact(const Header&, const Section& s, const Params& params, const uint8_t* tile,
                                     const Activations& a, F* out) {
  const uint8_t* codes = tile + s.code_offset;
  const float* x = a.rows(s.first_row);
  for (int g = s.first_group; g < s.first_group + s.groups; g++) {
    const F zero = Lanes::to_float(params.zero(g, BITS));
    F acc[MB][4];  // one chain per row of a quad
    for (int m = 0; m < MB; m++) {
      for (int r = 0; r < 4; r++) acc[m][r] = Lanes::zero();
    }
    for (int slab = 0; slab < s.slabs * s.blocks_per_group; slab++, codes += BITS * kLine, x += kSlabRows * MB) {
      I lines[BITS];
      load_slab<BITS>(lines, codes);
      for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        const I code = unpack<BITS, J>(lines);
        F row[4];
        Lanes::rows_of_quad(row, code);
        for (int r = 0; r < 4; r++) {
          const F weight = Lanes::sub(row[r], zero);
          for (int m = 0; m < MB; m++) acc[m][r] = Lanes::fma(weight, Lanes::set1(x[(J * 4 + r) * MB + m]), acc[m][r]);
        }
      });
    }
    const F scale = params.scale(g);
    for (int m = 0; m < MB; m++) {
      const F sum = Lanes::add(Lanes::add(acc[m][0], acc[m][1]), Lanes::add(acc[m][2], acc[m][3]));
      out[m] = Lanes::fma(sum, scale, out[m]);
    }
  }
}

// The section's width as a template argument.
template <template <int, int, typename> class Body, int MB, typename Params, typename... Args>
static EXL2_INLINE void for_width(int bits, Args&&... args) {
  switch (bits) {
    case 2: return Body<2, MB, Params>::run(args...);
    case 3: return Body<3, MB, Params>::run(args...);
    case 4: return Body<4, MB, Params>::run(args...);
    case 5: return Body<5, MB, Params>::run(args...);
    case 6: return Body<6, MB, Params>::run(args...);
    case 8: return Body<8, MB, Params>::run(args...);
  }
}

template <int BITS, int MB, typename Params>
struct DirectInteger {
  template <typename... Args>
  static EXL2_INLINE void run(const Header& h, const Section& s, Args&&... args) {
    if (may_have_terms(BITS, 1) && s.terms == 1) direct_integer<BITS, 1, MB, Params>(h, s, args...);
    if (may_have_terms(BITS, 2) && s.terms == 2) direct_integer<BITS, 2, MB, Params>(h, s, args...);
  }
};

template <int BITS, int MB, typename Params>
struct DirectExact {
  template <typename... Args>
  static EXL2_INLINE void run(Args&&... args) {
    direct_exact<BITS, MB, Params>(args...);
  }
};

constexpr int dense_row_bytes(DenseType type) { return kColumns * (type == DenseType::kF32 ? 4 : 2); }

template <DenseType TYPE>
static EXL2_INLINE F load_dense(const uint8_t* tile, int64_t row) {
  if constexpr (TYPE == DenseType::kF32) return Lanes::load(reinterpret_cast<const float*>(tile) + row * kColumns);
  const uint16_t* half = reinterpret_cast<const uint16_t*>(tile) + row * kColumns;
  return TYPE == DenseType::kF16 ? Lanes::load_f16(half) : Lanes::load_bf16(half);
}

template <DenseType TYPE, int MB>
static EXL2_INLINE void direct_dense(const Header& h, const uint8_t* tile, const Activations& a, F* out) {
  constexpr int CHAINS = 8 / MB;
  constexpr int kRowBytes = dense_row_bytes(TYPE);
  F acc[MB][CHAINS];
  for (int m = 0; m < MB; m++) {
    acc[m][0] = out[m];
    for (int c = 1; c < CHAINS; c++) acc[m][c] = Lanes::zero();
  }
  const float* x = a.rows(0);
  int64_t row = 0;
  for (; row + CHAINS <= h.K; row += CHAINS) {
    for (int c = 0; c < CHAINS; c++) {
      if ((c * kRowBytes) % kLine == 0) __builtin_prefetch(tile + (row + c) * kRowBytes + kPrefetchBytes, 0, 3);
      const F weight = load_dense<TYPE>(tile, row + c);
      for (int m = 0; m < MB; m++) acc[m][c] = Lanes::fma(weight, Lanes::set1(x[(row + c) * MB + m]), acc[m][c]);
    }
  }
  for (; row < h.K; row++) {
    const F weight = load_dense<TYPE>(tile, row);
    for (int m = 0; m < MB; m++) acc[m][0] = Lanes::fma(weight, Lanes::set1(x[row * MB + m]), acc[m][0]);
  }
  for (int m = 0; m < MB; m++) {
    out[m] = acc[m][0];
    for (int c = 1; c < CHAINS; c++) out[m] = Lanes::add(out[m], acc[m][c]);
  }
}

template <int MB, typename Params>
static EXL2_INLINE void direct_quantized(const uint8_t* blob, const uint8_t* tile, const Activations& a, F* out) {
  const Header& h = header_of(blob);
  const Params params(blob, tile);
  const Section* end = sections_of(blob) + h.n_sections;
  for (const Section* s = sections_of(blob); s < end; s++) {
    if (h.exact) {
      for_width<DirectExact, MB, Params>(s->bits, h, *s, params, tile, a, out);
    } else {
      for_width<DirectInteger, MB, Params>(s->bits, h, *s, params, tile, a, out);
    }
  }
}

template <int MB>
static void multiply_direct(const uint8_t* blob, const uint8_t* scratch, float* out, int64_t ldo, int64_t tile_begin,
                            int64_t tile_end) {
  const Header& h = header_of(blob);
  const Activations a{scratch, MB};
  const float* bias = reinterpret_cast<const float*>(blob + h.bias_at);
  for (int64_t t = tile_begin; t < tile_end; t++) {
    const uint8_t* tile = tile_of(blob, t);
    F sum[MB];
    for (int m = 0; m < MB; m++) sum[m] = Lanes::load(bias + t * kColumns);
    if (h.kind == int32_t(LinearKind::kExl2)) {
      direct_quantized<MB, Exl2Params>(blob, tile, a, sum);
    } else if (h.kind == int32_t(LinearKind::kGptq)) {
      direct_quantized<MB, GptqParams>(blob, tile, a, sum);
    } else if (h.dense_type == int32_t(DenseType::kF16)) {
      direct_dense<DenseType::kF16, MB>(h, tile, a, sum);
    } else if (h.dense_type == int32_t(DenseType::kBF16)) {
      direct_dense<DenseType::kBF16, MB>(h, tile, a, sum);
    } else {
      direct_dense<DenseType::kF32, MB>(h, tile, a, sum);
    }
    const int columns = int(min64(kColumns, h.out_features - t * kColumns));
    for (int m = 0; m < MB; m++) Lanes::store_partial(out + m * ldo + t * kColumns, sum[m], columns);
  }
}

// --- many tokens ---

// f(Index<mb>{}) for mb = 1..kTokens: the number of tokens as a constant.
template <int MB = kTokens, typename Body>
static EXL2_INLINE void for_tokens(int64_t mb, Body&& f) {
  if (mb == MB) return f(Index<MB>{});
  if constexpr (MB > 1) for_tokens<MB - 1>(mb, f);
}

constexpr int kChunkBlocks = kByteChunkRows / kSlabRows;

struct ByteChunk {
  alignas(kLine) uint8_t codes[kSuperTiles][kByteChunkRows * kColumns];
  alignas(kLine) F scales[kSuperTiles][kChunkBlocks];
  alignas(kLine) I zeros[kSuperTiles][kChunkBlocks];
};

// The register block: TILES x MB integer accumulators, over some blocks of one chunk, from tile `tile` of it on.
// Sums over blocks stay in registers too: with them in memory, twice as many integer accumulators fit, and the kernel
// ran 30 % slower (Zen 5).
template <int BITS, int TERMS, int TILES, int MB, typename Params>
static void multiply_bytes(const ByteChunk& chunk, int tile, int slabs, int blocks, const int32_t* x,
                           const BlockMeta* meta, float* out, int64_t ldo, int columns) {
  F total[TILES][MB];
  for (int i = 0; i < TILES; i++) {
    for (int m = 0; m < MB; m++) total[i][m] = Lanes::zero();
  }
  const uint8_t* block_codes = chunk.codes[tile];
  for (int b = 0; b < blocks; b++, meta += MB, block_codes += slabs * kSlabQuads * kLine) {
    Acc acc[TILES][MB];
    for (int term = 0; term < TERMS; term++) {
      for (int i = 0; i < TILES; i++) {
        for (int m = 0; m < MB; m++) {
          const I start = Params::start(chunk.zeros[tile + i][b], meta[m].start[term]);
          acc[i][m] =
              Lanes::start(term == 0 ? start : Lanes::add_i(start, Lanes::shift_left8(Lanes::value(acc[i][m]))));
        }
      }
      const uint8_t* codes = block_codes;
      int slab = 0;
      do {
        for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
          constexpr int J = decltype(j)::value;
          I code[TILES];
          for (int i = 0; i < TILES; i++) {
            code[i] = Lanes::load_line(codes + i * kByteChunkRows * kColumns + J * kLine);
          }
          for (int m = 0; m < MB; m++) {
            for (int i = 0; i < TILES; i++) {
              Lanes::dot4<BITS, J, J == kSlabQuads - 1>(acc[i][m], code[i], x[J * MB + m]);
            }
          }
        });
        codes += kSlabQuads * kLine;
        x += kSlabQuads * MB;
        // One term: one slab (max_block_slabs), and the whole block is straight code.
      } while (TERMS == 2 && ++slab < slabs);
    }
    for (int m = 0; m < MB; m++) {
      const F x_scale = Lanes::set1(meta[m].scale);
      for (int i = 0; i < TILES; i++) {
        const F sum = Lanes::to_float(Lanes::value(acc[i][m]));
        const F scale = Lanes::mul(chunk.scales[tile + i][b], x_scale);
        total[i][m] = Lanes::fma(sum, scale, total[i][m]);
      }
    }
  }
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) {
      float* o = out + m * ldo + i * kColumns;
      Lanes::store_partial(o, Lanes::add(Lanes::load_partial(o, n), total[i][m]), n);
    }
  }
}

template <int BITS, typename Params>
static void unpack_bytes(const Section& s, const Params& params, const uint8_t* tile, int first, int blocks,
                         uint8_t* codes, F* scales, I* zeros) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * s.slabs * BITS * kLine;
  for (int b = 0; b < blocks; b++) {
    const int g = s.first_group + (first + b) / s.blocks_per_group;
    scales[b] = params.scale(g);
    zeros[b] = params.zero(g, BITS);
    for (int slab = 0; slab < s.slabs; slab++, in += BITS * kLine, codes += kSlabQuads * kLine) {
      I lines[BITS];
      load_slab<BITS>(lines, in);
      for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        Lanes::store_line(codes + J * kLine, unpack<BITS, J>(lines));
      });
    }
  }
}

template <int BITS, int MB, typename Params>
struct UnpackBytes {
  template <typename... Args>
  static void run(Args&&... args) {
    unpack_bytes<BITS, Params>(args...);
  }
};

// Where the columns of `count` tiles end: 16 * count, less in the last tile of the matrix.
static inline int last_columns(const Header& h, int64_t tile, int64_t count) {
  return int(min64(kColumns, h.out_features - (tile + count - 1) * kColumns));
}

template <int BITS, int TERMS, int MB, typename Params>
static void multiply_bytes_of(const ByteChunk& chunk, const Header& h, const Section& s, int64_t block, int blocks,
                              const Activations& a, int64_t tile, int64_t tiles, float* out, int64_t ldo) {
  const int32_t* x = a.quads(s.x_offset + (block - s.first_block) * s.slabs * kSlabRows * TERMS);
  const BlockMeta* meta = a.meta(h, block);
  int i = 0;
  for (; i + kStageTiles <= tiles; i += kStageTiles) {
    multiply_bytes<BITS, TERMS, kStageTiles, MB, Params>(chunk, i, s.slabs, blocks, x, meta, out + i * kColumns, ldo,
                                                         last_columns(h, tile + i, kStageTiles));
  }
  for (; i < tiles; i++) {
    multiply_bytes<BITS, TERMS, 1, MB, Params>(chunk, i, s.slabs, blocks, x, meta, out + i * kColumns, ldo,
                                               last_columns(h, tile + i, 1));
  }
}

template <int BITS, int MB, typename Params>
struct MultiplyBytes {
  template <typename... Args>
  static void run(const ByteChunk& chunk, const Header& h, const Section& s, Args&&... args) {
    if (may_have_terms(BITS, 1) && s.terms == 1) multiply_bytes_of<BITS, 1, MB, Params>(chunk, h, s, args...);
    if (may_have_terms(BITS, 2) && s.terms == 2) multiply_bytes_of<BITS, 2, MB, Params>(chunk, h, s, args...);
  }
};

// `tiles` (<= kSuperTiles) tiles from `tile` on, all tokens; adds to out, which points at the first column.
template <typename Params>
static void staged_integer(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo,
                           int64_t tile, int64_t tiles) {
  const Header& h = header_of(blob);
  ByteChunk chunk;
  const Section* end = sections_of(blob) + h.n_sections;
  for (const Section* s = sections_of(blob); s < end; s++) {
    const int total = s->blocks_per_group * s->groups, step = kChunkBlocks / s->slabs;
    for (int first = 0; first < total; first += step) {
      const int blocks = int(min64(step, total - first));
      for (int64_t i = 0; i < tiles; i++) {
        const uint8_t* data = tile_of(blob, tile + i);
        for_width<UnpackBytes, 0, Params>(s->bits, *s, Params(blob, data), data, first, blocks, chunk.codes[i],
                                          chunk.scales[i], chunk.zeros[i]);
      }
      for (int64_t token = 0; token < M; token += kTokens) {
        const Activations a = activations_of(h, scratch, token, M);
        for_tokens(a.mb, [&](auto m) {
          constexpr int MB = decltype(m)::value;
          float* o = out + token * ldo;
          if constexpr (Lanes::kWidthMatters) {
            for_width<MultiplyBytes, MB, Params>(s->bits, chunk, h, *s, s->first_block + first, blocks, a, tile, tiles,
                                                 o, ldo);
          } else {  // one body serves every width
            const auto run = s->terms == 1 ? multiply_bytes_of<8, 1, MB, Params> : multiply_bytes_of<8, 2, MB, Params>;
            run(chunk, h, *s, s->first_block + first, blocks, a, tile, tiles, o, ldo);
          }
        });
      }
    }
  }
}

struct FloatChunk {
  alignas(kLine) float weights[kSuperTiles][kFloatChunkRows * kColumns];
};

template <int TILES, int MB>
static void multiply_floats(const FloatChunk& chunk, int tile, int rows, const float* x, float* out, int64_t ldo,
                            int columns) {
  F acc[TILES][MB];
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) acc[i][m] = Lanes::load_partial(out + m * ldo + i * kColumns, n);
  }
  for (int r = 0; r < rows; r++, x += MB) {
    F weight[TILES];
    for (int i = 0; i < TILES; i++) weight[i] = Lanes::load(chunk.weights[tile + i] + r * kColumns);
    for (int m = 0; m < MB; m++) {
      const F value = Lanes::set1(x[m]);
      for (int i = 0; i < TILES; i++) acc[i][m] = Lanes::fma(weight[i], value, acc[i][m]);
    }
  }
  for (int i = 0; i < TILES; i++) {
    const int n = i == TILES - 1 ? columns : kColumns;
    for (int m = 0; m < MB; m++) Lanes::store_partial(out + m * ldo + i * kColumns, acc[i][m], n);
  }
}

// rows of the chunk, starting at packed row `row`, times all tokens.
static inline void multiply_chunk(const Header& h, const FloatChunk& chunk, const uint8_t* scratch, int64_t row,
                                  int rows, int64_t M, float* out, int64_t ldo, int64_t tile, int64_t tiles) {
  for (int64_t token = 0; token < M; token += kTokens) {
    const Activations a = activations_of(h, scratch, token, M);
    for_tokens(a.mb, [&](auto m) {
      constexpr int MB = decltype(m)::value;
      float* o = out + token * ldo;
      int i = 0;
      for (; i + kStageTiles <= tiles; i += kStageTiles) {
        multiply_floats<kStageTiles, MB>(chunk, i, rows, a.rows(row), o + i * kColumns, ldo,
                                         last_columns(h, tile + i, kStageTiles));
      }
      for (; i < tiles; i++) {
        multiply_floats<1, MB>(chunk, i, rows, a.rows(row), o + i * kColumns, ldo, last_columns(h, tile + i, 1));
      }
    });
  }
}

// (q - zero) * S of some slabs of a section: exact in fp32, 9 bits times 11.
template <int BITS, typename Params>
static void unpack_floats(const Section& s, const Params& params, const uint8_t* tile, int first, int slabs,
                          float* out) {
  const uint8_t* in = tile + s.code_offset + int64_t(first) * BITS * kLine;
  for (int slab = first; slab < first + slabs; slab++, in += BITS * kLine) {
    const int g = s.first_group + slab / (s.slabs * s.blocks_per_group);
    const F scale = params.scale(g), zero = Lanes::to_float(params.zero(g, BITS));
    I lines[BITS];
    load_slab<BITS>(lines, in);
    for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
      F row[4];
      Lanes::rows_of_quad(row, unpack<BITS, decltype(j)::value>(lines));
      for (int r = 0; r < 4; r++, out += kColumns) Lanes::store(out, Lanes::mul(Lanes::sub(row[r], zero), scale));
    });
  }
}

template <int BITS, int MB, typename Params>
struct UnpackFloats {
  template <typename... Args>
  static void run(Args&&... args) {
    unpack_floats<BITS, Params>(args...);
  }
};

template <typename Params>
static void staged_exact(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo, int64_t tile,
                         int64_t tiles) {
  const Header& h = header_of(blob);
  FloatChunk chunk;
  const Section* end = sections_of(blob) + h.n_sections;
  for (const Section* s = sections_of(blob); s < end; s++) {
    const int total = s->slabs * s->blocks_per_group * s->groups;
    for (int first = 0; first < total; first += kFloatChunkRows / kSlabRows) {
      const int slabs = int(min64(kFloatChunkRows / kSlabRows, total - first));
      for (int64_t i = 0; i < tiles; i++) {
        const uint8_t* data = tile_of(blob, tile + i);
        for_width<UnpackFloats, 0, Params>(s->bits, *s, Params(blob, data), data, first, slabs, chunk.weights[i]);
      }
      multiply_chunk(h, chunk, scratch, s->first_row + int64_t(first) * kSlabRows, slabs * kSlabRows, M, out, ldo, tile,
                     tiles);
    }
  }
}

template <DenseType TYPE>
static void staged_dense(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo, int64_t tile,
                         int64_t tiles) {
  const Header& h = header_of(blob);
  constexpr int kRowBytes = dense_row_bytes(TYPE);
  FloatChunk chunk;
  for (int64_t row = 0; row < h.K; row += kFloatChunkRows) {
    const int rows = int(min64(kFloatChunkRows, h.K - row));
    for (int64_t i = 0; i < tiles; i++) {
      const uint8_t* data = tile_of(blob, tile + i);
      for (int r = 0; r < rows; r++) {
        __builtin_prefetch(data + (row + r) * kRowBytes + kPrefetchBytes, 0, 3);
        Lanes::store(chunk.weights[i] + r * kColumns, load_dense<TYPE>(data, row + r));
      }
    }
    multiply_chunk(h, chunk, scratch, row, rows, M, out, ldo, tile, tiles);
  }
}

static void multiply_staged(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo,
                            int64_t tile_begin, int64_t tile_end) {
  const Header& h = header_of(blob);
  const float* bias = reinterpret_cast<const float*>(blob + h.bias_at);
  for (int64_t t = tile_begin; t < tile_end; t += kSuperTiles) {
    const int64_t tiles = min64(kSuperTiles, tile_end - t);
    const int64_t columns = min64(tiles * kColumns, h.out_features - t * kColumns);
    float* o = out + t * kColumns;
    for (int64_t m = 0; m < M; m++) memcpy(o + m * ldo, bias + t * kColumns, size_t(columns) * 4);
    const bool exl2 = h.kind == int32_t(LinearKind::kExl2);
    if (h.kind == int32_t(LinearKind::kDense)) {
      const auto run = h.dense_type == int32_t(DenseType::kF16)    ? staged_dense<DenseType::kF16>
                       : h.dense_type == int32_t(DenseType::kBF16) ? staged_dense<DenseType::kBF16>
                                                                   : staged_dense<DenseType::kF32>;
      run(blob, scratch, M, o, ldo, t, tiles);
    } else if (h.exact) {
      (exl2 ? staged_exact<Exl2Params> : staged_exact<GptqParams>)(blob, scratch, M, o, ldo, t, tiles);
    } else {
      (exl2 ? staged_integer<Exl2Params> : staged_integer<GptqParams>)(blob, scratch, M, o, ldo, t, tiles);
    }
  }
}

static void multiply(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo,
                     int64_t tile_begin, int64_t tile_end) {
  if (M == 0) return;
  if (M > Lanes::kDirectTokens) return multiply_staged(blob, scratch, M, out, ldo, tile_begin, tile_end);
  for_tokens<Lanes::kDirectTokens>(
      M, [&](auto m) { multiply_direct<decltype(m)::value>(blob, scratch, out, ldo, tile_begin, tile_end); });
}

static int64_t tiles(const uint8_t* blob) { return header_of(blob).tiles; }
static uint64_t input_key(const uint8_t* blob) { return header_of(blob).input_key; }

constexpr LinearKernels kKernels = {packed_bytes, pack, tiles, scratch_bytes, prepare, multiply, input_key};

}  // namespace EXL2_ISA
}  // namespace exl2
