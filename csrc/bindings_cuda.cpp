// The ops of the CUDA library, registered through the stable ABI as in bindings_cpu.cpp. A plan is a uint8 CPU tensor
// that holds one struct of cuda/plan.h; the tensors it points to are kept alive by its owner in
// exl2_tui/core/model/cuda. Loaded only where torch has CUDA.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "choosing_arguments.h"
#include "cuda/kernels.h"
#include "cuda/passage.h"

namespace {

using exl2::cuda::Linear;
using exl2::cuda::Model;
using torch::stable::Tensor;

// The stream torch is using on the tensor's device, which becomes the current device.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void expect_bytes(const Tensor& plan, size_t bytes) {
  if (static_cast<size_t>(plan.numel()) != bytes) {
    throw std::runtime_error("the plan has " + std::to_string(plan.numel()) + " bytes, expected " +
                             std::to_string(bytes) + ": the library and the Python package are of different versions");
  }
}

template <typename Struct>
Struct read_plan(const Tensor& plan) {
  expect_bytes(plan, sizeof(Struct));
  Struct result;
  std::memcpy(&result, plan.const_data_ptr(), sizeof(Struct));
  return result;
}

const void* address(int64_t value) { return reinterpret_cast<const void*>(value); }

// Addresses are 0 where the format has no such tensor (kernels.h: RepackSource).
void repack(const Tensor& plan, int64_t words, int64_t first_words, int64_t perm, int64_t scales, int64_t groups,
            int64_t n_groups, int64_t rows, int64_t columns, Tensor codes) {
  const OnDevice device(codes);
  const exl2::cuda::RepackSource source = {address(words),
                                           static_cast<const int32_t*>(address(first_words)),
                                           static_cast<const int32_t*>(address(perm)),
                                           address(scales),
                                           address(groups),
                                           n_groups,
                                           rows,
                                           columns};
  exl2::cuda::repack(source, read_plan<Linear>(plan), static_cast<uint8_t*>(codes.mutable_data_ptr()), device.stream());
}

void dequantize(const Tensor& plan, Tensor out) {
  const OnDevice device(out);
  exl2::cuda::dequantize(read_plan<Linear>(plan), static_cast<uint16_t*>(out.mutable_data_ptr()), device.stream());
}

// rows (T, in_features) half in packed order, T up to 8; out (T, out_features) half or float.
void plain_product(const Tensor& plan, const Tensor& rows, Tensor out) {
  using exl2::data_of;
  using exl2::ScalarType;
  const auto weight = read_plan<Linear>(plan);
  exl2::cuda::PlainProduct product = {};
  product.count = rows.size(0);
  STD_TORCH_CHECK(product.count >= 1 && product.count <= exl2::cuda::kMaxTokens, "a product takes 1 to 8 rows");
  const int64_t results = product.count * weight.out_features;
  product.rows = data_of<const uint16_t>(rows, ScalarType::Half, product.count * weight.in_features, "rows");
  if (out.scalar_type() == ScalarType::Half) {
    product.halves = data_of<uint16_t>(out, ScalarType::Half, results, "out");
  } else {
    product.floats = data_of<float>(out, ScalarType::Float, results, "out");
  }
  const OnDevice device(rows);
  exl2::cuda::plain_product(weight, product, device.stream());
}

// Whether decode_step can run on the device of `tensor`.
bool has_step(const Tensor& tensor) {
  const OnDevice device(tensor);
  return exl2::cuda::has_step();
}

int64_t decode_step(const Tensor& plan, int64_t gate_strips, int64_t tokens, Tensor logits) {
  if (tokens < 1 || tokens > exl2::cuda::kMaxTokens) throw std::runtime_error("a step takes 1 to 8 tokens");
  const OnDevice device(logits);
  return exl2::cuda::decode_step(read_plan<Model>(plan), gate_strips, static_cast<int>(tokens), device.stream());
}

