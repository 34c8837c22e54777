// Up to 8 rows times a packed linear, with nothing that a GPU older than Ampere lacks: decoding where the step kernel cannot
// run, and the few rows of a prompt whose logits are wanted.
//
// A CUDA block computes a strip. Its warps take the segments in turn; each asks for all bytes of a segment before it waits
// for the first of them, which keeps memory busy without copies that run ahead. A lane's words are its operand of
// mma.m16n8k8 (plan.h): small integers times fp16 are exact, sums are float. Which warp adds up what, and in which order
// the sums of the warps are put together, is fixed: the same input gives the same bits.
#include "kernels.h"
#include "unpack.cuh"

namespace exl2::cuda {
namespace {

constexpr int kPlainWarps = 8;
constexpr int kPlainThreads = 32 * kPlainWarps;
static_assert(kPlainThreads == kMaxTokens * kStripColumns, "one thread per result");

// Of 32 columns: [h][0, 1] belong to column 16 h + g and the rows 2t, 2t + 1 of the input; [h][2, 3] to column + 8.
using Sums = float[2][4];

__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// Rows 2p and 2p + 1 of column c: codes minus the zero point, or the weights themselves.
template <int kBits, int c, int p>
__device__ __forceinline__ uint32_t operand(const uint32_t* low, const uint32_t* high, const float (&zero)[4]) {
  if constexpr (kBits == 16) {
    return low[4 * c + p];
  } else {
    const half2 pair = centered<kBits, c, p>(low, high, zero[c]);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <int kBits, int p>
__device__ __forceinline__ void multiply_pairs(Sums& sum, const uint32_t* low, const uint32_t* high, const float (&zero)[4],
                                               uint32_t x) {
  multiply(sum[0], operand<kBits, 0, p>(low, high, zero), operand<kBits, 1, p>(low, high, zero), x);
  multiply(sum[1], operand<kBits, 2, p>(low, high, zero), operand<kBits, 3, p>(low, high, zero), x);
}

// total += a strip's part of a segment's group times x. x: the lane's 8 halves for the segment's first block, null if its row
// is not there; those for the next block are kBlockRows further on. kFull: full_blocks of one group.
template <int kBits, int kKind, bool kFull>
__device__ __forceinline__ void multiply_group(const uint8_t* stream, const Segment& segment, int group, const uint16_t* x,
                                               Sums& total) {
  const int lane = threadIdx.x % 32;
  const int groups = kFull ? 1 : groups_of(segment.blocks, segment.group_blocks);
  const uint8_t* const scales = stream + sizeof(Header) + group * scale_bytes(kKind);
  const uint8_t* const codes = stream + sizeof(Header) + groups * scale_bytes(kKind);
  float scale[4] = {1.f, 1.f, 1.f, 1.f};
  float zero[4] = {};
  uint16_t unit = 0;
  uint32_t scale_codes = 0;
  if constexpr (kKind == kExl2) {
    unit = unit_of(*reinterpret_cast<const Header*>(stream), group);
    scale_codes = reinterpret_cast<const uint16_t*>(scales)[lane / 4];
#pragma unroll
    for (int c = 0; c < 4; ++c) zero[c] = 1 << (kBits - 1);
  } else if constexpr (kKind == kGptq) {
    gptq_scales(scales, lane / 4, scale, zero);
  }
  Sums sum = {};
  const auto multiply_block = [&](int b) {
    uint32_t low[low_words(kBits)];
    uint32_t high[2];
    load_lane<kBits>(codes + b * 128 * kBits, lane, low, high);
    uint4 row = {};
    if (x != nullptr) row = __ldg(reinterpret_cast<const uint4*>(x + b * kBlockRows));
    multiply_pairs<kBits, 0>(sum, low, high, zero, row.x);
    multiply_pairs<kBits, 1>(sum, low, high, zero, row.y);
    multiply_pairs<kBits, 2>(sum, low, high, zero, row.z);
    multiply_pairs<kBits, 3>(sum, low, high, zero, row.w);
  };
  if constexpr (kFull) {
#pragma unroll
    for (int b = 0; b < full_blocks(kBits); ++b) multiply_block(b);
  } else {
    const int end = min(static_cast<int>(segment.blocks), static_cast<int>(segment.group_blocks) * (group + 1));
#pragma unroll 1
    for (int b = segment.group_blocks * group; b < end; ++b) multiply_block(b);
  }
  if constexpr (kKind == kExl2) exl2_scales(unit, scale_codes, scale);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
#pragma unroll
    for (int i = c % 2 * 2; i < c % 2 * 2 + 2; ++i) total[c / 2][i] = fmaf(scale[c], sum[c / 2][i], total[c / 2][i]);
  }
}

template <int kBits, int kKind>
__device__ __forceinline__ void multiply_segment(const uint8_t* stream, const Segment& segment, const uint16_t* x,
                                                 Sums& total) {
  if (segment.blocks == full_blocks(kBits) && segment.group_blocks == segment.blocks) {
    return multiply_group<kBits, kKind, true>(stream, segment, 0, x, total);
  }
#pragma unroll 1
  for (int group = 0; group < groups_of(segment.blocks, segment.group_blocks); ++group) {
    multiply_group<kBits, kKind, false>(stream, segment, group, x, total);
  }
}

// Three CUDA blocks share a multiprocessor (GPTQ's zero points need too many registers for that: two): what they ask for at
// once is many times what memory takes to answer.
template <int kKind>
__global__ void __launch_bounds__(kPlainThreads, kKind == kGptq ? 2 : 3) plain_kernel(const Linear weight, const PlainProduct product) {
  __shared__ float sums[kPlainWarps][kMaxTokens][kStripColumns];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int count = static_cast<int>(product.count);
  const int segments = static_cast<int>(weight.n_segments);
  const uint8_t* const strip = weight.codes + blockIdx.x * weight.strip_bytes;
  const uint16_t* const x = g < count ? product.rows + g * weight.in_features + 8 * t : nullptr;
  Sums total = {};
  Segment next = weight.segments[min(warp, segments - 1)];
#pragma unroll 1
  for (int s = warp; s < segments; s += kPlainWarps) {
    const Segment segment = next;
    next = weight.segments[min(s + kPlainWarps, segments - 1)];
    const uint8_t* const stream = strip + static_cast<int64_t>(segment.offset16) * 16;
    const uint16_t* const rows = x == nullptr ? nullptr : x + static_cast<int64_t>(segment.first_block) * kBlockRows;
    const auto multiply_by = [&](auto bits) {
      multiply_segment<decltype(bits)::value, kKind>(stream, segment, rows, total);
    };
    if constexpr (kKind == kDense) {
      multiply_by(std::integral_constant<int, 16>{});
    } else {
      for_bits(segment.bits, multiply_by);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][2 * t + i % 2][16 * h + 8 * (i / 2) + g] = total[h][i];
  }
  __syncthreads();
  const int row = warp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kStripColumns + lane;
  if (row >= count || column >= weight.out_features) return;
  float sum = weight.bias == nullptr ? 0.f : half_float(weight.bias[column]);
#pragma unroll
  for (int w = 0; w < kPlainWarps; ++w) sum += sums[w][row][lane];
  const int64_t to = row * weight.out_features + column;
  if (product.halves != nullptr) {
    product.halves[to] = half_bits(sum);
  } else {
    product.floats[to] = sum;
  }
}

template <int kKind>
void launch(const Linear& weight, const PlainProduct& product, cudaStream_t stream) {
  plain_kernel<kKind><<<static_cast<unsigned>(weight.strips), kPlainThreads, 0, stream>>>(weight, product);
  check(cudaGetLastError(), "plain_product");
}

}  // namespace

void plain_product(const Linear& weight, const PlainProduct& product, cudaStream_t stream) {
  switch (weight.kind) {
    case kExl2: return launch<kExl2>(weight, product, stream);
    case kGptq: return launch<kGptq>(weight, product, stream);
    default: return launch<kDense>(weight, product, stream);
  }
}

}  // namespace exl2::cuda
