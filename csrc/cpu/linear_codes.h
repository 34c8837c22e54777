// Reading a tile: codes out of their bit planes, scales and zero points, floats of dense weights; widths as template
// arguments.
#pragma once

#include "linear_activations.h"

namespace exl2 {
namespace EXL2_ISA {

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

// f(Index<0>) ... f(Index<COUNT - 1>): the quads of a slab, or half or twice as many lines, with the index known at
// compile time.
template <int COUNT = kSlabQuads, typename Body>
static EXL2_INLINE void for_each_quad(Body&& f) {
  static_assert(COUNT == 4 || COUNT == 8 || COUNT == 16);
  f(Index<0>{}), f(Index<1>{}), f(Index<2>{}), f(Index<3>{});
  if constexpr (COUNT > 4) f(Index<4>{}), f(Index<5>{}), f(Index<6>{}), f(Index<7>{});
  if constexpr (COUNT > 8) {
    f(Index<8>{}), f(Index<9>{}), f(Index<10>{}), f(Index<11>{});
    f(Index<12>{}), f(Index<13>{}), f(Index<14>{}), f(Index<15>{});
  }
}

template <int BITS>
static EXL2_INLINE void load_slab(I* lines, const uint8_t* codes) {
  for (int i = 0; i < BITS; i++) lines[i] = Lanes::load_line(codes + i * kLine);
}

// Scales and zero points of one tile.
struct Exl2Params {
  static constexpr bool kZeroByColumn = false;
  const uint8_t* tile;
  const float* table;
  Exl2Params(const uint8_t* blob, const uint8_t* tile_)
      : tile(tile_), table(reinterpret_cast<const float*>(blob + header_of(blob).tables_at)) {}
  F scale(int64_t g) const { return Lanes::lookup(table + g * 16, tile + g * 8); }
  I zero(int64_t, int bits) const { return Lanes::set1_i(1 << (bits - 1)); }
  // Where the sum of a term with `codes` codes per product starts.
  static I start(I, int, int32_t value) { return Lanes::set1_i(value); }
};

struct GptqParams {
  static constexpr bool kZeroByColumn = true;
  const uint8_t* tile;
  GptqParams(const uint8_t*, const uint8_t* tile_) : tile(tile_) {}
  const uint16_t* group(int64_t g) const { return reinterpret_cast<const uint16_t*>(tile + g * kLine); }
  F scale(int64_t g) const { return Lanes::load_f16(group(g)); }
  I zero(int64_t g, int) const { return Lanes::load_u16(group(g) + kColumns); }
  static I start(I zero, int codes, int32_t value) {
    return Lanes::multiply16(codes == 1 ? zero : Lanes::multiply16(zero, codes), value);
  }
};

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

// f(Index<form>{}): what the section's activations are, of the forms that its width may have.
template <int BITS, typename Body>
static EXL2_INLINE void for_form(const Section& s, Body&& f) {
  if constexpr (may_have(BITS, kOneByte)) {
    if (s.form == kOneByte) return f(Index<kOneByte>{});
  }
  if constexpr (may_have(BITS, kPairs)) {
    if (s.form == kPairs) return f(Index<kPairs>{});
  }
  if constexpr (may_have(BITS, kTwoBytes)) {
    if (s.form == kTwoBytes) return f(Index<kTwoBytes>{});
  }
}

constexpr int dense_row_bytes(DenseType type) { return kColumns * (type == DenseType::kF32 ? 4 : 2); }

template <DenseType TYPE>
static EXL2_INLINE F load_dense(const uint8_t* tile, int64_t row) {
  if constexpr (TYPE == DenseType::kF32) return Lanes::load(reinterpret_cast<const float*>(tile) + row * kColumns);
  const uint16_t* half = reinterpret_cast<const uint16_t*>(tile) + row * kColumns;
  return TYPE == DenseType::kF16 ? Lanes::load_f16(half) : Lanes::load_bf16(half);
}

}  // namespace EXL2_ISA
}  // namespace exl2
