// Linear layers on the CPU: out = x @ dequant(weight) + bias.   (Interface; no torch, no allocation, no threads here.)
//
// A weight is repacked once, at load, into one contiguous, self-describing, 64-byte aligned blob that every instruction
// set of this machine family reads (linear_layout.h describes the bytes). A product is then two steps:
//
//   prepare    activations -> scratch: gathered by the weight's row permutation and, on the fast path, quantized to
//              one or two bytes, with a scale per block of rows. Linears with equal input_key() read the same scratch
//              (q, k and v; gate and up).
//   multiply   scratch x tiles [tile_begin, tile_end) -> columns 16*tile_begin ... of out. Tiles are independent:
//              threads take ranges of tiles.
//
// Shape letters: M rows of x (tokens), K input features, N output features as stored (padded), G groups.
#pragma once

#include <cstddef>
#include <cstdint>

namespace exl2 {

enum class LinearKind : int32_t { kExl2 = 0, kGptq = 1, kDense = 2 };
enum class DenseType : int32_t { kF16 = 0, kBF16 = 1, kF32 = 2 };

// A weight as it lies on disk. Pointers are borrowed during pack() only. The caller has validated shapes and ranges
// (core/formats); pack() trusts them.
struct LinearSource {
  LinearKind kind = LinearKind::kDense;
  int64_t K = 0;             // input features (logical rows)
  int64_t N = 0;             // columns stored
  int64_t out_features = 0;  // columns written by multiply (<= N)
  bool exact = false;        // fp32 activations and accumulation instead of integer activations

  // Row permutation of the quantized kinds: packed row k holds input feature perm[k]. int32 (K); null: identity.
  const int32_t* perm = nullptr;

  // EXL2 (spec/exl2-format.md)
  const uint32_t* q_weight = nullptr;     // (R, N) codes
  const uint32_t* q_scale = nullptr;      // (G, N/8) 4-bit scale codes
  const uint16_t* q_scale_max = nullptr;  // (G) fp16 bits
  const uint16_t* q_groups = nullptr;     // (2G) bits, first word row
  int64_t q_weight_rows = 0;              // R

  // GPTQ (spec/gptq-format.md). Rows of group g are the packed rows after those of groups 0..g-1.
  const uint32_t* qweight = nullptr;    // (K*bits/32, N) codes, rows in original order
  const int32_t* zeros = nullptr;       // (G, N) true zero points, 0..2^bits
  const uint16_t* scales = nullptr;     // (G, N) fp16 bits
  const int32_t* group_rows = nullptr;  // (G) rows of each group, sum K; null: group_size rows each, last may be short
  int64_t group_size = 0;
  int32_t bits = 0;  // 2, 3, 4, 8

  int64_t n_groups = 0;  // G, both quantized kinds

  // Dense
  const void* weight = nullptr;  // (N, K) row-major, as Hugging Face stores it
  DenseType dense_type = DenseType::kF16;

  // Bias of the output, null if there is none; fp16 bits or float, out_features values.
  const void* bias = nullptr;
  bool bias_is_f32 = false;
};

// One instruction set's implementation. All pointers to blobs and scratch are 64-byte aligned.
struct LinearKernels {
  // Size of the blob in bytes, a multiple of 64.
  int64_t (*packed_bytes)(const LinearSource& source);
  // Writes tiles [tile_begin, tile_end) and, with tile_begin == 0, everything in front of the tiles. Disjoint ranges
  // may be packed concurrently; the blob need not be cleared before.
  void (*pack)(const LinearSource& source, uint8_t* blob, int64_t tile_begin, int64_t tile_end);
  // Tiles of 16 columns.
  int64_t (*tiles)(const uint8_t* blob);
  // Where a tile lies, for whoever asks for it ahead; behind the last one, where that ends.
  const uint8_t* (*tile_data)(const uint8_t* blob, int64_t tile);
  // Bytes of scratch that prepare() writes for M rows, or for fewer.
  int64_t (*scratch_bytes)(const uint8_t* blob, int64_t M);
  // Part `part` of `parts` equal shares of the work; all parts must be done before multiply() starts.
  // x (M, K) float32 with row stride ldx (elements).
  void (*prepare)(const uint8_t* blob, const float* x, int64_t M, int64_t ldx, uint8_t* scratch, int part, int parts);
  // out (M, out_features) float32 with row stride ldo (elements); overwritten in the columns of the tiles.
  void (*multiply)(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo, int64_t tile_begin,
                   int64_t tile_end);
  // Equal keys (and equal M): one prepare() serves both linears.
  uint64_t (*input_key)(const uint8_t* blob);
};

constexpr int64_t kLinearTileColumns = 16;

const LinearKernels* linear_kernels_generic();
const LinearKernels* linear_kernels_avx2();    // x86-64 builds only
const LinearKernels* linear_kernels_avx512();  // x86-64 builds only
const LinearKernels* linear_kernels_plain_avx512();
const LinearKernels* linear_kernels_amx();  // where the compiler knows AMX (EXL2_HAS_AMX)

}  // namespace exl2