// plan: of a whole model. In pinned memory: mail (mail_bytes) uint8, zeros at first, ids (best) int64 and values (best)
// float32 of the largest of the first `vocab` logits. logits (V,): of the last step. The rest as exl2_cpu::model_write
// (bindings_model_cpu.cpp).
int64_t write_passage(const Tensor& plan, int64_t gate_strips, Tensor mail, Tensor ids, Tensor values, Tensor logits,
                      int64_t token, int64_t position, int64_t vocab, const Tensor& seen, const Tensor& counts,
                      int64_t distinct, bool uses_history, const Tensor& settings, const Tensor& uniforms, int64_t used,
                      std::vector<int64_t> stop_ids, double seconds, int64_t cancel, Tensor tokens) {
  using exl2::data_of;
  using exl2::ScalarType;
  exl2::cuda::Writer writer = {read_plan<Model>(plan), gate_strips, vocab, ids.numel()};
  const int64_t count = tokens.numel();
  STD_TORCH_CHECK(writer.model.embedding != nullptr && vocab <= writer.model.vocab, "these are not all layers of a model");
  STD_TORCH_CHECK(token >= 0 && token < writer.model.vocab, "token: outside the vocabulary");
  STD_TORCH_CHECK(position >= 0 && position + count <= writer.model.capacity, "the cache is too small");
  STD_TORCH_CHECK(writer.best >= 1 && writer.best <= exl2::cuda::kMostTop && writer.best <= vocab,
                  "so many logits cannot be chosen");
  void* words = data_of<uint8_t>(mail, ScalarType::Byte, exl2::cuda::mail_bytes(), "mail");
  writer.mail = static_cast<exl2::cuda::Mail*>(words);
  writer.ids = data_of<int64_t>(ids, ScalarType::Long, writer.best, "ids");
  writer.values = data_of<float>(values, ScalarType::Float, writer.best, "values");
  const exl2::Choosing choosing = exl2::choosing_arguments(vocab, seen, counts, distinct, uses_history, settings, uniforms,
                                                           used, stop_ids, seconds, count);
  const OnDevice device(logits);
  return exl2::cuda::write_passage(writer, choosing, token, position, static_cast<const uint8_t*>(address(cancel)),
                                   data_of<int64_t>(tokens, ScalarType::Long, count, "tokens"), device.stream());
}

// logits (V,), ids and values (k,) on the GPU or in pinned memory. For tests: passages choose by themselves.
void top_logits(const Tensor& logits, Tensor ids, Tensor values) {
  using exl2::data_of;
  using exl2::ScalarType;
  const int64_t count = logits.numel();
  const int64_t k = ids.numel();
  STD_TORCH_CHECK(k > 0 && k <= exl2::cuda::kMostTop && k <= count && count <= INT32_MAX, "so many logits cannot be chosen");
  const auto* from = data_of<const float>(logits, ScalarType::Float, count, "logits");
  auto* to_ids = data_of<int64_t>(ids, ScalarType::Long, k, "ids");
  auto* to_values = data_of<float>(values, ScalarType::Float, k, "values");
  const OnDevice device(logits);
  exl2::cuda::top_logits(from, count, k, to_ids, to_values, device.stream());
}

// As exl2_cpu::quant_round (bindings_quant_cpu.cpp), on the GPU.
void quant_round(const Tensor& base, const Tensor& reference, const Tensor& coupling, const Tensor& pivots,
                 const Tensor& steps, int64_t bits, Tensor delta, Tensor rounded, Tensor codes) {
  using exl2::data_of;
  using exl2::ScalarType;
  exl2::RoundTask task;
  task.rows = base.size(0);
  task.columns = base.size(1);
  const int64_t n = task.rows * task.columns;
  task.base = data_of<const float>(base, ScalarType::Float, n, "base");
  task.reference = exl2::data_or_null<const float>(reference, ScalarType::Float, n, "reference");
  task.coupling = data_of<const float>(coupling, ScalarType::Float, task.rows * task.rows, "coupling");
  task.coupling_stride = task.rows;
  task.pivots = data_of<const float>(pivots, ScalarType::Float, task.rows, "pivots");
  task.steps = data_of<const float>(steps, ScalarType::Float, task.columns, "steps");
  task.bits = static_cast<int32_t>(bits);
  task.delta = data_of<float>(delta, ScalarType::Float, n, "delta");
  task.rounded = data_of<float>(rounded, ScalarType::Float, n, "rounded");
  task.codes = data_of<uint8_t>(codes, ScalarType::Byte, n, "codes");
  const OnDevice device(base);
  exl2::cuda::quant_round(task, device.stream());
}

