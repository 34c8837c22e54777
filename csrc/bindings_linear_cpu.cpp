// Ops of the packed linears: from a checkpoint's tensors to a blob, and one product by itself.
#include <cstdlib>
#include <memory>

#include "bindings_cpu.h"
#include "cpu/crew.h"

namespace exl2 {

const LinearKernels* linear_kernels_of(Isa isa) {
#if defined(__x86_64__)
#if defined(EXL2_HAS_AMX)
  if (isa == Isa::kAmx) return linear_kernels_amx();
#endif
  // Which multiplies sums depends on how many vectors a processor adds beside products (lanes_avx512.h).
  if (isa == Isa::kAvx512) return __builtin_cpu_is("intel") ? linear_kernels_plain_avx512() : linear_kernels_avx512();
  if (isa == Isa::kAvx2) return linear_kernels_avx2();
#endif
  (void)isa;
  return linear_kernels_generic();
}

namespace {

constexpr size_t kAlignment = 64;

// sizes: K, N, out_features, exact. tensors, an empty one standing for none:
//   EXL2   q_weight int32 (R, N), q_scale int32 (G, N / 8), q_scale_max float16 (G), q_groups int16 (2 G),
//          perm int32 (K), bias float16 (out_features)
//   GPTQ   qweight int32 (K * bits / 32, N), zeros int32 (G, N), scales float16 (G, N), group_rows int32 (G),
//          perm int32 (K), bias float16 (out_features); sizes has a fifth value, bits
//   dense  weight (N, K) of any float type, bias float32 (out_features)
LinearSource source_of(int64_t kind, const std::vector<int64_t>& sizes, const std::vector<Tensor>& t, bool exact) {
  LinearSource source;
  source.kind = static_cast<LinearKind>(kind);
  source.K = sizes.at(0);
  source.N = sizes.at(1);
  source.out_features = sizes.at(2);
  source.exact = exact;
  const int64_t K = source.K, N = source.N;
  STD_TORCH_CHECK(K >= 1 && source.out_features >= 1 && source.out_features <= N, "linear: bad sizes");
  if (source.kind == LinearKind::kExl2) {
    source.q_weight_rows = t.at(0).size(0);
    source.n_groups = t.at(2).numel();
    source.q_weight = data_of<const uint32_t>(t[0], ScalarType::Int, source.q_weight_rows * N, "q_weight");
    source.q_scale = data_of<const uint32_t>(t.at(1), ScalarType::Int, source.n_groups * N / 8, "q_scale");
    source.q_scale_max = data_of<const uint16_t>(t.at(2), ScalarType::Half, source.n_groups, "q_scale_max");
    source.q_groups = data_of<const uint16_t>(t.at(3), ScalarType::Short, 2 * source.n_groups, "q_groups");
    source.perm = data_or_null<const int32_t>(t.at(4), ScalarType::Int, K, "perm");
    source.bias = data_or_null<const uint16_t>(t.at(5), ScalarType::Half, source.out_features, "bias");
  } else if (source.kind == LinearKind::kGptq) {
    source.bits = static_cast<int32_t>(sizes.at(4));
    source.n_groups = t.at(2).size(0);
    source.qweight = data_of<const uint32_t>(t[0], ScalarType::Int, K * source.bits / 32 * N, "qweight");
    source.zeros = data_of<const int32_t>(t.at(1), ScalarType::Int, source.n_groups * N, "zeros");
    source.scales = data_of<const uint16_t>(t.at(2), ScalarType::Half, source.n_groups * N, "scales");
    source.group_rows = data_of<const int32_t>(t.at(3), ScalarType::Int, source.n_groups, "group_rows");
    source.perm = data_or_null<const int32_t>(t.at(4), ScalarType::Int, K, "perm");
    source.bias = data_or_null<const uint16_t>(t.at(5), ScalarType::Half, source.out_features, "bias");
  } else {
    STD_TORCH_CHECK(source.kind == LinearKind::kDense, "linear: unknown kind");
    const FloatType type = float_type(t.at(0));
    source.dense_type = type == FloatType::kF16    ? DenseType::kF16
                        : type == FloatType::kBF16 ? DenseType::kBF16
                                                   : DenseType::kF32;
    source.weight = data_of<const void>(t[0], t[0].scalar_type(), N * K, "weight");
    source.bias = data_or_null<const float>(t.at(1), ScalarType::Float, source.out_features, "bias");
    source.bias_is_f32 = true;
  }
  return source;
}

uint8_t* blob_of(const Tensor& blob) {
  uint8_t* data = data_of<uint8_t>(blob, ScalarType::Byte, 1, "blob");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % kAlignment == 0, "blob: not aligned to 64 bytes");
  return data;
}

struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};

}  // namespace

int64_t linear_bytes(int64_t kind, std::vector<int64_t> sizes, std::vector<Tensor> tensors, int64_t isa) {
  return linear_kernels_of(checked_isa(isa))->packed_bytes(source_of(kind, sizes, tensors, sizes.at(3) != 0));
}

void linear_pack(int64_t kind, std::vector<int64_t> sizes, std::vector<Tensor> tensors, const Tensor& blob, int64_t isa,
                 int64_t threads) {
  const LinearKernels& kernels = *linear_kernels_of(checked_isa(isa));
  const LinearSource source = source_of(kind, sizes, tensors, sizes.at(3) != 0);
  STD_TORCH_CHECK(blob.numel() >= kernels.packed_bytes(source), "blob: too small");
  uint8_t* packed = blob_of(blob);
  const int64_t tiles = (source.out_features + kLinearTileColumns - 1) / kLinearTileColumns;
  Crew crew(static_cast<int>(threads));
  crew.share(tiles, crew.even_piece(tiles),
             [&](int64_t begin, int64_t end) { kernels.pack(source, packed, begin, end); });
}

void linear_multiply(const Tensor& x, const Tensor& blob, int64_t out_features, const Tensor& out, int64_t isa,
                     int64_t threads) {
  const LinearKernels& kernels = *linear_kernels_of(checked_isa(isa));
  const uint8_t* packed = blob_of(blob);
  const int64_t M = x.size(0), K = x.size(1);
  const float* from = data_of<const float>(x, ScalarType::Float, M * K, "x");
  float* to = data_of<float>(out, ScalarType::Float, M * out_features, "out");
  const size_t bytes = static_cast<size_t>(kernels.scratch_bytes(packed, M));
  std::unique_ptr<uint8_t, Free> scratch(
      static_cast<uint8_t*>(std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment)));
  STD_TORCH_CHECK(scratch != nullptr, "linear_multiply: out of memory");
  Crew crew(static_cast<int>(threads));
  const int parts = crew.threads();
  crew.share(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernels.prepare(packed, from, M, K, scratch.get(), static_cast<int>(part), parts);
    }
  });
  const int64_t tiles = kernels.tiles(packed);
  crew.share(tiles, crew.even_piece(tiles), [&](int64_t begin, int64_t end) {
    kernels.multiply(packed, scratch.get(), M, to, out_features, begin, end);
  });
}

}  // namespace exl2
