// The product for few tokens: weights are unpacked in registers, each line is read once for all of them.
//
// Bytes moved per (group, tile of 16 columns): b/8 * 16 * rows of codes and 8 (EXL2) or 64 (GPTQ) of scales, nothing
// twice; activations and their scales come from L1. Instructions for a quad of 64 codes, one token and one term: 0.5 to
// 1.5 to load, shift and mask, a broadcast and the multiply-add, and an eighth of a block's dozen for its scale. So one
// core of Zen 5 unpacks 50 to 110 GB/s out of L2, all widths above what memory delivers to it.
#pragma once

#include "linear_codes.h"

namespace exl2 {
namespace EXL2_ISA {

// Product number J of the COUNT of a slab, into one of the chains that take turns. FORM: of what is in x, kPairs if
// that is the shared numbers.
template <int BITS, Form FORM, int J, int COUNT, int CHAINS>
static EXL2_INLINE void dot4(Acc (&acc)[CHAINS], I code, int32_t x) {
  constexpr int kStep = J / CHAINS, kLast = (COUNT - 1) / CHAINS;
  Lanes::dot4<sum_depth(BITS, FORM), kStep, kStep == kLast>(acc[J % CHAINS], code, x);
}

// One slab of fine activations (linear_pairs.h): acc[0] sums what rows have of their own, acc[1] what pairs share.
template <int BITS, int MB, int CHAINS>
static EXL2_INLINE void multiply_pairs(Acc (&acc)[2][MB][CHAINS], const I* lines, const int32_t* own,
                                       const int32_t* shared) {
  for_each_quad<kSlabQuads / 2>([&](auto pair) EXL2_INLINE_LAMBDA {
    constexpr int P = decltype(pair)::value, A = 2 * P, B = A + 1;
    const I a = unpack<BITS, A>(lines), b = unpack<BITS, B>(lines), both = pair_codes<BITS, A>(lines, a, b);
    for (int m = 0; m < MB; m++) {
      dot4<BITS, kOneByte, A, kSlabQuads, CHAINS>(acc[0][m], a, own[A * MB + m]);
      dot4<BITS, kOneByte, B, kSlabQuads, CHAINS>(acc[0][m], b, own[B * MB + m]);
      dot4<BITS, kPairs, P, kSlabQuads / 2, CHAINS>(acc[1][m], both, shared[P * MB + m]);
    }
  });
}

template <int BITS, Form FORM, int MB, typename Params>
static EXL2_INLINE void direct_integer(const Header& h, const Section& s, const Params& params, const uint8_t* tile,
                                       const Activations& a, F* out) {
  constexpr int TERMS = terms_of(FORM);
  // A chain of dependent multiply-adds per token would wait for its own latency: short of tokens, use several.
  constexpr int CHAINS = MB * TERMS >= Lanes::kChains ? 1 : Lanes::kChains / (MB * TERMS);
  const uint8_t* codes = tile + s.code_offset;
  const int32_t* x = a.quads(s.x_offset);
  const BlockMeta* meta = a.meta(h, s.first_block);
  const int64_t term = int64_t(s.slabs) * kSlabQuads * MB;
  for (int g = s.first_group; g < s.first_group + s.groups; g++) {
    const F scale = params.scale(g);
    const I zero = params.zero(g, BITS);
    for (int b = 0; b < s.blocks_per_group; b++, meta += MB, x += term * TERMS) {
      ask_for(codes + kDecodeAhead, s.slabs * BITS);  // while few registers are in use, since a call keeps none of them
      Acc acc[TERMS][MB][CHAINS];
      for (int t = 0; t < TERMS; t++) {
        for (int m = 0; m < MB; m++) {
          acc[t][m][0] = Lanes::start(Params::start(zero, codes_in_term(BITS, FORM, t), meta[m].start[t]));
          for (int c = 1; c < CHAINS; c++) acc[t][m][c] = Lanes::start(Lanes::zero_i());
        }
      }
      const int32_t *quad = x, *shared = x + term;
      for (int slab = 0; slab < s.slabs; slab++, codes += BITS * kLine, quad += kSlabQuads * MB) {
        I lines[BITS];
        load_slab<BITS>(lines, codes);
        if constexpr (FORM == kPairs) {
          multiply_pairs<BITS>(acc, lines, quad, shared);
          shared += kSlabQuads / 2 * MB;
        } else {
          for_each_quad([&](auto j) EXL2_INLINE_LAMBDA {
            constexpr int J = decltype(j)::value;
            const I code = unpack<BITS, J>(lines);
            for (int t = 0; t < TERMS; t++) {
              for (int m = 0; m < MB; m++) {
                dot4<BITS, kOneByte, J, kSlabQuads, CHAINS>(acc[t][m], code, quad[t * term + J * MB + m]);
              }
            }
          });
        }
      }
      for (int m = 0; m < MB; m++) {
        I sum[TERMS];
        for (int t = 0; t < TERMS; t++) {
          sum[t] = Lanes::value(acc[t][m][0]);
          for (int c = 1; c < CHAINS; c++) sum[t] = Lanes::add_i(sum[t], Lanes::value(acc[t][m][c]));
        }
        if constexpr (TERMS == 2) sum[0] = Lanes::add_i(Lanes::shift_left(sum[0], term_shift(BITS, FORM)), sum[1]);
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
    ask_for(codes + kDecodeAhead, s.slabs * s.blocks_per_group * BITS);
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

template <int BITS, int MB, typename Params>
struct DirectInteger {
  template <typename... Args>
  static EXL2_INLINE void run(const Header& h, const Section& s, Args&&... args) {
    for_form<BITS>(s, [&](auto form) EXL2_INLINE_LAMBDA {
      direct_integer<BITS, Form(decltype(form)::value), MB, Params>(h, s, args...);
    });
  }
};

template <int BITS, int MB, typename Params>
struct DirectExact {
  template <typename... Args>
  static EXL2_INLINE void run(Args&&... args) {
    direct_exact<BITS, MB, Params>(args...);
  }
};

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
      if ((c * kRowBytes) % kLine == 0) __builtin_prefetch(tile + (row + c) * kRowBytes + kDecodeAhead, 0, 3);
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

template <DenseType TYPE, int MB>
static EXL2_INLINE void direct_narrow(const Header& h, const uint8_t* tile, const Activations& a, F* out) {
  constexpr int PAIRS = 4 / MB;  // two chains of sums each
  const float* x = a.rows(0);
  for (int64_t block = 0; block < h.K / kNarrowBlockRows; block++) {
    const uint8_t* strip = narrow_block<TYPE>(h, tile, block);
    ask_for(strip + kDecodeAhead, int(narrow_block_bytes(TYPE) / kLine));
    F acc[MB][PAIRS][2];
    for (int m = 0; m < MB; m++) {
      for (int p = 0; p < PAIRS; p++) acc[m][p][0] = acc[m][p][1] = Lanes::zero();
    }
    for (int i = 0; i < kNarrowBlockRows / kStripRows; i++, strip += Narrow<TYPE>::kLines * kLine) {
      for_each_pair<TYPE>(strip, [&](auto index, F even, F odd) EXL2_INLINE_LAMBDA {
        constexpr int PAIR = decltype(index)::value, P = PAIR % PAIRS;
        for (int m = 0; m < MB; m++) {
          acc[m][P][0] = Lanes::fma(even, Lanes::set1(x[2 * PAIR * MB + m]), acc[m][P][0]);
          acc[m][P][1] = Lanes::fma(odd, Lanes::set1(x[(2 * PAIR + 1) * MB + m]), acc[m][P][1]);
        }
      });
      x += kStripRows * MB;
    }
    const F scale = Lanes::set1(narrow_scale(tile, block));
    for (int m = 0; m < MB; m++) {
      F sum = Lanes::add(acc[m][0][0], acc[m][0][1]);
      for (int p = 1; p < PAIRS; p++) sum = Lanes::add(sum, Lanes::add(acc[m][p][0], acc[m][p][1]));
      out[m] = Lanes::fma(sum, scale, out[m]);
    }
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
      (h.narrow ? direct_narrow<DenseType::kF16, MB> : direct_dense<DenseType::kF16, MB>)(h, tile, a, sum);
    } else if (h.dense_type == int32_t(DenseType::kBF16)) {
      (h.narrow ? direct_narrow<DenseType::kBF16, MB> : direct_dense<DenseType::kBF16, MB>)(h, tile, a, sum);
    } else {
      direct_dense<DenseType::kF32, MB>(h, tile, a, sum);
    }
    const int columns = int(min64(kColumns, h.out_features - t * kColumns));
    for (int m = 0; m < MB; m++) Lanes::store_partial(out + m * ldo + t * kColumns, sum[m], columns);
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