// As exl2_cpu::quant_search, but with the cost of every column, costs (M, N) float32, where that adds them up.
void quant_search(const Tensor& group, const Tensor& weights, const Tensor& units, const Tensor& middles, int64_t bits,
                  int64_t first_offset, int64_t last_offset, Tensor codes, Tensor costs) {
  using exl2::data_of;
  using exl2::ScalarType;
  exl2::SearchTask task;
  task.rows = group.size(0);
  task.columns = group.size(1);
  task.maxima = units.numel();
  task.group = data_of<const float>(group, ScalarType::Float, task.rows * task.columns, "group");
  task.weights = data_of<const float>(weights, ScalarType::Float, task.rows, "weights");
  task.units = data_of<const float>(units, ScalarType::Float, task.maxima, "units");
  task.middles = data_of<const uint8_t>(middles, ScalarType::Byte, task.maxima * task.columns, "middles");
  task.bits = static_cast<int32_t>(bits);
  task.first_offset = static_cast<int32_t>(first_offset);
  task.last_offset = static_cast<int32_t>(last_offset);
  task.codes = data_of<uint8_t>(codes, ScalarType::Byte, task.maxima * task.columns, "codes");
  float* found = data_of<float>(costs, ScalarType::Float, task.maxima * task.columns, "costs");
  const OnDevice device(group);
  exl2::cuda::quant_search(task, found, device.stream());
}

// q (T, H, D) is rotated in place, k and v (T, G, D) go to keys and values (G, capacity, D) behind `start` tokens.
void prompt_rope(Tensor q, const Tensor& k, const Tensor& v, const Tensor& cosines, const Tensor& sines, Tensor keys,
                 Tensor values, int64_t start) {
  using exl2::data_of;
  using exl2::ScalarType;
  exl2::cuda::RopeTask task;
  task.tokens = q.size(0);
  task.heads = q.size(1);
  task.kv_heads = k.size(1);
  task.head_dim = q.size(2);
  task.rope_dim = 2 * cosines.size(1);
  task.capacity = keys.size(1);
  task.start = start;
  const int64_t kv = task.tokens * task.kv_heads * task.head_dim;
  const int64_t cached = task.kv_heads * task.capacity * task.head_dim;
  STD_TORCH_CHECK(task.tokens > 0, "there are no tokens");
  STD_TORCH_CHECK(start >= 0 && start + task.tokens <= task.capacity, "the cache is too small");
  STD_TORCH_CHECK(task.head_dim % 2 == 0 && task.rope_dim <= task.head_dim, "heads have an odd size");
  task.q = data_of<uint16_t>(q, ScalarType::Half, task.tokens * task.heads * task.head_dim, "q");
  task.k = data_of<const uint16_t>(k, ScalarType::Half, kv, "k");
  task.v = data_of<const uint16_t>(v, ScalarType::Half, kv, "v");
  task.cosines = data_of<const float>(cosines, ScalarType::Float, task.tokens * task.rope_dim / 2, "cosines");
  task.sines = data_of<const float>(sines, ScalarType::Float, task.tokens * task.rope_dim / 2, "sines");
  task.keys = data_of<uint16_t>(keys, ScalarType::Half, cached, "keys");
  task.values = data_of<uint16_t>(values, ScalarType::Half, cached, "values");
  const OnDevice device(q);
  exl2::cuda::prompt_rope(task, device.stream());
}

