// The product of a packed linear (linear_layout.h) in terms of `Lanes`, the 16-column vector that each linear_*.cpp
// defines: the same text for scalar C++, AVX2, AVX-512 and AMX; the scalar Lanes in linear_generic.cpp say what each
// operation means. Widths differ only in the plane table of unpack().
//
// Two paths, each with a form for few tokens and one for many:
//
//                 few tokens (decode): weights are unpacked    many tokens: a chunk of two tiles is unpacked into L1
//                 in registers, each line is read once         once and run over all tokens, kTokens x kStageTiles at a
//                 time
//   integer       direct_integer                               staged_integer, of bytes or of words, or of sums of
//                                                              these and codes (linear_sums.h); staged_tiles where
//                                                              there is a tile unit
//   fp32, exact   direct_exact                                 staged_exact
//   dense         direct_dense, in fp32                        staged_words: 16 bits of weights and of activations;
//                                                              by tiles: staged_dense_tiles; exact, or of fp32
//                                                              weights: staged_floats
//
// Integer: out[m,n] = sum over blocks  S[g,n] * sx[m,block] * sum_k (q[k,n] - zero) * x8[m,k]; the inner sum is exact
// in int32; the zero point enters once per block, through the sum of the block's activations. Exact: out[m,n] = sum
// over groups  S[g,n] * sum_k (q[k,n] - zero) * x[m,k] in fp32.
#pragma once

#include "linear_decode.h"
#include "linear_prompt_dense.h"
#include "linear_prompt_integer.h"
#include "linear_prompt_tiles.h"

namespace exl2 {
namespace EXL2_ISA {

template <typename Params>
static void staged_quantized(const uint8_t* blob, const uint8_t* scratch, int64_t M, Sums sums, int64_t tile,
                             int64_t tiles) {
  if (header_of(blob).exact) {
    staged_exact<Params>(blob, scratch, M, sums, tile, tiles);
  } else if constexpr (Lanes::kTiles) {
    staged_tiles<Params>(blob, scratch, M, sums, tile, tiles);
  } else {
    staged_integer<Params>(blob, scratch, M, sums, tile, tiles);
  }
}

static void multiply_staged(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo,
                            int64_t tile_begin, int64_t tile_end) {
  const Header& h = header_of(blob);
  const float* bias = reinterpret_cast<const float*>(blob + h.bias_at);
  const auto run = h.kind == int32_t(LinearKind::kDense)  ? staged_dense
                   : h.kind == int32_t(LinearKind::kExl2) ? staged_quantized<Exl2Params>
                                                          : staged_quantized<GptqParams>;
  for (int64_t t = tile_begin; t < tile_end; t += kSuperTiles) {
    const Sums sums = Sums::first(out + t * kColumns, ldo, bias + t * kColumns);
    run(blob, scratch, M, sums, t, min64(kSuperTiles, tile_end - t));
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

constexpr LinearKernels kKernels = {packed_bytes, pack, tiles, tile_of, scratch_bytes, prepare, multiply, input_key};

}  // namespace EXL2_ISA
}  // namespace exl2
