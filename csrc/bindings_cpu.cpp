// The ops behind exl2_tui/core/ops, registered with torch's dispatcher through the stable ABI: one binary for every
// torch from 2.10 and every Python. Only the binding files of the CPU library include torch headers. `isa` is a value
// of isa.h.
#include "bindings_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "checks.h"
#include "cpu/kernels.h"

namespace exl2 {

namespace {

const Kernels& kernels(int64_t isa) { return *kernels_of(checked_isa(isa)); }

// Rows and row length of a tensor whose last dimension is the row.
int64_t row_size(const Tensor& x) { return x.size(x.dim() - 1); }
int64_t row_count(const Tensor& x) { return x.numel() == 0 ? 0 : x.numel() / row_size(x); }

// Bit i: instruction set i can run here.
int64_t available_isas() {
  int64_t mask = 0;
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa_available(static_cast<Isa>(i))) mask |= int64_t{1} << i;
  }
  return mask;
}

void rms_norm(const Tensor& x, const Tensor& weight, double eps, const Tensor& out, int64_t isa) {
  const int64_t n = row_size(x), rows = row_count(x);
  const float* from = data_of<const float>(x, ScalarType::Float, 0, "x");
  const float* scale = data_of<const float>(weight, ScalarType::Float, n, "weight");
  float* to = data_of<float>(out, ScalarType::Float, x.numel(), "out");
  for (int64_t row = 0; row < rows; ++row) {
    kernels(isa).rms_norm(from + row * n, scale, static_cast<float>(eps), n, to + row * n);
  }
}

// x (T, heads, D); cos and sin (T, half)
void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t isa) {
  const int64_t T = x.size(0), heads = x.size(1), D = x.size(2), half = row_size(cos);
  STD_TORCH_CHECK(2 * half <= D, "rope: more dimensions turn than a head has");
  float* data = data_of<float>(x, ScalarType::Float, 0, "x");
  const float* c = data_of<const float>(cos, ScalarType::Float, T * half, "cos");
  const float* s = data_of<const float>(sin, ScalarType::Float, T * half, "sin");
  for (int64_t row = 0; row < T * heads; ++row) {
    kernels(isa).rope(data + row * D, half, c + row / heads * half, s + row / heads * half);
  }
}

void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out, int64_t isa) {
  const int64_t n = gate.numel();
  kernels(isa).silu_mul(data_of<const float>(gate, ScalarType::Float, n, "gate"),
                        data_of<const float>(up, ScalarType::Float, n, "up"), n,
                        data_of<float>(out, ScalarType::Float, n, "out"));
}

void exp(const Tensor& x, const Tensor& out, int64_t isa) {
  const int64_t n = x.numel();
  kernels(isa).exp(data_of<const float>(x, ScalarType::Float, n, "x"), n,
                   data_of<float>(out, ScalarType::Float, n, "out"));
}

void to_half(const Tensor& x, const Tensor& out, int64_t isa) {
  const int64_t n = x.numel();
  kernels(isa).to_half(data_of<const float>(x, ScalarType::Float, n, "x"), n,
                       data_of<uint16_t>(out, ScalarType::Half, n, "out"));
}

void to_float(const Tensor& x, const Tensor& out, int64_t isa) {
  const int64_t n = x.numel();
  const FloatType type = float_type(x);
  check_tensor(x, x.scalar_type(), "x");
  kernels(isa).to_float(type, x.data_ptr(), n, data_of<float>(out, ScalarType::Float, n, "out"));
}

// key and value (T, G, D) of tokens position ... position + T - 1 into one layer's cache
void cache_store(const Tensor& key, const Tensor& value, int64_t position, const Tensor& k, const Tensor& v,
                 const Tensor& k_scale, const Tensor& v_scale, int64_t isa) {
  const int64_t T = key.size(0), G = key.size(1), D = key.size(2);
  const CacheMemory cache = cache_memory(k, v, k_scale, v_scale, 1, G, D);
  STD_TORCH_CHECK(position >= 0 && position + T <= cache.capacity, "cache_store: behind the end");
  const float* keys = data_of<const float>(key, ScalarType::Float, T * G * D, "key");
  const float* values = data_of<const float>(value, ScalarType::Float, T * G * D, "value");
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t g = 0; g < G; ++g) {
      const int64_t row = (t * G + g) * D;
      kernels(isa).store_token(cache_head(cache, D, g), position + t, keys + row, values + row);
    }
  }
}