// rows half (G, T, D), codes uint8 (G, capacity, D * bits / 8), units half (G, capacity, blocks).
exl2::cuda::CacheTask cache_task(Tensor& rows, Tensor& codes, Tensor& units, int64_t start) {
  using exl2::data_of;
  using exl2::ScalarType;
  exl2::cuda::CacheTask task;
  task.heads = rows.size(0);
  task.tokens = rows.size(1);
  task.head_dim = rows.size(2);
  task.capacity = codes.size(1);
  task.start = start;
  STD_TORCH_CHECK(task.heads > 0 && task.tokens > 0 && task.head_dim > 0, "there are no rows");
  STD_TORCH_CHECK(start >= 0 && start + task.tokens <= task.capacity, "the cache is too small");
  task.bits = 8 * codes.size(2) / task.head_dim;
  const int64_t blocks = (task.head_dim + 31) / 32;
  task.rows = data_of<uint16_t>(rows, ScalarType::Half, task.heads * task.tokens * task.head_dim, "rows");
  task.codes =
      data_of<uint8_t>(codes, ScalarType::Byte, task.heads * task.capacity * task.head_dim * task.bits / 8, "codes");
  task.units = data_of<uint16_t>(units, ScalarType::Half, task.heads * task.capacity * blocks, "units");
  return task;
}

void cache_write(Tensor rows, Tensor codes, Tensor units, int64_t start) {
  const auto task = cache_task(rows, codes, units, start);
  const OnDevice device(rows);
  exl2::cuda::cache_write(task, device.stream());
}

void cache_read(Tensor codes, Tensor units, Tensor rows, int64_t start) {
  const auto task = cache_task(rows, codes, units, start);
  const OnDevice device(rows);
  exl2::cuda::cache_read(task, device.stream());
}

// out (T, W), perm (W) int32 or empty. size: of a row before it is put into order.
exl2::cuda::PackedRows packed_rows(const Tensor& perm, Tensor& out, int64_t size) {
  using exl2::ScalarType;
  exl2::cuda::PackedRows rows;
  rows.tokens = out.size(0);
  rows.width = out.size(1);
  STD_TORCH_CHECK(rows.tokens > 0 && rows.width % 32 == 0 && rows.width >= size, "out has a wrong shape");
  rows.out = exl2::data_of<uint16_t>(out, ScalarType::Half, rows.tokens * rows.width, "out");
  rows.perm = exl2::data_or_null<const int32_t>(perm, ScalarType::Int, rows.width, "perm");
  STD_TORCH_CHECK(rows.perm == nullptr || rows.width == size, "rows in another order are not padded");
  return rows;
}

void prompt_norm(Tensor residual, const Tensor& delta, const Tensor& weight, const Tensor& perm, double eps, Tensor out) {
  using exl2::data_of;
  using exl2::ScalarType;
  const int64_t hidden = weight.numel();
  const exl2::cuda::PackedRows rows = packed_rows(perm, out, hidden);
  STD_TORCH_CHECK(hidden % 4 == 0, "the hidden size is no multiple of 4");
  auto* to = data_of<float>(residual, ScalarType::Float, rows.tokens * hidden, "residual");
  const auto* added = exl2::data_or_null<const uint16_t>(delta, ScalarType::Half, rows.tokens * hidden, "delta");
  const auto* factors = data_of<const uint16_t>(weight, ScalarType::Half, hidden, "weight");
  const OnDevice device(residual);
  exl2::cuda::prompt_norm(to, added, factors, hidden, static_cast<float>(eps), rows, device.stream());
}

void prompt_order(const Tensor& x, const Tensor& perm, Tensor out) {
  const int64_t size = x.size(1);
  const exl2::cuda::PackedRows rows = packed_rows(perm, out, size);
  const auto* from = exl2::data_of<const uint16_t>(x, exl2::ScalarType::Half, rows.tokens * size, "x");
  const OnDevice device(x);
  exl2::cuda::prompt_order(from, size, rows, device.stream());
}

