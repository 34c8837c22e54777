// Load time: from the file layouts to strips of segments, and back to fp16 matrices for prompts.
#include "kernels.h"
#include "unpack.cuh"

namespace exl2::cuda {
namespace {

__device__ uint32_t source_code(const RepackSource& source, int kind, const Segment& segment, int64_t row, int64_t column) {
  if (kind == kDense) {
    const bool inside = row < source.rows && column < source.columns;
    return inside ? static_cast<const uint16_t*>(source.words)[column * source.rows + row] : 0;
  }
  const auto* words = static_cast<const uint32_t*>(source.words) + column;
  if (kind == kGptq) {
    const int64_t original = source.perm != nullptr ? source.perm[row] : row;
    return column < source.columns ? stream_code(words, source.columns, original, segment.bits) : 0;
  }
  const int64_t first_word = source.first_words[row / kBlockRows];
  return stream_code(words + first_word * source.columns, source.columns, row % kBlockRows, segment.bits);
}

// One CUDA block per segment and strip, one warp per block of rows: a thread packs the 32 codes of its lane.
__global__ void repack_kernel(RepackSource source, const Segment* segments, int64_t strip_bytes, int kind, uint8_t* codes) {
  const int lane = threadIdx.x % 32;
  const int b = threadIdx.x / 32;
  const int64_t strip = blockIdx.y;
  const Segment segment = segments[blockIdx.x];
  const int bits = segment.bits;
  uint8_t* out = codes + strip * strip_bytes + static_cast<int64_t>(segment.offset16) * 16;
  const int groups = groups_of(segment.blocks, segment.group_blocks);
  if (threadIdx.x == 0) {
    Header header = {segment.first_block, layout_of(segment.bits, segment.blocks, kind, segment.group_blocks), {}};
    if (kind == kExl2) {
#pragma unroll
      for (int i = 0; i < kMaxBlocks; ++i) {
        if (i >= groups) break;
        header.units[i / 2] |= uint32_t{static_cast<const uint16_t*>(source.groups)[segment.group + i]} << (16 * (i % 2));
      }
    }
    *reinterpret_cast<Header*>(out) = header;
  }
  out += sizeof(Header);
  if (b < groups) {
    uint8_t* const scales = out + b * scale_bytes(kind);
    const int64_t group = strip * source.n_groups + segment.group + b;
    if (kind == kExl2 && lane < 8) {
      reinterpret_cast<uint16_t*>(scales)[lane] = static_cast<const uint16_t*>(source.scales)[group * 8 + lane];
    }
    if (kind == kGptq) {
      reinterpret_cast<uint16_t*>(scales)[lane] = static_cast<const uint16_t*>(source.scales)[group * 32 + lane];
      scales[64 + lane] = static_cast<const uint8_t*>(source.groups)[group * 32 + lane];
    }
  }
  if (b >= segment.blocks) return;
  out += groups * scale_bytes(kind) + b * 128 * bits;

  uint32_t low[16] = {};
  uint32_t high[2] = {};
  for (int c = 0; c < 4; ++c) {
    const int64_t column = strip * kStripColumns + lane / 4 + 8 * c;
    for (int p = 0; p < 4; ++p) {
      const int64_t row = (static_cast<int64_t>(segment.first_block) + b) * kBlockRows + 8 * (lane % 4) + 2 * p;
      put_pair(bits, low, high, c, p, source_code(source, kind, segment, row, column),
               source_code(source, kind, segment, row + 1, column));
    }
  }
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

// Rows 8 t ... 8 t + 7 of column c, fp16.
template <int kBits, int c>
__device__ __forceinline__ uint4 decode_column(const uint32_t* low, const uint32_t* high, float scale, float zero) {
  if constexpr (kBits == 16) {
    return make_uint4(low[4 * c], low[4 * c + 1], low[4 * c + 2], low[4 * c + 3]);
  } else {
    const half2 pairs[4] = {centered<kBits, c, 0>(low, high, zero), centered<kBits, c, 1>(low, high, zero),
                            centered<kBits, c, 2>(low, high, zero), centered<kBits, c, 3>(low, high, zero)};
    // A small integer times the step, rounded once: the value that the format defines.
    const half2 step = __float2half2_rn(scale);
    half2 values[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) values[p] = __hmul2_rn(pairs[p], step);
    return *reinterpret_cast<uint4*>(values);
  }
}

constexpr int kStripsAtOnce = 4;  // whose bytes a warp asks for before it waits for them
constexpr int kRowPieces = kBlockRows / 8;  // of 16 bytes, per block and column
constexpr int kMostPieces = kRowPieces * kMaxBlocks;
constexpr int kDequantizeThreads = 32 * kMaxBlocks;

// One strip's part of a segment in shared memory, to be written in whole cache lines: column after column, with gaps so
// that the 8 lanes that write at the same time hit other banks.
using Tile = uint4[kStripColumns][kMostPieces + 4];

// The same segment of strips first ... first + count - 1. Every warp decodes block b of it.
template <int kBits>
__device__ __forceinline__ void decode_strips(const uint8_t* first, int64_t strip_bytes, int count, int kind,
                                              const Segment& segment, int64_t columns, int64_t stride, uint16_t* out,
                                              Tile* tiles) {
  constexpr int kAtOnce = kBits == 16 ? 1 : kStripsAtOnce;
  const int lane = threadIdx.x % 32;
  const int b = threadIdx.x / 32;
  const int blocks = segment.blocks;
  const int groups = groups_of(blocks, segment.group_blocks);
  const int group = b / segment.group_blocks;
  const int pieces = kRowPieces * blocks;  // of a column
  const int piece = threadIdx.x % kMostPieces;
#pragma unroll 1
  for (int done = 0; done < count; done += kAtOnce) {
    uint32_t low[kAtOnce][low_words(kBits)] = {};
    uint32_t high[kAtOnce][2] = {};
    float scale[kAtOnce][4] = {};
    float zero[kAtOnce][4] = {};
    if (b < blocks) {
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const uint8_t* stream = first + min(done + s, count - 1) * strip_bytes;
        const uint16_t unit = unit_of(*reinterpret_cast<const Header*>(stream), group);
        stream += sizeof(Header);
        if (kBits != 16) {
          column_scales(kind, kBits, unit, stream + group * scale_bytes(kind), lane / 4, scale[s], zero[s]);
        }
        load_lane<kBits>(stream + groups * scale_bytes(kind) + b * 128 * kBits, lane, low[s], high[s]);
      }
    }
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      if (done + s >= count) return;
      Tile& tile = tiles[(done + s) % 2];  // who still reads the other one has not passed the last barrier
      if (b < blocks) {
        uint4* const to = &tile[lane / 4][kRowPieces * b + lane % 4];
        constexpr int kEight = 8 * sizeof(tile[0]) / sizeof(uint4);
        to[0] = decode_column<kBits, 0>(low[s], high[s], scale[s][0], zero[s][0]);
        to[kEight] = decode_column<kBits, 1>(low[s], high[s], scale[s][1], zero[s][1]);
        to[2 * kEight] = decode_column<kBits, 2>(low[s], high[s], scale[s][2], zero[s][2]);
        to[3 * kEight] = decode_column<kBits, 3>(low[s], high[s], scale[s][3], zero[s][3]);
      }
      __syncthreads();
      const int64_t left = columns - (done + s) * kStripColumns;
      uint16_t* const strip = out + (done + s) * kStripColumns * stride;
#pragma unroll
      for (int column = threadIdx.x / kMostPieces; column < kStripColumns; column += kDequantizeThreads / kMostPieces) {
        if (column < left && piece < pieces) {
          *reinterpret_cast<uint4*>(strip + column * stride + 8 * piece) = tile[column][piece];
        }
      }
    }
  }
}

// (out_features, K) fp16 with the columns (input features) in packed order. One warp per block, for kStripsAtOnce strips.
__global__ void __launch_bounds__(kDequantizeThreads) dequantize_kernel(const Linear weight, uint16_t* out) {
  __shared__ Tile tiles[2];
  const int64_t strip = static_cast<int64_t>(blockIdx.y) * kStripsAtOnce;
  const Segment segment = weight.segments[blockIdx.x];
  const uint8_t* stream = weight.codes + strip * weight.strip_bytes + static_cast<int64_t>(segment.offset16) * 16;
  const int count = static_cast<int>(min(static_cast<int64_t>(kStripsAtOnce), weight.strips - strip));
  const int64_t column = strip * kStripColumns;
  const int64_t row = static_cast<int64_t>(segment.first_block) * kBlockRows;
  for_bits(segment.bits, [&](auto bits) {
    decode_strips<decltype(bits)::value>(stream, weight.strip_bytes, count, static_cast<int>(weight.kind), segment,
                                         weight.out_features - column, weight.in_features,
                                         out + column * weight.in_features + row, tiles);
  });
}

}  // namespace

void repack(const RepackSource& source, const Linear& packed, uint8_t* codes, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(packed.n_segments), static_cast<unsigned>(packed.strips));
  repack_kernel<<<grid, 32 * kMaxBlocks, 0, stream>>>(source, packed.segments, packed.strip_bytes,
                                                      static_cast<int>(packed.kind), codes);
  check(cudaGetLastError(), "repack");
}

void dequantize(const Linear& weight, uint16_t* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(weight.n_segments),
                  static_cast<unsigned>((weight.strips + kStripsAtOnce - 1) / kStripsAtOnce));
  dequantize_kernel<<<grid, kDequantizeThreads, 0, stream>>>(weight, out);
  check(cudaGetLastError(), "dequantize");
}

}  // namespace exl2::cuda
