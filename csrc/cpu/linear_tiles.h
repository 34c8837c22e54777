// Activations for the tile unit (tile_unit.h): 16 tokens x 64 rows of one byte each, a tile after the other, as
// products of a block take them. For each block of 16 tokens:
//
//   for each block of rows: the tiles of its first term, then those of its second | for each block of rows: TileMeta
//
// Rows that a term lacks to a whole tile are 0. Tokens that there are not are whatever was there: they have sums of
// their own, which nobody looks at.
//
// Codes are less their zero point here, as signed bytes, and so is what pairs share, less 128 (linear_prompt_tiles.h).
#pragma once

#include "linear_quantize.h"
#include "tile_unit.h"

namespace exl2 {
namespace EXL2_ISA {

struct TileMeta {
  float scale[kTileTokens];
  int32_t sum[kTileTokens];  // what the sums of products are corrected with
};

// Tiles of each term of a block.
static inline int tiles_of_term(const Section& s, int term) {
  const int rows = s.slabs * kSlabRows / (term == 1 && s.form == kPairs ? 2 : 1);
  return (rows + kTileRows - 1) / kTileRows;
}

static inline int tiles_of_block(const Section& s) {
  return tiles_of_term(s, 0) + (terms_of(Form(s.form)) == 2 ? tiles_of_term(s, 1) : 0);
}

// Bytes of the blocks before this section, for each block of tokens; of all blocks if it is the end.
static inline int64_t tiles_before(const uint8_t* blob, const Section* section) {
  int64_t tiles = 0;
  for (const Section* s = sections_of(blob); s < section; s++) {
    tiles += int64_t(s->blocks_per_group) * s->groups * tiles_of_block(*s);
  }
  return tiles * kTileBytes;
}

static inline int64_t all_tiles(const uint8_t* blob) {
  return tiles_before(blob, sections_of(blob) + header_of(blob).n_sections);
}

static inline int64_t tiled_input_bytes(const uint8_t* blob) {
  return all_tiles(blob) + header_of(blob).n_blocks * int64_t(sizeof(TileMeta));
}

// Where the quads of a token's block lie: a quarter of a line in each of its tiles.
struct InTiles {
  int32_t* first;
  int32_t& operator[](int64_t quad) const { return first[quad / kTileQuads * (kTileBytes / 4) + quad % kTileQuads]; }
};

// Where codes are not less their zero point, but less 128: how many times the sum of their term's activations is
// missing, since 128 is not `zero` times the codes in it. (Of EXL2 only at 4 bits: -8.)
constexpr int tile_correction(int bits, Form form, int zero) {
  return form == kPairs ? 128 - zero * codes_in_term(bits, form, 1) : bits == 8 ? 128 - zero : 0;
}

// Where blocks of activations go that are multiplied by tiles.
struct Tiles {
  const uint8_t* blob;
  uint8_t* base;

  // Block number `index` of section s, for token m.
  void put(const Header& h, const Section& s, int64_t index, int64_t m, const float* x) const {
    const Form form = Form(s.form);
    uint8_t* tile = base + tiles_before(blob, &s) + index * tiles_of_block(s) * kTileBytes;
    TileMeta& meta = reinterpret_cast<TileMeta*>(base + all_tiles(blob))[s.first_block + index];
    const auto quads_of = [&](int first, int64_t quads, int tiles) {
      const InTiles found{reinterpret_cast<int32_t*>(tile + first * kTileBytes + m * kLine)};
      for (int64_t i = quads; i < tiles * kTileQuads; i++) found[i] = 0;
      return found;
    };
    const int quads = s.slabs * kSlabQuads, tiles = tiles_of_term(s, 0);
    const InTiles own = quads_of(0, quads, tiles);
    const InTiles second =
        terms_of(form) == 1 ? own : quads_of(tiles, form == kPairs ? quads / 2 : quads, tiles_of_term(s, 1));
    BlockSums sums;
    meta.scale[m] = quantize_block(h, s, x, own, second, false, sums);
    I sum = sums.term[1];
    if (form == kTwoBytes) sum = Lanes::add_i(sum, Lanes::shift_left(sums.term[0], term_shift(s.bits, form)));
    const int times = h.kind == int32_t(LinearKind::kExl2) ? tile_correction(s.bits, form, common_zero(h, s)) : 1;
    meta.sum[m] = times * Lanes::reduce_add_i(sum);
  }
};

}  // namespace EXL2_ISA
}  // namespace exl2
