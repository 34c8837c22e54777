// Linear layers, portable C++: no intrinsics. These Lanes are the specification that the AVX2 and AVX-512 ones follow,
// name by name.
#define EXL2_ISA linear_generic
#define EXL2_LANES_ARE_ARRAYS
#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

struct Lanes {
  static constexpr int kTokens = 4;  // tokens and tiles of the register block of the many-token forms
  static constexpr int kStageTiles = 1;
  static constexpr int kDirectTokens = 1;       // at most so many tokens take the few-token forms
  static constexpr int kChains = 4;             // sums in work at once that hide how long one multiply-add takes
  static constexpr bool kWidthMatters = false;  // dot4 is exact for every width
  static constexpr bool kSums = true;           // products for many tokens are those of sums (linear_sums.h)
  static constexpr bool kTiles = false;         // by a unit that multiplies matrices (linear_prompt_tiles.h)
  static constexpr int kDecodeAhead = 24576;    // linear_ahead.h
  static constexpr bool kAskInCall = true;
  static constexpr bool kAskIntoL2 = false;

  struct F {  // one float per column
    float v[16];
  };
  struct I {  // a line: 64 bytes, or one int32 per column, the lowest byte first
    uint32_t v[16];
  };
  using Acc = I;  // int32 per column

  template <typename Body>
  static F each(Body&& f) {
    F out;
    for (int c = 0; c < 16; c++) out.v[c] = f(c);
    return out;
  }
  template <typename Body>
  static I each_i(Body&& f) {
    I out;
    for (int c = 0; c < 16; c++) out.v[c] = uint32_t(f(c));
    return out;
  }