// q (T, H, D), scaled; one layer's cache that holds the tokens already; window 0: none
void attention(const Tensor& q, int64_t kv_heads, int64_t position, int64_t window, const Tensor& k, const Tensor& v,
               const Tensor& k_scale, const Tensor& v_scale, const Tensor& out, int64_t isa) {
  const int64_t T = q.size(0), H = q.size(1), D = q.size(2), per_kv = H / kv_heads;
  const CacheMemory cache = cache_memory(k, v, k_scale, v_scale, 1, kv_heads, D);
  STD_TORCH_CHECK(position >= 0 && position + T <= cache.capacity, "attention: behind the end of the cache");
  const float* queries = data_of<const float>(q, ScalarType::Float, T * H * D, "q");
  float* mixed = data_of<float>(out, ScalarType::Float, T * H * D, "out");
  for (int64_t g = 0; g < kv_heads; ++g) {
    AttentionTask task;
    task.cache = cache_head(cache, D, g);
    task.q = queries + g * per_kv * D;
    task.q_stride = H * D;
    task.out = mixed + g * per_kv * D;
    task.out_stride = H * D;
    task.tokens = T;
    task.heads = per_kv;
    task.position = position;
    task.window = window;
    kernels(isa).attention(task);
  }
}

}  // namespace

Isa checked_isa(int64_t isa) {
  STD_TORCH_CHECK(isa >= 0 && isa < kIsaCount && isa_available(static_cast<Isa>(isa)),
                  "this machine does not run instruction set ", isa);
  return static_cast<Isa>(isa);
}

FloatType float_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half: return FloatType::kF16;
    case ScalarType::BFloat16: return FloatType::kBF16;
    case ScalarType::Float: return FloatType::kF32;
    default: STD_TORCH_CHECK(false, "expected float16, bfloat16 or float32"); return FloatType::kF32;
  }
}

CacheMemory cache_memory(const Tensor& k, const Tensor& v, const Tensor& k_scale, const Tensor& v_scale, int64_t layers,
                         int64_t kv_heads, int64_t D) {
  STD_TORCH_CHECK(D >= 1 && D <= kMaxHeadDim, "heads of ", D, " dimensions are not supported");
  const int64_t Dp = padded_head_dim(D), heads = layers * kv_heads;
  CacheMemory cache;
  cache.q8 = k.scalar_type() == ScalarType::Char;
  cache.capacity = k.numel() / (heads * D);
  STD_TORCH_CHECK(cache.capacity % kTileTokens == 0, "the cache does not hold whole tiles");
  const ScalarType type = cache.q8 ? ScalarType::Char : ScalarType::Half;
  const int64_t scales = cache.q8 ? heads * cache.capacity * scale_blocks(D) : 0;
  cache.k = data_of<uint8_t>(k, type, heads * cache.capacity * D, "k");
  cache.v = data_of<uint8_t>(v, type, heads * cache.capacity * Dp, "v");
  cache.k_scale = data_or_null<uint16_t>(k_scale, ScalarType::Half, scales, "k_scale");
  cache.v_scale = data_or_null<uint16_t>(v_scale, ScalarType::Half, scales, "v_scale");
  STD_TORCH_CHECK(!cache.q8 || (cache.k_scale != nullptr && cache.v_scale != nullptr), "a q8 cache needs scales");
  return cache;
}

}  // namespace exl2

