// The quantizer's ops (exl2_tui/core/quant/kernels.py).
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "bindings_cpu.h"
#include "cpu/crew.h"
#include "cpu/quant_tasks.h"

namespace exl2 {

namespace {

constexpr int64_t kPieceColumns = 64;  // a multiple of every vector width

const QuantKernels& quant_kernels(int64_t isa) {
  switch (checked_isa(isa)) {
#if defined(__x86_64__)
    case Isa::kAmx:
    case Isa::kAvx512: return *quant_kernels_avx512();
    case Isa::kAvx2: return *quant_kernels_avx2();
#endif
    default: return *quant_kernels_generic();
  }
}

int checked_bits(int64_t bits) {
  STD_TORCH_CHECK(bits >= 2 && bits <= 8, "codes have 2 to 8 bits, not ", bits);
  return static_cast<int>(bits);
}

// base, reference (or empty), delta, rounded, codes (R, N); coupling (R, R); pivots (R); steps (N)
void quant_round(const Tensor& base, const Tensor& reference, const Tensor& coupling, const Tensor& pivots,
                 const Tensor& steps, int64_t bits, const Tensor& delta, const Tensor& rounded, const Tensor& codes,
                 int64_t isa, int64_t threads) {
  RoundTask task;
  task.rows = base.size(0);
  task.columns = base.size(1);
  const int64_t n = task.rows * task.columns;
  task.base = data_of<const float>(base, ScalarType::Float, n, "base");
  task.reference = data_or_null<const float>(reference, ScalarType::Float, n, "reference");
  task.coupling = data_of<const float>(coupling, ScalarType::Float, task.rows * task.rows, "coupling");
  task.coupling_stride = task.rows;
  task.pivots = data_of<const float>(pivots, ScalarType::Float, task.rows, "pivots");
  task.steps = data_of<const float>(steps, ScalarType::Float, task.columns, "steps");
  task.bits = checked_bits(bits);
  task.delta = data_of<float>(delta, ScalarType::Float, n, "delta");
  task.rounded = data_of<float>(rounded, ScalarType::Float, n, "rounded");
  task.codes = data_of<uint8_t>(codes, ScalarType::Byte, n, "codes");
  const QuantKernels& kernels = quant_kernels(isa);
  Crew crew(static_cast<int>(threads));
  crew.share(task.columns, kPieceColumns, [&](int64_t begin, int64_t end) { kernels.round_columns(task, begin, end); });
}

// group (R, N); weights (R); units (M); middles, codes (M, N); totals (M) float64, overwritten
void quant_search(const Tensor& group, const Tensor& weights, const Tensor& units, const Tensor& middles, int64_t bits,
                  int64_t first_offset, int64_t last_offset, const Tensor& codes, const Tensor& totals, int64_t isa,
                  int64_t threads) {
  SearchTask task;
  task.rows = group.size(0);
  task.columns = group.size(1);
  task.maxima = units.numel();
  task.group = data_of<const float>(group, ScalarType::Float, task.rows * task.columns, "group");
  task.weights = data_of<const float>(weights, ScalarType::Float, task.rows, "weights");
  task.units = data_of<const float>(units, ScalarType::Float, task.maxima, "units");
  task.middles = data_of<const uint8_t>(middles, ScalarType::Byte, task.maxima * task.columns, "middles");
  task.bits = checked_bits(bits);
  task.first_offset = static_cast<int32_t>(first_offset);
  task.last_offset = static_cast<int32_t>(last_offset);
  task.codes = data_of<uint8_t>(codes, ScalarType::Byte, task.maxima * task.columns, "codes");
  double* sums = data_of<double>(totals, ScalarType::Double, task.maxima, "totals");
  // One row of sums per piece of columns, added in order: the result does not depend on the threads.
  const int64_t pieces = (task.columns + kPieceColumns - 1) / kPieceColumns;
  std::vector<double> parts(static_cast<size_t>(pieces * task.maxima), 0.0);
  const QuantKernels& kernels = quant_kernels(isa);
  Crew crew(static_cast<int>(threads));
  crew.share(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t from = piece * kPieceColumns;
      const int64_t to = from + kPieceColumns < task.columns ? from + kPieceColumns : task.columns;
      kernels.search_columns(task, from, to, parts.data() + piece * task.maxima);
    }
  });
  for (int64_t m = 0; m < task.maxima; ++m) {
    sums[m] = 0.0;
    for (int64_t piece = 0; piece < pieces; ++piece) sums[m] += parts[static_cast<size_t>(piece * task.maxima + m)];
  }
}

// codes (K, N), each below 2^bits; words (K bits / 32, N) int32, the streams of formats/packing.py, overwritten. Every
// word is begun by the code that holds its first bit.
void quant_pack(const Tensor& codes, int64_t bits, const Tensor& words, int64_t threads) {
  const int width = checked_bits(bits);
  const int64_t rows = codes.size(0);
  const int64_t columns = codes.size(1);
  STD_TORCH_CHECK(rows * width % 32 == 0, rows, " codes of ", width, " bits do not fill whole words");
  const auto* from = data_of<const uint8_t>(codes, ScalarType::Byte, rows * columns, "codes");
  auto* to = reinterpret_cast<uint32_t*>(data_of<int32_t>(words, ScalarType::Int, rows * width / 32 * columns, "words"));
  std::atomic<bool> fits = true;
  Crew crew(static_cast<int>(threads));
  crew.share(columns, kPieceColumns, [&](int64_t begin, int64_t end) {
    uint32_t all = 0;
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t bit = k * width;
      const int shift = static_cast<int>(bit % 32);
      const uint8_t* const code = from + k * columns;
      uint32_t* const word = to + bit / 32 * columns;
      if (shift == 0) {
        for (int64_t n = begin; n < end; ++n) word[n] = code[n];
      } else {
        for (int64_t n = begin; n < end; ++n) word[n] |= static_cast<uint32_t>(code[n]) << shift;
      }
      if (shift + width > 32) {
        for (int64_t n = begin; n < end; ++n) word[columns + n] = static_cast<uint32_t>(code[n]) >> (32 - shift);
      }
      for (int64_t n = begin; n < end; ++n) all |= code[n];
    }
    if (all >> width != 0) fits = false;
  });
  STD_TORCH_CHECK(fits, "a code does not fit into ", width, " bits");
}

}  // namespace

}  // namespace exl2

STABLE_TORCH_LIBRARY_FRAGMENT(exl2_cpu, m) {
  m.def(
      "quant_round(Tensor base, Tensor reference, Tensor coupling, Tensor pivots, Tensor steps, int bits, "
      "Tensor(a!) delta, Tensor(b!) rounded, Tensor(c!) codes, int isa, int threads) -> ()");
  m.def(
      "quant_search(Tensor group, Tensor weights, Tensor units, Tensor middles, int bits, int first_offset, "
      "int last_offset, Tensor(a!) codes, Tensor(b!) totals, int isa, int threads) -> ()");
  m.def("quant_pack(Tensor codes, int bits, Tensor(a!) words, int threads) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(exl2_cpu, CPU, m) {
  m.impl("quant_round", TORCH_BOX(&exl2::quant_round));
  m.impl("quant_search", TORCH_BOX(&exl2::quant_search));
  m.impl("quant_pack", TORCH_BOX(&exl2::quant_pack));
}