void prompt_silu(const Tensor& gate, const Tensor& up, const Tensor& perm, Tensor out) {
  using exl2::data_of;
  using exl2::ScalarType;
  const int64_t size = gate.size(1);
  const exl2::cuda::PackedRows rows = packed_rows(perm, out, size);
  const auto* gates = data_of<const uint16_t>(gate, ScalarType::Half, rows.tokens * size, "gate");
  const auto* ups = data_of<const uint16_t>(up, ScalarType::Half, rows.tokens * size, "up");
  const OnDevice device(gate);
  exl2::cuda::prompt_silu(gates, ups, size, rows, device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY(exl2_cuda, m) {
  m.def(
      "repack(Tensor plan, int words, int first_words, int perm, int scales, int groups, int n_groups, int rows, "
      "int columns, Tensor(a!) codes) -> ()");
  m.def("dequantize(Tensor plan, Tensor(a!) out) -> ()");
  m.def("plain_product(Tensor plan, Tensor rows, Tensor(a!) out) -> ()");
  m.def("has_step(Tensor tensor) -> bool");
  m.def("decode_step(Tensor plan, int gate_strips, int tokens, Tensor(a!) logits) -> int");
  m.def(
      "write_passage(Tensor plan, int gate_strips, Tensor(a!) mail, Tensor(b!) ids, Tensor(c!) values, Tensor(d!) logits, "
      "int token, int position, int vocab, Tensor seen, Tensor counts, int distinct, bool uses_history, Tensor settings, "
      "Tensor uniforms, int used, int[] stop_ids, float seconds, int cancel, Tensor(e!) tokens) -> int");
  m.def("top_logits(Tensor logits, Tensor(a!) ids, Tensor(b!) values) -> ()");
  m.def(
      "quant_round(Tensor base, Tensor reference, Tensor coupling, Tensor pivots, Tensor steps, int bits, "
      "Tensor(a!) delta, Tensor(b!) rounded, Tensor(c!) codes) -> ()");
  m.def(
      "quant_search(Tensor group, Tensor weights, Tensor units, Tensor middles, int bits, int first_offset, "
      "int last_offset, Tensor(a!) codes, Tensor(b!) costs) -> ()");
  m.def(
      "prompt_rope(Tensor(a!) q, Tensor k, Tensor v, Tensor cosines, Tensor sines, Tensor(b!) keys, Tensor(c!) values, "
      "int start) -> ()");
  m.def("cache_write(Tensor rows, Tensor(a!) codes, Tensor(b!) units, int start) -> ()");
  m.def("cache_read(Tensor codes, Tensor units, Tensor(a!) rows, int start) -> ()");
  m.def(
      "prompt_norm(Tensor(a!) residual, Tensor delta, Tensor weight, Tensor perm, float eps, Tensor(b!) out) -> ()");
  m.def("prompt_order(Tensor x, Tensor perm, Tensor(a!) out) -> ()");
  m.def("prompt_silu(Tensor gate, Tensor up, Tensor perm, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(exl2_cuda, CUDA, m) {
  m.impl("repack", TORCH_BOX(&repack));
  m.impl("dequantize", TORCH_BOX(&dequantize));
  m.impl("plain_product", TORCH_BOX(&plain_product));
  m.impl("has_step", TORCH_BOX(&has_step));
  m.impl("decode_step", TORCH_BOX(&decode_step));
  m.impl("write_passage", TORCH_BOX(&write_passage));
  m.impl("top_logits", TORCH_BOX(&top_logits));
  m.impl("quant_round", TORCH_BOX(&quant_round));
  m.impl("quant_search", TORCH_BOX(&quant_search));
  m.impl("prompt_rope", TORCH_BOX(&prompt_rope));
  m.impl("cache_write", TORCH_BOX(&cache_write));
  m.impl("cache_read", TORCH_BOX(&cache_read));
  m.impl("prompt_norm", TORCH_BOX(&prompt_norm));
  m.impl("prompt_order", TORCH_BOX(&prompt_order));
  m.impl("prompt_silu", TORCH_BOX(&prompt_silu));
}