STABLE_TORCH_LIBRARY(exl2_cpu, m) {
  m.def("available_isas() -> int");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out, int isa) -> ()");
  m.def("rope(Tensor(a!) x, Tensor cos, Tensor sin, int isa) -> ()");
  m.def("silu_mul(Tensor gate, Tensor up, Tensor(a!) out, int isa) -> ()");
  m.def("exp(Tensor x, Tensor(a!) out, int isa) -> ()");
  m.def("to_half(Tensor x, Tensor(a!) out, int isa) -> ()");
  m.def("to_float(Tensor x, Tensor(a!) out, int isa) -> ()");
  m.def(
      "cache_store(Tensor key, Tensor value, int position, Tensor(a!) k, Tensor(b!) v, Tensor(c!) k_scale, "
      "Tensor(d!) v_scale, int isa) -> ()");
  m.def(
      "attention(Tensor q, int kv_heads, int position, int window, Tensor k, Tensor v, Tensor k_scale, "
      "Tensor v_scale, Tensor(a!) out, int isa) -> ()");
  m.def("linear_bytes(int kind, int[] sizes, Tensor[] tensors, int isa) -> int");
  m.def("linear_pack(int kind, int[] sizes, Tensor[] tensors, Tensor(a!) blob, int isa, int threads) -> ()");
  m.def("linear_multiply(Tensor x, Tensor blob, int out_features, Tensor(a!) out, int isa, int threads) -> ()");
  m.def(
      "model_create(int[] sizes, float eps, Tensor embedding, int[] place, Tensor[] shared, Tensor[] layers, "
      "int[] windows, int isa, int chunk, int threads) -> int");
  m.def("model_scratch_bytes(int handle) -> int");
  m.def(
      "model_step(int handle, int[] ids, int position, Tensor(a!) k, Tensor(b!) v, Tensor(c!) k_scale, "
      "Tensor(d!) v_scale, Tensor cos, Tensor sin, Tensor(e!) logits, bool all_logits, int cancel) -> int");
  m.def(
      "model_write(int handle, int token, int position, Tensor(a!) k, Tensor(b!) v, Tensor(c!) k_scale, "
      "Tensor(d!) v_scale, Tensor cos, Tensor sin, Tensor(e!) logits, int vocab, Tensor seen, Tensor counts, "
      "int distinct, bool uses_history, Tensor settings, Tensor uniforms, int used, int[] stop_ids, float seconds, "
      "int cancel, Tensor(f!) tokens) -> int");
  m.def("model_close(int handle) -> ()");
  m.def(
      "sample(Tensor logits, Tensor ids, bool complete, int vocab, Tensor seen, Tensor counts, int distinct, "
      "Tensor settings, float uniform, int isa) -> int");
  m.def("share_spare_core(int until, int working) -> ()");
  m.def("large_pages(Tensor(a!) memory) -> ()");
  m.def("read_memory(Tensor buffer, int threads, int isa) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(exl2_cpu, CompositeExplicitAutograd, m) {
  m.impl("available_isas", TORCH_BOX(&exl2::available_isas));
  m.impl("linear_bytes", TORCH_BOX(&exl2::linear_bytes));
  m.impl("model_create", TORCH_BOX(&exl2::model_create));
  m.impl("model_scratch_bytes", TORCH_BOX(&exl2::model_scratch_bytes));
  m.impl("share_spare_core", TORCH_BOX(&exl2::share_spare_core));
  m.impl("model_close", TORCH_BOX(&exl2::model_close));
}

STABLE_TORCH_LIBRARY_IMPL(exl2_cpu, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&exl2::rms_norm));
  m.impl("rope", TORCH_BOX(&exl2::rope));
  m.impl("silu_mul", TORCH_BOX(&exl2::silu_mul));
  m.impl("exp", TORCH_BOX(&exl2::exp));
  m.impl("to_half", TORCH_BOX(&exl2::to_half));
  m.impl("to_float", TORCH_BOX(&exl2::to_float));
  m.impl("cache_store", TORCH_BOX(&exl2::cache_store));
  m.impl("attention", TORCH_BOX(&exl2::attention));
  m.impl("linear_pack", TORCH_BOX(&exl2::linear_pack));
  m.impl("linear_multiply", TORCH_BOX(&exl2::linear_multiply));
  m.impl("model_step", TORCH_BOX(&exl2::model_step));
  m.impl("model_write", TORCH_BOX(&exl2::model_write));
  m.impl("sample", TORCH_BOX(&exl2::sample));
  m.impl("large_pages", TORCH_BOX(&exl2::large_pages));
  m.impl("read_memory", TORCH_BOX(&exl2::read_memory));
}
