// The packed linear: what lies where in the blob. (Shared text of the linear_*.cpp files; each includes it in its own
// namespace EXL2_ISA, because functions shared between files with different compile flags would be merged by the
// linker.)
//
//   header | sections | scale tables (EXL2) | row map | bias | tile 0 | tile 1 | ...          every part 64-byte
//   aligned
//
// A tile is 16 output columns over all rows, contiguous, read once in address order. A *slab* is 32 rows of it and, at
// b bits per weight, exactly b lines of 64 bytes. A line of plane width w holds 8/w *quads*; a quad is 4 rows x 16
// columns, 64 codes, one per byte: 32-bit lane c holds rows 4j..4j+3 of column c. That is the operand shape of
// vpdpbusd, which multiplies 4 bytes of each lane with 4 activations and adds into the lane: columns never mix, nothing
// is ever summed across lanes. Widths that do not divide 8 are split into bit planes: 3 = 2+1, 5 = 4+1, 6 = 4+2 (low
// plane first).
//
//   quad j of a plane of width w: line j*w/8, bits (j*w)%8 .. +w-1 of each byte.
//
// Bytes moved per token and weight are therefore the file's: b/8 for codes, and per (group, column) half a byte (EXL2:
// the 4-bit scale code, 8 bytes per group and tile, at the head of the tile) or 4 bytes (GPTQ: fp16 scale and uint16
// zero point; the file has 2 + b/8).
//
// A *block* is the run of slabs that shares one activation scale and one int32 accumulation: at most kBlockSlabs of a
// group. A *section* is a run of groups of equal width and size, so that inner loops know both.
//
// A dense tile is K times 16 values in the stored type: row k, columns 16t..16t+15; of halves, on the fast path, in
// fewer bits (linear_narrow.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "linear.h"

