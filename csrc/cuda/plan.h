// What the CUDA library is told about a model: plain structs of device pointers and sizes, filled by
// exl2_tui/core/model/cuda (linear.py, decoder.py). No torch, no CUDA headers.
//
// A packed linear on the GPU: strips, segments, blocks
//   Columns are cut into strips of 32, rows (in packed order) into blocks of 32. One block of one strip is what a warp
//   unpacks at a time: 32 lanes x 32 codes, 128 * bits bytes, laid out by codes.h. Lane l = 4 * g + t holds, for the
//   columns g, g + 8, g + 16 and g + 24 of the strip, the rows 8 t ... 8 t + 7 of the block: its operand of mma.m16n8k16.
//   Up to four blocks of one width are a segment: a Header, the step sizes of the 32 columns, the codes. They belong to one
//   group of rows, or to up to four equal ones: step sizes then come once for each.
//   A strip is a run of segments, so a warp that reads it front to back finds everything it needs in one stream of
//   bytes. All strips of a linear have the same structure.
#pragma once

#include <cstdint>

namespace exl2::cuda {

constexpr int kStripColumns = 32;
constexpr int kBlockRows = 32;
constexpr int kMaxBlocks = 4;  // of a segment
constexpr int kMaxTokens = 8;  // tokens of one decode step: the n dimension of the mma
constexpr int kWarps = 16;     // of a CUDA block of the decode kernel that multiply; they share the rows of a strip

enum Kind : int32_t { kExl2 = 0, kGptq = 1, kDense = 2 };

// The start of a segment in the stream. What follows for each of its groups, before the codes:
//   EXL2: uint16 (8), nibble c of word g is the scale code of column g + 8 c; the step is half((code + 1)^2 * unit)
//   GPTQ: half (32) steps, uint8 (32) zero points;  dense: nothing
struct alignas(16) Header {
  uint32_t first_block;
  uint32_t layout;    // bits, then blocks, then kind, then blocks of a group, 8 bits each: layout_of in unpack.cuh
  uint32_t units[2];  // EXL2: half, of each group, two in a word
};
static_assert(sizeof(Header) == 16);

// A segment as the repacking and the prompt kernels look it up.
struct Segment {
  uint32_t offset16;  // start within the strip, in 16 bytes
  uint32_t first_block;
  uint16_t group;  // the first of its groups
  uint8_t bits;
  uint8_t blocks;
  uint32_t group_blocks;  // of each group but perhaps the last
};
static_assert(sizeof(Segment) == 16);

// Segments [begin, end) of every strip belong to one warp: blocks [first_block, last_block) of the rows. The first segment
// lies at [from, to), in 16 bytes.
struct Share {
  uint16_t begin;
  uint16_t end;
  uint16_t first_block;
  uint16_t last_block;
  uint32_t from;
  uint32_t to;
};

struct Linear {
  const uint8_t* codes;      // (strips, strip_bytes)
  const Segment* segments;   // (n_segments)
  const uint32_t* offsets;   // (n_segments + 1) starts within the strip, in 16 bytes
  const uint16_t* inverse;   // (K) packed row of each input feature; null: identity
  const uint16_t* bias;      // half (out_features); null: none
  int64_t in_features;       // K, rounded up to a multiple of 32
  int64_t out_features;      // columns that exist; the last strip may hold padding
  int64_t strips;
  int64_t strip_bytes;
  int64_t n_segments;
  int64_t kind;
  int64_t offset;            // CUDA block that computes strip 0; strip s goes to block (offset + s) % grid
  Share shares[kWarps];
};
static_assert(sizeof(Linear) == 12 * 8 + kWarps * 16);

enum LayerLinear { kQ, kK, kV, kO, kGate, kUp, kDown, kLinears };

struct Layer {
  const uint16_t* attention_norm;  // half (C)
  const uint16_t* mlp_norm;        // half (C)
  const uint16_t* q_norm;          // half (H or 1, D) or null
  const uint16_t* k_norm;
  int64_t q_norm_stride;           // D if every head has its own weights, else 0
  int64_t k_norm_stride;
  int64_t window;                  // tokens a token can look at, itself included; 0: all
  void* keys;                      // (G, capacity, D), as half or as codes: cache.cuh
  void* values;
  uint16_t* key_units;             // half (G, capacity, blocks of 32); null with 16 bits
  uint16_t* value_units;
};

// What CUDA blocks hand each other during a step (exchange.cuh).
struct alignas(8) Packet {
  float value;
  uint32_t stamp;
};
using HalfPacket = uint32_t;  // half, then 16 bits of stamp
// A float without its last byte, where the stamp is: of a residual, which all CUDA blocks read whole and often.
struct ShortPacket {
  uint32_t word;
};
constexpr int kMostLayers = 254;  // of one GPU: stamps of one byte

// A whole model, or the layers that one GPU of several holds: vocab 0 if the head is on another.
struct Model {
  int64_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, rope_dim, capacity;
  double eps;
  double attention_scale;
  const uint16_t* embedding;    // half (V, C); null: the residual is there already (a later part of a split model)
  const uint16_t* final_norm;   // half (C)
  const float* cosines;         // (capacity, rope_dim / 2)
  const float* sines;
  const int32_t* state;         // [0]: tokens in the cache, [1 + m]: id of new token m
  float* residual;              // (8, C): comes in where there is no embedding, goes out where there is no head
  ShortPacket* entering;        // (8, C): the residual before a layer
  ShortPacket* middle;          // (8, C): the residual after its attention
  Packet* qkv;                  // (8, (H + 2 G) D)
  HalfPacket* attended;         // (8, H D), in the packed order of o
  HalfPacket* activated;        // (8, F), in the packed order of down
  Packet* partial;              // (8 parts H, D + 2): attention of one part of the sequence, its maximum and sum
  float* logits;                // (8, V)
  const Linear* linears;        // (layers, 7), then the head; in the order of LayerLinear
  const Layer* layer;           // (layers)
  uint64_t* arrivals;           // (2, 16): of CUDA blocks after their products and after their attention, in all steps
  int64_t grid;                 // CUDA blocks of the decode kernel
  int64_t slot_bytes;           // the largest segment of the model
  int64_t widest_input;         // in_features of the widest linear
  int64_t key_bits;             // of the cache, with value_bits: 16 and 16, 8 and 8, 8 and 4, or 4 and 4
  int64_t value_bits;
  int64_t feeders;              // 1 or 2: feed.cuh
};

}  // namespace exl2::cuda
