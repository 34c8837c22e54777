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

// Appends the first `tokens` (1..8) ids in model.state to the cache; their logits go to model.logits. Returns how many
// it took: fewer if the activations of all do not fit into shared memory.
int decode_step(const Model& model, int64_t gate_strips, int tokens, cudaStream_t stream);

// The quantizer's tasks over all their columns, pointers on the GPU. costs (maxima, columns): of the codes chosen.
void quant_round(const RoundTask& task, cudaStream_t stream);
void quant_search(const SearchTask& task, float* costs, cudaStream_t stream);

// Rope, and keys and values into the cache.
void prompt_rope(const RopeTask& task, cudaStream_t stream);
// gate = silu(gate) * up, both half (count).
void prompt_silu(uint16_t* gate, const uint16_t* up, int64_t count, cudaStream_t stream);

}  // namespace exl2::cuda
