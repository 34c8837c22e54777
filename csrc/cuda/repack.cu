// Load time: from the file layouts to strips and blocks, and back to fp16 matrices for prompts.
#include "kernels.h"
#include "unpack.cuh"

namespace exl2::cuda {
namespace {

// One thread packs the 32 codes of one lane of one block of one strip.
__global__ void repack_kernel(RepackSource source, Linear packed, uint8_t* codes) {
  const int lane = threadIdx.x;
  const int block_row = blockIdx.x;
  const int64_t strip = blockIdx.y;
  const Block block = packed.blocks[block_row];
  const int bits = block.bits;
  const int g = lane / 4;
  const int t = lane % 4;

  uint32_t low[16] = {};
  uint32_t high[2] = {};
  for (int c = 0; c < 4; ++c) {
    const int64_t column = strip * kStripColumns + g + 8 * c;
    for (int p = 0; p < 4; ++p) {
      uint32_t pair[2];
      for (int j = 0; j < 2; ++j) {
        const int64_t row = static_cast<int64_t>(block_row) * kBlockRows + 8 * t + 2 * p + j;
        if (packed.kind == kDense) {
          const bool inside = row < source.rows && column < source.columns;
          pair[j] = inside ? static_cast<const uint16_t*>(source.words)[column * source.rows + row] : 0;
        } else if (packed.kind == kGptq) {
          const int64_t original = source.perm != nullptr ? source.perm[row] : row;
          const auto* words = static_cast<const uint32_t*>(source.words) + column;
          pair[j] = column < source.columns ? stream_code(words, source.columns, original, bits) : 0;
        } else {
          const int64_t first_word = source.first_words[block_row];
          const auto* words = static_cast<const uint32_t*>(source.words) + first_word * source.columns + column;
          pair[j] = stream_code(words, source.columns, 8 * t + 2 * p + j, bits);
        }
      }
      put_pair(bits, low, high, c, p, pair[0], pair[1]);
    }
  }

  uint8_t* out = codes + strip * packed.strip_bytes + static_cast<int64_t>(block.offset16) * 16;
  const int low_count = low_words(bits);
  if (low_count == 2) {
    reinterpret_cast<uint2*>(out)[lane] = make_uint2(low[0], low[1]);
  } else {
    for (int i = 0; i < low_count / 4; ++i) {
      reinterpret_cast<uint4*>(out)[i * 32 + lane] = make_uint4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
    }
  }
  auto* upper = reinterpret_cast<uint32_t*>(out + 128 * low_count);
  const int high_count = high_words(bits);
  for (int i = 0; i < high_count; ++i) upper[lane * high_count + i] = high[i];
}

template <int kBits>
__device__ void store_fp16(const Linear& w, const uint8_t* block_codes, const float* scale, const float* zero, int lane,
                           int64_t strip, int64_t row, uint16_t* out) {
  uint32_t low[low_words(kBits)];
  uint32_t high[2] = {};
  load_lane<kBits>(block_codes, lane, low, high);
  for (int c = 0; c < 4; ++c) {
    const int64_t column = strip * kStripColumns + lane / 4 + 8 * c;
    if (column >= w.out_features) continue;
    uint16_t values[8];
    for (int p = 0; p < 4; ++p) {
      const half2 pair = unpack_pair<kBits>(low, high, c, p);
      // Exact small integers times the step, rounded once: the value that the format defines.
      values[2 * p] = __half_as_ushort(__float2half_rn((__low2float(pair) - zero[c]) * scale[c]));
      values[2 * p + 1] = __half_as_ushort(__float2half_rn((__high2float(pair) - zero[c]) * scale[c]));
    }
    *reinterpret_cast<uint4*>(out + column * w.in_features + row) = *reinterpret_cast<uint4*>(values);
  }
}

// (out_features, K) fp16 with the columns (input features) in packed order. One warp per block and strip.
__global__ void dequantize_kernel(Linear w, uint16_t* out) {
  const int lane = threadIdx.x % 32;
  const int64_t block_row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int64_t strip = blockIdx.y;
  if (block_row >= w.n_blocks) return;
  const Block block = w.blocks[block_row];
  float scale[4];
  float zero[4];
  group_scales(w, strip, block.group, lane / 4, scale, zero);
  const uint8_t* codes = w.codes + strip * w.strip_bytes + static_cast<int64_t>(block.offset16) * 16;
  const int64_t row = block_row * kBlockRows + 8 * (lane % 4);
  for_bits(block.bits, [&](auto bits) {
    store_fp16<decltype(bits)::value>(w, codes, scale, zero, lane, strip, row, out);
  });
}

}  // namespace

void repack(const RepackSource& source, const Linear& packed, uint8_t* codes, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(packed.n_blocks), static_cast<unsigned>(packed.strips));
  launch(repack_kernel, grid, 32, 0, stream, false, source, packed, codes);
}

void dequantize(const Linear& weight, uint16_t* out, cudaStream_t stream) {
  constexpr int kWarps = 4;
  const dim3 grid(static_cast<unsigned>((weight.n_blocks + kWarps - 1) / kWarps), static_cast<unsigned>(weight.strips));
  launch(dequantize_kernel, grid, 32 * kWarps, 0, stream, false, weight, out);
}

}  // namespace exl2::cuda
