// What the CUDA library is told about a model: plain structs of device pointers and sizes, filled by
// exl2_tui/core/model/cuda.py (as rows of int64) and passed to the kernels by value. No torch, no CUDA headers.
//
// A packed linear on the GPU ("strips and blocks")
//   Columns are cut into strips of 32, rows (in packed order) into blocks of 32. One block of one strip is what one warp
//   unpacks at a time: 32 lanes x 32 codes, 128 * bits bytes, laid out by csrc/cuda/codes.h so that the lane finds the
//   operand of mma.m16n8k16 with one to four coalesced loads. Lane l = 4 * g + t holds, for the columns g, g + 8, g + 16
//   and g + 24 of the strip, the rows 8 t ... 8 t + 7 of the block.
//   The blocks of a strip follow one another; `blocks` says where each starts, how wide its codes are and which group
//   of rows it belongs to. All strips of a linear have the same structure.
#pragma once

#include <cstdint>

namespace exl2::cuda {

constexpr int kStripColumns = 32;
constexpr int kBlockRows = 32;
constexpr int kMaxTokens = 8;  // tokens of one decode step: the n dimension of the mma

enum Kind : int64_t { kExl2 = 0, kGptq = 1, kDense = 2 };

// One block of rows. group_end: the group's scale is due after this block.
struct Block {
  uint32_t offset16;  // start within the strip, in 16 bytes
  uint16_t group;
  uint8_t bits;
  uint8_t group_end;
};
static_assert(sizeof(Block) == 8);

struct Linear {
  const uint8_t* codes;      // (strips, strip_bytes)
  const Block* blocks;       // (n_blocks)
  const void* scales;        // EXL2: uint16 (strips, G, 8), nibble c of word g is the scale code of column g + 8 c
                             // GPTQ: half (strips, G, 32); dense: null
  const void* groups;        // EXL2: half (G), scale_max / 256;  GPTQ: uint8 (strips, G, 32) zero points;  dense: null
  const int32_t* inverse;    // (K) packed row of each input feature; null: identity
  const uint16_t* bias;      // half (out_features); null: none
  int64_t in_features;       // K, a multiple of 32 (dense: rounded up)
  int64_t out_features;      // columns that exist; the last strip may hold padding
  int64_t strips;
  int64_t strip_bytes;
  int64_t n_blocks;
  int64_t n_groups;
  int64_t max_bits;
  int64_t zero_shift;        // GPTQ: 2^(bits-1), what unpacking subtracts; 0 otherwise
  int64_t kind;
};

struct Layer {
  Linear q, k, v, o, gate, up, down;
  const uint16_t* attention_norm;  // half (C)
  const uint16_t* mlp_norm;        // half (C)
  const uint16_t* q_norm;          // half (H or 1, D) or null
  const uint16_t* k_norm;
  int64_t q_norm_stride;           // D if every head has its own weights, else 0
  int64_t k_norm_stride;
  int64_t window;                  // tokens a token can look at, itself included; 0: all
  uint16_t* keys;                  // half (G, capacity, D)
  uint16_t* values;
};

struct Model {
  int64_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, rope_dim, capacity;
  double eps;
  double attention_scale;
  const void* embedding;        // half (V, C)
  const uint16_t* final_norm;   // half (C)
  const float* cosines;         // (capacity, rope_dim / 2)
  const float* sines;
  const int32_t* state;         // [0]: tokens in the cache, [1 + m]: id of new token m
  float* residual;              // (8, C)
  float* qkv;                   // (8, (H + 2 G) D)
  uint16_t* attended;           // half (8, H D), in the packed order of o
  uint16_t* activated;          // half (8, F), in the packed order of down
  float* partial;               // (8, H, splits, D + 2): attention of one part of the sequence, its maximum and sum
  int32_t* arrived;             // (8, H): parts finished; zero between steps
  float* logits;                // (8, V)
  int64_t splits;
  int64_t overlap;              // 1: programmatic dependent launch (sm_90 and newer)
};

}  // namespace exl2::cuda