  // floats
  static F zero() { return set1(0.0f); }
  static F set1(float a) {
    return each([&](int) { return a; });
  }
  static F load(const float* p) {
    return each([&](int c) { return p[c]; });
  }
  static F load_partial(const float* p, int n) {
    return each([&](int c) { return c < n ? p[c] : 0.0f; });
  }
  static F load_f16(const uint16_t* p) {
    return each([&](int c) { return half_to_float(p[c]); });
  }
  static F load_bf16(const uint16_t* p) {
    return each([&](int c) { return bf16_to_float(p[c]); });
  }
  static F lookup(const float* table, const uint8_t* nibbles) {  // table (16), nibbles (8): low nibble first
    return each([&](int c) { return table[nibbles[c / 2] >> (c % 2 * 4) & 15]; });
  }
  static void store(float* p, F a) { memcpy(p, a.v, sizeof a.v); }
  static void store_partial(float* p, F a, int n) {
    for (int c = 0; c < n; c++) p[c] = a.v[c];
  }
  static F add(F a, F b) {
    return each([&](int c) { return a.v[c] + b.v[c]; });
  }
  static F sub(F a, F b) {
    return each([&](int c) { return a.v[c] - b.v[c]; });
  }
  static F mul(F a, F b) {
    return each([&](int c) { return a.v[c] * b.v[c]; });
  }
  static F div(F a, F b) {
    return each([&](int c) { return a.v[c] / b.v[c]; });
  }
  static F fma(F a, F b, F c) {  // rounded once or twice, as the machine has it
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F max_abs(F a, F b) {
    return each([&](int c) { return b.v[c] > a.v[c] ? b.v[c] : -b.v[c] > a.v[c] ? -b.v[c] : a.v[c]; });
  }
  static F quads_from(F a, F b, int first) {  // of the 8 times 4 values of a and b: first, first + 2, ...
    return each([&](int c) { return (c < 8 ? a : b).v[(2 * (c / 4) + first) % 4 * 4 + c % 4]; });
  }
  static F even_quads(F a, F b) { return quads_from(a, b, 0); }
  static F odd_quads(F a, F b) { return quads_from(a, b, 1); }
  static float reduce_max(F a) {
    float out = a.v[0];
    for (int c = 1; c < 16; c++) out = a.v[c] > out ? a.v[c] : out;
    return out;
  }
  static float reduce_add(F a) {
    float out = 0.0f;
    for (int c = 0; c < 16; c++) out += a.v[c];
    return out;
  }

  // integers
  static I zero_i() { return set1_i(0); }
  static I set1_i(int32_t a) {
    return each_i([&](int) { return a; });
  }
  static I load_u16(const uint16_t* p) {
    return each_i([&](int c) { return p[c]; });
  }
  static I add_i(I a, I b) {
    return each_i([&](int c) { return a.v[c] + b.v[c]; });
  }
  static I sub_i(I a, I b) {
    return each_i([&](int c) { return a.v[c] - b.v[c]; });
  }
  static I shift_left(I a, int by) {
    return each_i([&](int c) { return a.v[c] << by; });
  }
  static I add_products(I acc, I a, I b) {  // |a|, |b| < 2^15
    return each_i([&](int c) { return acc.v[c] + a.v[c] * b.v[c]; });
  }
  // acc + products of lanes 2i and 2i + 1, each in one of them, modulo 2^32; |a| < 2^15
  static I add_neighbours(I acc, I a) {
    return each_i([&](int c) { return acc.v[c] + (c % 2 ? 0 : a.v[c] * a.v[c + 1]); });
  }
  static I high_byte(I a) {
    return each_i([&](int c) { return int32_t(a.v[c] + 128) >> 8; });
  }
  static I pair_words(I low, I high) {  // the low 16 bits of both
    return each_i([&](int c) { return (low.v[c] & 0xffff) | high.v[c] << 16; });
  }
  static I pack_bytes(const I* rows) {  // the low bytes of four vectors, those of a lane together
    return each_i([&](int c) {
      uint32_t out = 0;
      for (int r = 0; r < 4; r++) out |= (rows[r].v[c] & 255) << (8 * r);
      return out;
    });
  }
  static I round(F a) {  // |a| < 2^22, ties to even: adding 1.5 * 2^23 leaves the integer in the low mantissa bits
    return each_i([&](int c) {
      const float shifted = a.v[c] + 12582912.0f;
      int32_t bits;
      memcpy(&bits, &shifted, 4);
      return bits - 0x4b400000;
    });
  }
  static F to_float(I a) {
    return each([&](int c) { return float(int32_t(a.v[c])); });
  }
  static int32_t reduce_add_i(I a) {
    uint32_t out = 0;
    for (int c = 0; c < 16; c++) out += a.v[c];
    return int32_t(out);
  }
  static void store_bytes(int32_t* p, I a) {  // the low byte of each lane, 16 bytes
    for (int q = 0; q < 4; q++) {
      uint32_t word = 0;
      for (int r = 0; r < 4; r++) word |= (a.v[4 * q + r] & 255) << (8 * r);
      p[q] = int32_t(word);
    }
  }

  static void store_words(int32_t* p, I a) {  // the low 16 bits of each lane; of four lanes 0 and 2, then 1 and 3
    for (int i = 0; i < 8; i++) {
      const int first = i / 2 * 4 + i % 2;
      p[i] = int32_t((a.v[first] & 0xffff) | a.v[first + 2] << 16);
    }
  }

  // codes
  static I load_line(const uint8_t* p) {
    I out;
    memcpy(out.v, p, sizeof out.v);
    return out;
  }
  static void store_line(uint8_t* p, I a) { memcpy(p, a.v, sizeof a.v); }
  template <int BY>
  static I shift_right16(I a) {  // may move bits between the bytes of a lane; the masks below drop them
    return each_i([&](int c) { return a.v[c] >> BY; });
  }
  template <int BY>
  static I shift_left16(I a) {
    return each_i([&](int c) { return a.v[c] << BY; });
  }
  template <int MASK>
  static I and_bytes(I a) {
    return each_i([&](int c) { return a.v[c] & MASK * 0x01010101u; });
  }
  template <int MASK>
  static I or_masked(I a, I b) {  // a | (b & mask)
    return each_i([&](int c) { return a.v[c] | (b.v[c] & MASK * 0x01010101u); });
  }
  template <int MASK>
  static I and_halves(I a) {
    return each_i([&](int c) { return a.v[c] & MASK * 0x00010001u; });
  }
  template <int MASK>
  static I or_masked_halves(I a, I b) {
    return each_i([&](int c) { return a.v[c] | (b.v[c] & MASK * 0x00010001u); });
  }
  static void rows_of_halves(F* rows, I line) {  // rows[r]: fp16 number 16 r + c of the line
    uint16_t halves[32];
    memcpy(halves, line.v, sizeof halves);
    for (int r = 0; r < 2; r++) rows[r] = load_f16(halves + 16 * r);
  }
  static __attribute__((noinline)) void rows_of_quad(F* rows, I code) {  // rows[r]: byte r of each lane
    for (int r = 0; r < 4; r++) {
      rows[r] = each([&](int c) { return float(code.v[c] >> (8 * r) & 255); });
    }
  }

  // products
  static I multiply(I a, I b) {
    return each_i([&](int c) { return a.v[c] * b.v[c]; });
  }
  static I multiply16(I a, int32_t b) {  // a < 2^15, |b| < 2^15
    return each_i([&](int c) { return int32_t(a.v[c]) * b; });
  }
  static Acc start(I value) { return value; }
  // words: the 4 bytes of each lane less `zero`, as int16: bytes 0 and 2, then bytes 1 and 3.
  static __attribute__((noinline)) void words_of_quad(I* words, I code, I zero) {
    for (int i = 0; i < 2; i++) {
      words[i] = each_i([&](int c) {
        const uint32_t bytes = code.v[c] >> (8 * i), z = zero.v[c];
        return (((bytes & 255) - z) & 0xffff) | ((bytes >> 16 & 255) - z) << 16;
      });
    }
  }
  // acc + the two int16 of each lane times those of x
  static I dot2(I acc, I words, int32_t x) {
    return each_i([&](int c) {
      return acc.v[c] + uint32_t(int16_t(words.v[c]) * int16_t(x) + int16_t(words.v[c] >> 16) * int16_t(x >> 16));
    });
  }
  // acc += the 4 unsigned bytes of each lane times the 4 signed bytes of x. J numbers the products of a slab that go
  // into this accumulator, LAST marks the last one: for instruction sets that keep 16-bit sums in between, DEPTH of
  // them.
  template <int DEPTH, int J, bool LAST>
  static __attribute__((noinline)) void dot4(Acc& acc, I code, int32_t x) {
    acc = each_i([&](int c) {
      int32_t sum = int32_t(acc.v[c]);
      for (int r = 0; r < 4; r++) sum += int32_t(code.v[c] >> (8 * r) & 255) * int8_t(x >> (8 * r));
      return sum;
    });
  }
  static I sub_bytes(I a, I b) {
    return each_i([&](int c) {
      uint32_t out = 0;
      for (int r = 0; r < 32; r += 8) out |= (((a.v[c] >> r) - (b.v[c] >> r)) & 255) << r;
      return out;
    });
  }
  // acc + the sums of a's and xb's bytes, unsigned, times those of b's and xa's, signed; sums fit a byte.
  static __attribute__((noinline)) I dot_sums(I acc, I a, I b, int32_t xa, int32_t xb) {
    return each_i([&](int c) {
      int32_t sum = int32_t(acc.v[c]);
      for (int r = 0; r < 32; r += 8) {
        sum += int32_t(uint8_t((a.v[c] >> r) + (uint32_t(xb) >> r))) * int8_t((b.v[c] >> r) + (uint32_t(xa) >> r));
      }
      return sum;
    });
  }
  // acc + the sums of the int16 of a and xb times those of b and xa; sums fit int16.
  static __attribute__((noinline)) I dot2_sums(I acc, I a, I b, int32_t xa, int32_t xb) {
    return each_i([&](int c) {
      uint32_t sum = acc.v[c];
      for (int r = 0; r < 32; r += 16) {
        sum += uint32_t(int16_t((a.v[c] >> r) + (uint32_t(xb) >> r)) * int16_t((b.v[c] >> r) + (uint32_t(xa) >> r)));
      }
      return sum;
    });
  }
  static I value(const Acc& acc) { return acc; }
};

}  // namespace EXL2_ISA
}  // namespace exl2

#include "linear_product.h"

namespace exl2 {
const LinearKernels* linear_kernels_generic() { return &EXL2_ISA::kKernels; }
}  // namespace exl2
