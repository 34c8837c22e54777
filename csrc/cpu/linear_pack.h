// Packing: a weight as it lies on disk -> the blob of linear_layout.h. Runs once per load: on disk a row of words holds
// one word of each column, so 16 neighbouring columns are one vector, and every step below works on such vectors.
#pragma once

#include "linear_narrow.h"

namespace exl2 {
namespace EXL2_ISA {

// Bit planes of a width: `low` bits in the first plane, bits - low in the second.
constexpr int low_plane(int bits) { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }

// Consecutive word rows are read for this many tiles at a time: 1 KiB of each row, so that a cache line fetched from
// the file is used whole and pages are not revisited for each tile.
constexpr int kPackTiles = 16;

struct CodeSource {
  const uint32_t* words;  // (.., N)
  int64_t ld;             // N
  int bits;
};

// One value of each of 16 columns. GCC and Clang make of it what the instruction set has: one register, two, or four.
typedef uint32_t Words __attribute__((vector_size(kColumns * 4)));

// By reference, as all vectors here: passing them by value is a matter of the instruction set.
static EXL2_INLINE void load_words(Words& words, const uint32_t* p, int columns) {
  if (columns == kColumns) {
    memcpy(&words, p, sizeof words);
  } else {
    words = Words{};
    memcpy(&words, p, size_t(columns) * 4);
  }
}

// Quad j into the planes of its slab.
static EXL2_INLINE void add_quad(Words* lines, const Words& quad, int bits, int j) {
  const int low = low_plane(bits), high = bits - low;
  lines[j * low / 8] |= (quad & 0x01010101u * ((1u << low) - 1)) << (j * low % 8);
  if (high > 0) lines[low + j * high / 8] |= (quad >> low & 0x01010101u * ((1u << high) - 1)) << (j * high % 8);
}

// A slab whose rows lie one after another in the stream: exactly BITS words of each column, every shift a constant.
// words: where the first of them starts. About 200 instructions for 512 codes, so that memory sets the pace.
template <int BITS>
static void pack_slab_in_order(uint8_t* out, const uint32_t* words, int64_t ld, int columns) {
  Words in[BITS], lines[BITS] = {};
  for (int i = 0; i < BITS; i++) load_words(in[i], words + i * ld, columns);
#pragma GCC unroll 8
  for (int j = 0; j < kSlabQuads; j++) {
    Words quad = {};
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      const int bit = (4 * j + r) * BITS, shift = bit % 32;
      Words code = in[bit / 32] >> shift;
      if (shift + BITS > 32) code |= in[bit / 32 + 1] << (32 - shift);  // straddles two words
      quad |= (code & ((1u << BITS) - 1)) << (8 * r);
    }
    add_quad(lines, quad, BITS, j);
  }
  memcpy(out, lines, sizeof lines);
}

// Any rows of the stream, as act-order GPTQ has them. rows[i]: row for slab row i, negative for padding.
static inline void pack_slab_of_rows(uint8_t* out, const CodeSource& source, const int64_t* rows, int64_t column,
                                     int columns) {
  Words lines[8] = {};
  for (int j = 0; j < kSlabQuads; j++) {
    Words quad = {};
    for (int r = 0; r < 4; r++) {
      const int64_t row = rows[4 * j + r];
      if (row < 0) continue;
      const uint32_t* p = source.words + row * source.bits / 32 * source.ld + column;
      const int shift = int(row * source.bits % 32);
      Words code, next;
      load_words(code, p, columns);
      code >>= shift;
      if (shift + source.bits > 32) {
        load_words(next, p + source.ld, columns);
        code |= next << (32 - shift);
      }
      quad |= (code & ((1u << source.bits) - 1)) << (8 * r);
    }
    add_quad(lines, quad, source.bits, j);
  }
  memcpy(out, lines, size_t(source.bits) * kLine);
}

// One slab of one tile; in_order: rows[] count up by one, from a multiple of 32.
static inline void pack_slab(uint8_t* out, const CodeSource& source, const int64_t* rows, bool in_order, int64_t column,
                             int columns) {
  if (!in_order) return pack_slab_of_rows(out, source, rows, column, columns);
  const uint32_t* words = source.words + rows[0] * source.bits / 32 * source.ld + column;
  switch (source.bits) {
    case 2: return pack_slab_in_order<2>(out, words, source.ld, columns);
    case 3: return pack_slab_in_order<3>(out, words, source.ld, columns);
    case 4: return pack_slab_in_order<4>(out, words, source.ld, columns);
    case 5: return pack_slab_in_order<5>(out, words, source.ld, columns);
    case 6: return pack_slab_in_order<6>(out, words, source.ld, columns);
    case 8: return pack_slab_in_order<8>(out, words, source.ld, columns);
  }
}

// The words of the slab that starts at `row`, in some columns: word rows are pages apart, which no hardware prefetcher
// follows. (Rows in file order; for others, and past the end, a hint that does no harm.)
static inline void prefetch_rows(const CodeSource& source, int64_t row, int64_t begin, int64_t end) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(source.words);
  for (int64_t word = row * source.bits / 32; word < (row + kSlabRows) * source.bits / 32; word++) {
    for (int64_t column = begin; column < end; column += kColumns) {
      __builtin_prefetch(reinterpret_cast<const void*>(base + uintptr_t(word * source.ld + column) * 4));
    }
  }
}