// Where a lane vector is a register, what is not inlined spills its accumulators. Where it is an array (scalar C++),
// inlining everything only costs compile time.
#ifdef EXL2_LANES_ARE_ARRAYS
#define EXL2_INLINE inline
#define EXL2_INLINE_LAMBDA
#else
#define EXL2_INLINE inline __attribute__((always_inline))
#define EXL2_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace exl2 {
namespace EXL2_ISA {

constexpr uint64_t kMagic = 0x314e494c32584c45ull;  // "ELX2LIN1", little-endian
constexpr int kColumns = int(kLinearTileColumns);
constexpr int kSlabRows = 32;
constexpr int kLine = 64;
constexpr int kSlabQuads = kSlabRows / 4;
constexpr int kNarrowBlockRows = 64;  // linear_narrow.h
constexpr int kStripRows = 16;

// What becomes of an activation: one byte; one byte and half of one that it shares with another row's (linear_pairs.h);
// two bytes.
enum Form : int32_t { kOneByte, kPairs, kTwoBytes };

struct Section {
  int32_t bits;
  int32_t form;              // Form of its activations
  int32_t slabs;             // per block
  int32_t blocks_per_group;  // a group is blocks_per_group * slabs * 32 rows
  int32_t groups;
  int32_t first_group;
  int32_t first_block;
  int32_t padding;
  int64_t first_row;    // packed row
  int64_t code_offset;  // bytes from the start of the tile
  int64_t x_offset;     // activation bytes per token before this section
};

struct Header {
  uint64_t magic;
  uint64_t input_key;
  int64_t total_bytes;
  int32_t kind;  // LinearKind
  int32_t dense_type;
  int32_t exact;
  int32_t has_row_map;
  int32_t narrow;  // halves in fewer bits
  int32_t padding;
  int64_t K;            // input features
  int64_t packed_rows;  // rows in a tile: K, plus the padding of groups that are no multiple of 32
  int64_t out_features;
  int64_t tiles;
  int64_t n_groups;
  int64_t n_sections;
  int64_t n_blocks;
  int64_t x_bytes;      // int8 activation bytes per token
  int64_t sections_at;  // offsets in bytes from the start of the blob
  int64_t tables_at;    // float (G, 16): scale of each scale code
  int64_t row_map_at;   // int32 (packed_rows): input feature, -1 for padding
  int64_t bias_at;      // float (16 * tiles)
  int64_t tiles_at;
  int64_t tile_bytes;
  int64_t params_bytes;  // scales (and zeros) at the head of each tile
};

constexpr int64_t narrow_block_bytes(DenseType type) {
  return kNarrowBlockRows / kStripRows * (type == DenseType::kF16 ? 7 : 6) * kLine;
}

static inline int64_t align_line(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

static inline const Header& header_of(const uint8_t* blob) { return *reinterpret_cast<const Header*>(blob); }

static inline const Section* sections_of(const uint8_t* blob) {
  return reinterpret_cast<const Section*>(blob + header_of(blob).sections_at);
}

static inline const uint8_t* tile_of(const uint8_t* blob, int64_t tile) {
  const Header& h = header_of(blob);
  return blob + h.tiles_at + tile * h.tile_bytes;
}

// The zero point that is the same in every column, else 1.
static inline int32_t common_zero(const Header& h, const Section& s) {
  return h.kind == int32_t(LinearKind::kExl2) ? 1 << (s.bits - 1) : 1;
}

// --- half precision, portable and with subnormals (they carry EXL2 scales) ---

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 31, mantissa = h & 1023;
  uint32_t bits;
  float value;
  if (exponent == 0) {  // subnormal: mantissa * 2^-24, exact in float
    value = float(mantissa) * 5.9604644775390625e-8f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
  }
  memcpy(&value, &bits, 4);
  return value;
}

// The fp16 value nearest to x >= 0, ties to even: what fp16(x) means in spec/exl2-format.md.
static inline float round_to_half(float x) {
  if (!(x < 65520.0f)) return half_to_float(x != x ? 0x7e00 : 0x7c00);
  uint32_t bits;
  memcpy(&bits, &x, 4);
  // Adding and subtracting a power of two whose ulp is the fp16 ulp at x rounds as the hardware does: to even.
  int32_t exponent = int32_t(bits >> 23);
  if (exponent < 113) exponent = 113;  // below 2^-14 the fp16 ulp stays 2^-24
  const uint32_t magic_bits = uint32_t(exponent + 13) << 23;
  float magic;
  memcpy(&magic, &magic_bits, 4);
  volatile float sum = x + magic;  // volatile: -ffast-math must not cancel it
  return sum - magic;
}

static inline float bf16_to_float(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// --- plan: sizes and sections of a source, the same before and during packing ---

static inline int64_t group_rows_of(const LinearSource& s, int64_t g) {
  if (s.kind == LinearKind::kExl2) {
    const int64_t begin = s.q_groups[2 * g + 1];
    const int64_t end = g + 1 < s.n_groups ? s.q_groups[2 * g + 3] : s.q_weight_rows;
    return (end - begin) * 32 / s.q_groups[2 * g];
  }
  if (s.group_rows) return s.group_rows[g];
  const int64_t begin = g * s.group_size;
  return s.K - begin < s.group_size ? s.K - begin : s.group_size;
}

static inline int group_bits_of(const LinearSource& s, int64_t g) {
  return s.kind == LinearKind::kExl2 ? s.q_groups[2 * g] : s.bits;
}

// Which activations get more than 8 bits. Rounding all to 8 costs a KL divergence of some 7e-4 on nano-chat (refined
// recipe); quantizing its weights costs 0.039 at 4 bits, 0.018 at 4.5, 0.010 at 5, 0.0051 at 5.5 and 0.0031 at 6, and
// we stay below 0.8 percent of that. The rows with the largest activations, which make most of the error, come first in
// EXL2 and in act-order GPTQ; where the order is not known it is all or none. KL divergence from the exact path with
// what is chosen here (benchmarks/fast_path_cost.py, all texts), and with the same share of pairs, and of two bytes
// among them, in all linears:
//
//   bpw   chosen
//   4     2.4e-4   4.5e-4 with a quarter of pairs, 3.5e-4 with 0.4
//   4.5   1.3e-4   3.1e-4 with 0.6, 1.8e-4 with 0.7
//   5     6.4e-5   1.5e-4 with 0.75, 8.9e-5 with 0.85, 4.9e-5 with all
//   5.5   3.8e-5   8.9e-5 with 0.9, 5.5e-5 with all, 3.5e-5 with all and two bytes in the first tenth
//   6     2.1e-5   2.8e-5 with all and two bytes in the first eighth, 1.8e-5 in the first 0.4
//
// So linears that were given more bits get more pairs, which one share for all would need many more of. Telling gate,
// up, down and the rest apart gains nothing: down makes half of the error, but all of its rows a part of it.
struct FineRows {
  int64_t two_bytes;  // leading rows, at widths whose pairs are coarse
  int64_t pairs;      // leading rows
};

// Where rows are cut: at the next change of width, if that is near. Tiles of fewer sections are read faster: 58.0
// tokens/s where it was 56.9 (Zen 5, one core, 4.75 bits, two sections and three).
static inline int64_t at_change_of_width(const LinearSource& s, int64_t cut) {
  int64_t row = 0;
  for (int64_t g = 0; g + 1 < s.n_groups && row <= cut + s.K / 8; g++) {
    if (row >= cut && g > 0 && group_bits_of(s, g) != group_bits_of(s, g - 1)) return row;
    row += group_rows_of(s, g);
  }
  return cut;
}

static inline FineRows fine_rows(const LinearSource& s) {
  int64_t stored = 0;
  for (int64_t g = 0; g < s.n_groups; g++) stored += group_rows_of(s, g) * group_bits_of(s, g);
  const double bits = double(stored) / double(s.K);
  if (bits <= 3.5) return {0, 0};
  const auto rows = [&](double share) { return share >= 1 ? s.K : share > 0 ? int64_t(share * double(s.K)) : 0; };
  if (!s.perm) return {bits >= 5.75 ? s.K : 0, s.K};
  return {rows((bits - 5.25) * 0.45), at_change_of_width(s, rows(0.35 + (bits - 4) * 0.4333))};
}

// Widths that ask for the same whatever their rows leave the other cases out of the code.
constexpr bool may_have(int bits, Form form) {
  return bits <= 3 ? form == kOneByte : bits == 8 ? form == kTwoBytes : form != kTwoBytes || bits == 6;
}

static inline Form form_of(int bits, int64_t first_row, const FineRows& fine) {
  if (first_row < fine.two_bytes && may_have(bits, kTwoBytes)) return kTwoBytes;
  if (first_row < fine.pairs && may_have(bits, kPairs)) return kPairs;
  return may_have(bits, kOneByte) ? kOneByte : kTwoBytes;
}

// int8 terms of a sum: products with them are added up one after the other.
constexpr int terms_of(Form form) { return form == kOneByte ? 1 : 2; }

// Rows that share an activation scale: at most 128, of one group. Fewer would round less, but what a block costs
// besides its products would weigh more; what all of this costs in KL: docs/performance.md.
constexpr int kBlockSlabs = 4;

// Of dense weights, that meet words where there are many tokens (linear_prompt_dense.h).
constexpr int kDenseSlabs = 2;
constexpr int kDenseBlockRows = kDenseSlabs * kSlabRows;

// The only section of dense weights: blocks of rows that share an activation scale, the last one filled up.
static inline Section dense_section(int64_t K) {
  Section s = {};
  s.bits = 16;
  s.form = kTwoBytes;
  s.slabs = kDenseSlabs;
  s.blocks_per_group = 1;
  s.groups = int32_t((K + kDenseBlockRows - 1) / kDenseBlockRows);
  return s;
}

// Fills h and, when given, the sections; returns false for a width without a layout.
static inline bool plan(const LinearSource& s, Header& h, Section* sections) {
  h = Header{};
  h.magic = kMagic;
  h.kind = int32_t(s.kind);
  h.dense_type = int32_t(s.dense_type);
  h.exact = s.exact || (s.kind == LinearKind::kDense && s.dense_type == DenseType::kF32);
  h.K = s.K;
  h.out_features = s.out_features;
  h.tiles = (s.out_features + kColumns - 1) / kColumns;
  int64_t code_bytes = 0;
  if (s.kind == LinearKind::kDense) {
    h.packed_rows = s.K;
    h.narrow = !s.exact && s.dense_type != DenseType::kF32 && s.K % kNarrowBlockRows == 0;
    if (h.narrow) {
      const int64_t blocks = s.K / kNarrowBlockRows;
      h.params_bytes = align_line(blocks * int64_t(sizeof(float)));
      code_bytes = blocks * narrow_block_bytes(s.dense_type);
    } else {
      code_bytes = align_line(s.K * kColumns * (s.dense_type == DenseType::kF32 ? 4 : 2));
    }
    if (!h.exact) {
      const Section only = dense_section(s.K);
      if (sections) sections[0] = only;
      h.n_sections = 1;
      h.n_blocks = only.groups;
      h.x_bytes = h.n_blocks * kDenseBlockRows * terms_of(kTwoBytes);
    }
  } else {
    h.n_groups = s.n_groups;
    h.params_bytes = align_line(h.n_groups * (s.kind == LinearKind::kExl2 ? 8 : 64));
    h.has_row_map = s.perm != nullptr;
    Section last = {};
    const FineRows fine = fine_rows(s);
    int64_t row = 0;
    for (int64_t g = 0; g < s.n_groups; g++) {
      const int64_t rows = group_rows_of(s, g);
      const int bits = group_bits_of(s, g);
      if (bits < 2 || bits > 8 || bits == 7) return false;
      const int slabs = int((rows + kSlabRows - 1) / kSlabRows);
      if (rows % kSlabRows) h.has_row_map = 1;
      const Form form = form_of(bits, row, fine);
      row += rows;
      if (h.n_sections > 0 && last.bits == bits && last.form == form && last.slabs * last.blocks_per_group == slabs) {
        last.groups++;
      } else {
        last = Section{};
        last.bits = bits;
        last.form = form;
        last.slabs = slabs < kBlockSlabs ? slabs : kBlockSlabs;
        while (last.slabs > 1 && slabs % last.slabs) last.slabs--;
        last.blocks_per_group = last.slabs ? slabs / last.slabs : 0;
        last.groups = 1;
        last.first_group = int32_t(g);
        last.first_block = int32_t(h.n_blocks);
        last.first_row = h.packed_rows;
        last.code_offset = h.params_bytes + code_bytes;
        last.x_offset = h.x_bytes;
        h.n_sections++;
      }
      if (sections) sections[h.n_sections - 1] = last;
      h.n_blocks += last.blocks_per_group;
      h.packed_rows += int64_t(slabs) * kSlabRows;
      h.x_bytes += int64_t(slabs) * kSlabRows * terms_of(form);
      code_bytes += int64_t(slabs) * bits * kLine;
    }
  }
  int64_t at = align_line(sizeof(Header));
  h.sections_at = at;
  at += align_line(h.n_sections * int64_t(sizeof(Section)));
  h.tables_at = at;
  at += s.kind == LinearKind::kExl2 ? h.n_groups * kLine : 0;
  h.row_map_at = at;
  at += h.has_row_map ? align_line(h.packed_rows * 4) : 0;
  h.bias_at = at;
  at += h.tiles * kLine;
  h.tiles_at = at;
  h.tile_bytes = h.params_bytes + code_bytes;
  h.total_bytes = at + h.tiles * h.tile_bytes;
  return true;
}

}  // namespace EXL2_ISA
}  // namespace exl2
