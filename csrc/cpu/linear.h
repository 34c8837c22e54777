// The seam between the step (csrc/cpu/step.cpp) and the matmul kernels: y = x W (+ bias), W packed once at load.
//
// A packed linear is one contiguous, 64-byte aligned blob that starts with a LinearHeader; what follows is private to
// the kernels of one instruction set. Columns are cut into tiles; a caller spreads tiles over its threads.
// Knows nothing of torch, threads or models.
#pragma once

#include <cstdint>

namespace exl2 {

enum class LinearKind : int32_t { kExl2 = 0, kGptq = 1, kDense = 2 };
enum class DenseType : int32_t { kF16 = 0, kBF16 = 1, kF32 = 2 };

// What a checkpoint holds for one linear, as raw pointers. Unused pointers are null.
struct LinearSource {
  LinearKind kind;
  DenseType dense_type;  // of `weight`
  bool exact;            // keep activations in float32 instead of quantizing them to 8 bits
  int64_t K;             // in_features
  int64_t N;             // columns as stored (EXL2 pads to a multiple of 32)
  int64_t out_features;  // columns that exist; multiply() writes no other
  // EXL2, spec/exl2-format.md section 2
  const uint32_t* q_weight;   // (R, N)
  const uint32_t* q_scale;    // (groups, N / 8)
  const uint16_t* q_scale_max;  // (groups) float16
  const uint16_t* q_groups;   // (2 * groups)
  int64_t groups;
  // GPTQ, spec/gptq-format.md
  const uint32_t* qweight;  // (K * bits / 32, N)
  const uint8_t* zeros;     // (groups, N) integer zero points as applied
  const uint16_t* scales;   // (groups, N) float16
  int32_t bits;
  int64_t group_size;       // rows per group in permuted order
  // both: packed row k holds input feature perm[k]; null is the identity
  const int32_t* perm;
  // float
  const void* weight;  // (out_features, K)
  // all kinds: (out_features) float32, or null; multiply() adds it
  const float* bias;
};

// First bytes of every blob. 64 bytes.
struct LinearHeader {
  uint32_t magic;         // kLinearMagic
  uint32_t isa;           // which table packed it (Isa in isa.h); another table must refuse it
  int64_t K;
  int64_t N;              // out_features
  int64_t bytes;          // of the whole blob
  int64_t tiles;          // column tiles
  int64_t tile_columns;   // columns per tile; the last one may be partly out of range
  uint64_t input_key;     // linears with equal keys share the result of prepare(), e.g. q, k, v
  uint32_t layout;        // private
  uint32_t flags;         // private
};
static_assert(sizeof(LinearHeader) == 64, "the payload starts on a cache line");

constexpr uint32_t kLinearMagic = 0x4c32584cu;

inline const LinearHeader& linear_header(const uint8_t* blob) {
  return *reinterpret_cast<const LinearHeader*>(blob);
}

struct LinearKernels {
  // Bytes of the blob for `source`; 0 when this layout is not supported.
  int64_t (*packed_bytes)(const LinearSource& source);
  // Writes the header and tables (tile_begin == 0) and the tiles [tile_begin, tile_end).
  void (*pack)(const LinearSource& source, uint8_t* blob, int64_t tile_begin, int64_t tile_end);
  int64_t (*tiles)(const LinearSource& source);
  // Bytes of scratch that prepare() fills for M rows; a multiple of 64.
  int64_t (*scratch_bytes)(const uint8_t* blob, int64_t M);
  // Turns x (M, K), row stride ldx, into the kernel's own form. Called once per part in [0, parts), in any order, by
  // any threads; all parts must be done before multiply().
  void (*prepare)(const uint8_t* blob, const float* x, int64_t M, int64_t ldx, uint8_t* scratch, int part, int parts);
  // out (M, out_features), row stride ldo: overwritten, or added to when `accumulate`, for the columns of the tiles.
  void (*multiply)(const uint8_t* blob, const uint8_t* scratch, int64_t M, float* out, int64_t ldo, bool accumulate,
                   int64_t tile_begin, int64_t tile_end);
};

const LinearKernels* linear_kernels_generic();
const LinearKernels* linear_kernels_avx2();    // null when compiled for another architecture
const LinearKernels* linear_kernels_avx512();

}  // namespace exl2