static inline void pack_codes(const LinearSource& s, const Header& h, uint8_t* blob, int64_t tile_begin,
                              int64_t tile_end) {
  int64_t packed_row = 0, code_offset = h.params_bytes;
  for (int64_t g = 0; g < s.n_groups; g++) {
    const int64_t group_rows = group_rows_of(s, g);
    CodeSource source{s.qweight, s.N, group_bits_of(s, g)};
    if (s.kind == LinearKind::kExl2) source.words = s.q_weight + int64_t(s.q_groups[2 * g + 1]) * s.N;
    for (int64_t first = 0; first < group_rows; first += kSlabRows) {
      int64_t rows[kSlabRows];
      bool in_order = true;
      for (int64_t k = 0; k < kSlabRows; k++) {
        const int64_t i = first + k;
        rows[k] = i >= group_rows               ? -1
                  : s.kind == LinearKind::kExl2 ? i  // stored in packed order, one stream per group
                  : s.perm                      ? s.perm[packed_row + i]
                                                : packed_row + i;
        in_order = in_order && rows[k] == rows[0] + k && rows[0] % kSlabRows == 0;
      }
      prefetch_rows(source, rows[0] + kSlabRows, tile_begin * kColumns, tile_end * kColumns);
      for (int64_t t = tile_begin; t < tile_end; t++) {
        const int64_t left = s.N - t * kColumns;
        pack_slab(blob + h.tiles_at + t * h.tile_bytes + code_offset, source, rows, in_order, t * kColumns,
                  int(left < kColumns ? left : kColumns));
      }
      code_offset += int64_t(source.bits) * kLine;
    }
    packed_row += group_rows;
  }
}

static inline void pack_params(const LinearSource& s, const Header& h, uint8_t* tile, int64_t t) {
  memset(tile, 0, size_t(h.params_bytes));
  const int64_t column = t * kColumns;
  for (int64_t g = 0; g < s.n_groups; g++) {
    if (s.kind == LinearKind::kExl2) {
      memcpy(tile + g * 8, s.q_scale + g * (s.N / 8) + column / 8, 8);
      continue;
    }
    uint16_t params[2 * kColumns] = {};  // scales, zeros
    for (int64_t c = 0; c < kColumns && column + c < s.N; c++) {
      params[c] = s.scales[g * s.N + column + c];
      params[kColumns + c] = uint16_t(s.zeros[g * s.N + column + c]);
    }
    memcpy(tile + g * kLine, params, kLine);
  }
}

// 16 values of each of 16 rows become 16 of each of 16 columns: four rounds of interleaving row i with row i + 8.
template <typename V, typename T>
static EXL2_INLINE void transpose(V* in, T* out) {
  const V first = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const V second = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  V mixed[kColumns];
#pragma GCC unroll 4
  for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
    for (int i = 0; i < kColumns / 2; i++) {
      mixed[2 * i] = __builtin_shuffle(in[i], in[i + 8], first);
      mixed[2 * i + 1] = __builtin_shuffle(in[i], in[i + 8], second);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kColumns; i++) in[i] = mixed[i];
  }
  memcpy(out, in, kColumns * sizeof(V));
}

// (N, K) -> rows k .. end - 1 of a tile (K, 16), a cache line of each of the 16 columns at a time: in the file they are
// often a power of two apart, and then their lines push each other out of L1 before they could be read twice. For the
// same reason lines are fetched to L2.
template <typename T>
static void gather_rows(const LinearSource& s, T* out, int64_t t, int64_t k, int64_t end) {
  typedef T V __attribute__((vector_size(kColumns * sizeof(T))));
  constexpr int kLineValues = kLine / int(sizeof(T)), kParts = kLineValues / kColumns;
  constexpr int kAhead = 512 / int(sizeof(T));
  const T* weight = static_cast<const T*>(s.weight);
  const int64_t column = t * kColumns;
  if (column + kColumns <= s.N) {
    for (; k + kLineValues <= end; k += kLineValues, out += kLineValues * kColumns) {
      V in[kParts][kColumns];
      for (int64_t c = 0; c < kColumns; c++) {
        const T* values = weight + (column + c) * s.K + k;
        __builtin_prefetch(values + kAhead, 0, 2);
        for (int part = 0; part < kParts; part++) memcpy(&in[part][c], values + part * kColumns, sizeof(V));
      }
      for (int part = 0; part < kParts; part++) transpose(in[part], out + part * kColumns * kColumns);
    }
  }
  for (; k < end; k++, out += kColumns) {
    for (int64_t c = 0; c < kColumns; c++) out[c] = column + c < s.N ? weight[(column + c) * s.K + k] : T(0);
  }
}

