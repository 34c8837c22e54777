// What the binding files of the CPU library share: checks from tensors to kernel structs, and the ops that are not in
// bindings_cpu.cpp itself.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "checks.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/model.h"
#include "cpu/sampler.h"

namespace exl2 {

Isa checked_isa(int64_t isa);
FloatType float_type(const Tensor& x);
// The caches of `layers` x `kv_heads` heads; capacity follows from the size of k. Empty scales for an fp16 cache.
CacheMemory cache_memory(const Tensor& k, const Tensor& v, const Tensor& k_scale, const Tensor& v_scale, int64_t layers,
                         int64_t kv_heads, int64_t D);

// bindings_linear_cpu.cpp
const LinearKernels* linear_kernels_of(Isa isa);
int64_t linear_bytes(int64_t kind, std::vector<int64_t> sizes, std::vector<Tensor> tensors, int64_t isa);
void linear_pack(int64_t kind, std::vector<int64_t> sizes, std::vector<Tensor> tensors, const Tensor& blob, int64_t isa,
                 int64_t threads);
void linear_multiply(const Tensor& x, const Tensor& blob, int64_t out_features, const Tensor& out, int64_t isa,
                     int64_t threads);

// bindings_memory_cpu.cpp
void large_pages(const Tensor& memory);
double read_memory(const Tensor& buffer, int64_t threads, int64_t isa);
void share_spare_core(int64_t until, int64_t working);

// bindings_model_cpu.cpp
int64_t model_create(std::vector<int64_t> sizes, double eps, const Tensor& embedding, std::vector<int64_t> place,
                     std::vector<Tensor> shared, std::vector<Tensor> layers, std::vector<int64_t> windows, int64_t isa,
                     int64_t chunk, int64_t threads);
int64_t model_scratch_bytes(int64_t handle);
int64_t model_step(int64_t handle, std::vector<int64_t> ids, int64_t position, const Tensor& k, const Tensor& v,
                   const Tensor& k_scale, const Tensor& v_scale, const Tensor& cos, const Tensor& sin,
                   const Tensor& logits, bool all_logits, int64_t cancel);
int64_t model_write(int64_t handle, int64_t token, int64_t position, const Tensor& k, const Tensor& v,
                    const Tensor& k_scale, const Tensor& v_scale, const Tensor& cos, const Tensor& sin,
                    const Tensor& logits, int64_t vocab, const Tensor& seen, const Tensor& counts, int64_t distinct,
                    bool uses_history, const Tensor& settings, const Tensor& uniforms, int64_t used,
                    std::vector<int64_t> stop_ids, double seconds, int64_t cancel, const Tensor& tokens);
void model_close(int64_t handle);

// bindings_sampler_cpu.cpp
int64_t sample(const Tensor& logits, const Tensor& ids, bool complete, int64_t vocab, const Tensor& seen,
               const Tensor& counts, int64_t distinct, const Tensor& settings, double uniform, int64_t isa);

}  // namespace exl2
