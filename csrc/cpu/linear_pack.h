// Packing: a weight as it lies on disk -> the blob of linear_layout.h. Runs once per load, at memory speed: on disk a
// row of words holds one word of each column, so 16 neighbouring columns are one vector, and every step below is a loop
// over 16 lanes that the compiler vectorizes for the file's instruction set.
#pragma once

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

// Bit planes of a width: `low` bits in the first plane, bits - low in the second.
constexpr int low_plane(int bits) { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }

// Consecutive word rows are read for this many tiles at a time: 512 bytes of each row, so that a cache line fetched
// from the file is used whole and pages are not revisited for each tile.
constexpr int kPackTiles = 8;

struct CodeSource {
  const uint32_t* words;  // (.., N)
  int64_t ld;             // N
  int bits;
};

// 16 words, as an array of its own: with a pointer the compiler would have to fear that it overlaps what is written.
struct Words {
  uint32_t v[kColumns];
};

static EXL2_INLINE Words load_words(const uint32_t* p, int columns) {
  Words words = {};
  if (columns == kColumns) {
    memcpy(words.v, p, sizeof words.v);
  } else {
    for (int c = 0; c < columns; c++) words.v[c] = p[c];
  }
  return words;
}

// Codes of `row` (of the stream that starts at source.words) in byte `byte` of each lane of `quad`.
static EXL2_INLINE void add_row(Words& quad, const CodeSource& source, int64_t row, int64_t column, int columns,
                                int byte) {
  const int64_t bit = row * source.bits;
  const uint32_t* p = source.words + bit / 32 * source.ld + column;
  const int shift = int(bit % 32);
  const uint32_t mask = (1u << source.bits) - 1;
  Words words = load_words(p, columns);
  for (int c = 0; c < kColumns; c++) words.v[c] >>= shift;
  if (shift + source.bits > 32) {  // the code straddles two word rows
    const Words high = load_words(p + source.ld, columns);
    for (int c = 0; c < kColumns; c++) words.v[c] |= high.v[c] << (32 - shift);
  }
  for (int c = 0; c < kColumns; c++) quad.v[c] |= (words.v[c] & mask) << (8 * byte);
}

// One slab of one tile. rows[i]: row of the stream for slab row i, negative for padding.
static inline void pack_slab(uint8_t* out, const CodeSource& source, const int64_t* rows, int64_t column, int columns) {
  Words lines[8] = {};
  const int low = low_plane(source.bits), high = source.bits - low;
  const uint32_t low_mask = 0x01010101u * ((1u << low) - 1), high_mask = 0x01010101u * ((1u << high) - 1);
  for (int j = 0; j < kSlabQuads; j++) {
    Words quad = {};
    for (int r = 0; r < 4; r++) {
      if (rows[4 * j + r] >= 0) add_row(quad, source, rows[4 * j + r], column, columns, r);
    }
    Words& line = lines[j * low / 8];
    for (int c = 0; c < kColumns; c++) line.v[c] |= (quad.v[c] & low_mask) << (j * low % 8);
    if (high == 0) continue;
    Words& second = lines[low + j * high / 8];
    for (int c = 0; c < kColumns; c++) second.v[c] |= (quad.v[c] >> low & high_mask) << (j * high % 8);
  }
  memcpy(out, lines, size_t(source.bits) * kLine);
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
      for (int64_t k = 0; k < kSlabRows; k++) {
        const int64_t i = first + k;
        rows[k] = i >= group_rows               ? -1
                  : s.kind == LinearKind::kExl2 ? i  // stored in packed order, one stream per group
                  : s.perm                      ? s.perm[packed_row + i]
                                                : packed_row + i;
      }
      prefetch_rows(source, rows[0] + kSlabRows, tile_begin * kColumns, tile_end * kColumns);
      for (int64_t t = tile_begin; t < tile_end; t++) {
        const int64_t left = s.N - t * kColumns;
        pack_slab(blob + h.tiles_at + t * h.tile_bytes + code_offset, source, rows, t * kColumns,
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

// (N, K) -> tile of (K, 16). In steps of 64 rows, so that the 16 input streams and the output stay in L1.
template <typename T>
static void pack_dense(const LinearSource& s, const Header& h, T* tile, int64_t t) {
  const T* weight = static_cast<const T*>(s.weight);
  const int64_t used = s.K * kColumns * int64_t(sizeof(T));
  memset(reinterpret_cast<uint8_t*>(tile) + used, 0, size_t(h.tile_bytes - used));
  for (int64_t k0 = 0; k0 < s.K; k0 += 64) {
    const int64_t k1 = k0 + 64 < s.K ? k0 + 64 : s.K;
    for (int64_t c = 0; c < kColumns; c++) {
      const int64_t n = t * kColumns + c;
      for (int64_t k = k0; k < k1; k++) tile[k * kColumns + c] = n < s.N ? weight[n * s.K + k] : T(0);
    }
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
    const int32_t blocks[] = {section.terms, section.slabs, section.blocks_per_group * section.groups,
                              common_zero(h, section)};
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
      } else if (source.dense_type == DenseType::kF32) {
        pack_dense(source, h, reinterpret_cast<uint32_t*>(tile), t);
      } else {
        pack_dense(source, h, reinterpret_cast<uint16_t*>(tile), t);
      }
    }
    if (source.kind != LinearKind::kDense) pack_codes(source, h, blob, begin, end);
  }
}

}  // namespace EXL2_ISA
}  // namespace exl2