template <typename T>
static void pack_dense(const LinearSource& s, const Header& h, uint8_t* tile, int64_t t) {
  const int64_t used = s.K * kColumns * int64_t(sizeof(T));
  gather_rows(s, reinterpret_cast<T*>(tile), t, 0, s.K);
  memset(tile + used, 0, size_t(h.tile_bytes - used));
}

template <DenseType TYPE>
static void pack_narrow(const LinearSource& s, const Header& h, uint8_t* tile, int64_t t) {
  float* scales = reinterpret_cast<float*>(tile);
  memset(tile, 0, size_t(h.params_bytes));
  for (int64_t block = 0; block < s.K / kNarrowBlockRows; block++) {
    alignas(kLine) uint16_t rows[kNarrowBlockRows * kColumns];
    gather_rows(s, rows, t, block * kNarrowBlockRows, (block + 1) * kNarrowBlockRows);
    pack_block<TYPE>(rows, scales[block], tile + h.params_bytes + block * narrow_block_bytes(TYPE));
  }
}

static inline uint64_t hash(uint64_t h, const void* data, int64_t bytes) {  // FNV-1a
  const uint8_t* p = static_cast<const uint8_t*>(data);
  for (int64_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 0x100000001b3ull;
  return h;
}

// Everything in front of the tiles.
static inline void pack_front(const LinearSource& s, Header h, uint8_t* blob) {
  memset(blob, 0, size_t(h.tiles_at));  // gaps too: equal weights are equal bytes
  Section* sections = reinterpret_cast<Section*>(blob + h.sections_at);
  plan(s, h, sections);

  if (s.kind == LinearKind::kExl2) {
    float* table = reinterpret_cast<float*>(blob + h.tables_at);
    for (int64_t g = 0; g < s.n_groups; g++) {
      const float m = round_to_half(half_to_float(s.q_scale_max[g]) / 256.0f);
      for (int c = 0; c < 16; c++) table[g * 16 + c] = round_to_half(float((c + 1) * (c + 1)) * m);
    }
  }

  // What prepare() reads: the map of rows and the blocks. Two weights that agree in these can share its result.
  const int64_t identity[] = {h.exact, h.K, h.packed_rows, h.has_row_map};
  h.input_key = hash(0xcbf29ce484222325ull, identity, sizeof identity);
  if (h.has_row_map) {
    int32_t* map = reinterpret_cast<int32_t*>(blob + h.row_map_at);
    int64_t at = 0, row = 0;
    for (int64_t g = 0; g < s.n_groups; g++) {
      const int64_t rows = group_rows_of(s, g);
      for (int64_t i = 0; i < rows; i++, row++) map[at++] = s.perm ? s.perm[row] : int32_t(row);
      while (at % kSlabRows) map[at++] = -1;
    }
    h.input_key = hash(h.input_key, map, h.packed_rows * 4);
  }
  for (int64_t i = 0; i < h.n_sections && !h.exact; i++) {
    const Section& section = sections[i];
    const int32_t width = section.form == kTwoBytes && section.bits <= 8 ? 0 : section.bits;
    const int32_t blocks[] = {section.form, section.slabs, section.blocks_per_group * section.groups,
                              common_zero(h, section), width};
    h.input_key = hash(h.input_key, blocks, sizeof blocks);
  }

  float* bias = reinterpret_cast<float*>(blob + h.bias_at);
  for (int64_t n = 0; n < h.tiles * kColumns; n++) {
    bias[n] = !s.bias || n >= s.out_features ? 0.0f
              : s.bias_is_f32                ? static_cast<const float*>(s.bias)[n]
                                             : half_to_float(static_cast<const uint16_t*>(s.bias)[n]);
  }
  memcpy(blob, &h, sizeof h);
}

static int64_t packed_bytes(const LinearSource& source) {
  Header h;
  return plan(source, h, nullptr) ? align_line(h.total_bytes) : -1;
}

static void pack(const LinearSource& source, uint8_t* blob, int64_t tile_begin, int64_t tile_end) {
  Header h;
  if (!plan(source, h, nullptr)) return;
  if (tile_begin == 0) pack_front(source, h, blob);
  for (int64_t begin = tile_begin; begin < tile_end; begin += kPackTiles) {
    const int64_t end = begin + kPackTiles < tile_end ? begin + kPackTiles : tile_end;
    for (int64_t t = begin; t < end; t++) {
      uint8_t* tile = blob + h.tiles_at + t * h.tile_bytes;
      if (source.kind != LinearKind::kDense) {
        pack_params(source, h, tile, t);
      } else {
        const auto run = source.dense_type == DenseType::kF32   ? pack_dense<uint32_t>
                         : !h.narrow                            ? pack_dense<uint16_t>
                         : source.dense_type == DenseType::kF16 ? pack_narrow<DenseType::kF16>
                                                                : pack_narrow<DenseType::kBF16>;
        run(source, h, tile, t);
      }
    }
    if (source.kind != LinearKind::kDense) pack_codes(source, h, blob, begin, end);
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
