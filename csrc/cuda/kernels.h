// What the CUDA kernels offer to the binding. No torch.
#pragma once

#include <cuda_runtime.h>

#include "cpu/quant_tasks.h"
#include "plan.h"
#include "prompt_element.h"

namespace exl2::cuda {

// A weight as it lies in its file, on the GPU. rows = K, columns = N as stored.
struct RepackSource {
  const void* words;           // EXL2 q_weight, GPTQ qweight: uint32, row stride `columns`; dense: half (N, K)
  const int32_t* first_words;  // EXL2: (blocks) word row where each block of 32 rows starts
  const int32_t* perm;         // GPTQ with act-order: original row of each packed row; else null
  const void* scales;          // EXL2: uint16 (strips, n_groups, 8), GPTQ: half (strips, n_groups, 32), as behind Header
  const void* groups;          // EXL2: half (n_groups), scale_max / 256; GPTQ: uint8 (strips, n_groups, 32) zero points
  int64_t n_groups;
  int64_t rows;
  int64_t columns;
};

void repack(const RepackSource& source, const Linear& packed, uint8_t* codes, cudaStream_t stream);
void dequantize(const Linear& weight, uint16_t* out, cudaStream_t stream);

// Whether decode_step can run on the current device.
bool has_step();

// Appends the first `tokens` (1..8) ids in model.state to the cache; their logits go to model.logits. Returns how many
// it took: fewer if the activations of all do not fit into shared memory.
int decode_step(const Model& model, int64_t gate_strips, int tokens, cudaStream_t stream);

constexpr int kMostTop = 1024;

// Rows times a packed linear, plus its bias. Runs where decode_step cannot.
struct PlainProduct {
  const uint16_t* rows;  // half (count, in_features), in the packed order of the weight's rows, 16-byte aligned
  int64_t count;         // 1..8
  uint16_t* halves;      // half (count, out_features), or null:
  float* floats;         // then the same as floats
};

void plain_product(const Linear& weight, const PlainProduct& product, cudaStream_t stream);

struct Mail;

// The k <= kMostTop largest of `count` >= k logits and their ids, largest first, to memory that the GPU can reach. mail: is
// told then that the step `number` has answered (mail.cuh); may be null.
void top_logits(const float* logits, int64_t count, int64_t k, int64_t* ids, float* values, cudaStream_t stream,
                Mail* mail = nullptr, uint64_t number = 0);

// The quantizer's tasks over all their columns, pointers on the GPU. costs (maxima, columns): of the codes chosen.
void quant_round(const RoundTask& task, cudaStream_t stream);
void quant_search(const SearchTask& task, float* costs, cudaStream_t stream);

// Keys or values of `tokens` tokens behind `start`, between rows as the model has them and a coded cache (cache.cuh).
struct CacheTask {
  uint16_t* rows;   // half (G, T, D); only read by cache_write
  void* codes;      // (G, capacity, D * bits / 8) bytes
  uint16_t* units;  // half (G, capacity, blocks of 32)
  int64_t heads, tokens, head_dim, capacity, start, bits;
};

void cache_write(const CacheTask& task, cudaStream_t stream);
void cache_read(const CacheTask& task, cudaStream_t stream);

// Inputs of a linear, half (tokens, width), in the packed order of its rows.
struct PackedRows {
  uint16_t* out;
  const int32_t* perm;  // (width) input feature of each packed row; null: as they are, then zeros
  int64_t width;        // a multiple of 32
  int64_t tokens;       // at least 1
};

// Rope, and keys and values into the cache. task.tokens: at least 1.
void prompt_rope(const RopeTask& task, cudaStream_t stream);
// residual (tokens, hidden) += delta (half, may be null), then RMSNorm. hidden: a multiple of 4.
void prompt_norm(float* residual, const uint16_t* delta, const uint16_t* weight, int64_t hidden, float eps,
                 const PackedRows& rows, cudaStream_t stream);
// x: half (tokens, size).
void prompt_order(const uint16_t* x, int64_t size, const PackedRows& rows, cudaStream_t stream);
// silu(gate) * up, both half (tokens, size).
void prompt_silu(const uint16_t* gate, const uint16_t* up, int64_t size, const PackedRows& rows, cudaStream_t stream);

}  // namespace exl2::cuda
