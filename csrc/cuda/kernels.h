// What the CUDA kernels offer to the binding and to each other. No torch.
#pragma once

#include <cuda_runtime.h>

#include "plan.h"

namespace exl2::cuda {

// A weight as it lies in its file, on the GPU. rows = K, columns = N as stored.
struct RepackSource {
  const void* words;           // EXL2 q_weight, GPTQ qweight: uint32, row stride `columns`; dense: half (N, K)
  const int32_t* first_words;  // EXL2: (n_blocks) word row where each block of 32 rows starts
  const int32_t* perm;         // GPTQ with act-order: original row of each packed row; else null
  int64_t rows;
  int64_t columns;
};

void repack(const RepackSource& source, const Linear& packed, uint8_t* codes, cudaStream_t stream);
void dequantize(const Linear& weight, uint16_t* out, cudaStream_t stream);

// Appends the `tokens` (1..8) ids in model.state to the cache; logits of all of them go to model.logits.
void decode_step(const Model& model, const Layer* layers, const Linear& head, int tokens, cudaStream_t stream);

// The parts of a step. `tokens` rows each.
void embed(const Model& model, int tokens, cudaStream_t stream);
void attention_input(const Model& model, const Layer& layer, int tokens, cudaStream_t stream);   // residual -> qkv
void attention(const Model& model, const Layer& layer, int tokens, cudaStream_t stream);         // qkv -> attended
void attention_output(const Model& model, const Layer& layer, int tokens, cudaStream_t stream);  // residual += o
void mlp_input(const Model& model, const Layer& layer, int tokens, cudaStream_t stream);         // residual -> activated
void mlp_output(const Model& model, const Layer& layer, int tokens, cudaStream_t stream);        // residual += down
void logits(const Model& model, const Linear& head, int tokens, cudaStream_t stream);

}  // namespace exl2::cuda
