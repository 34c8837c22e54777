// Keys and values of a prompt on their way into a coded cache and out of it again (cache.cuh): one warp per head and
// token.
#include "cache.cuh"
#include "kernels.h"

namespace exl2::cuda {
namespace {

constexpr int kCacheThreads = 256;
constexpr int kCacheWarps = kCacheThreads / 32;

template <int kBits, int D, bool kWrites>
__global__ void __launch_bounds__(kCacheThreads) cache_kernel(const CacheTask task) {
  const int64_t index = blockIdx.x * static_cast<int64_t>(kCacheWarps) + threadIdx.x / 32;
  if (index >= task.heads * task.tokens) return;
  const int64_t place = index / task.tokens * task.capacity + task.start + index % task.tokens;
  const CachedRow<kBits, D> cached = {static_cast<uint8_t*>(task.codes) + place * kCachedBytes<kBits, D>,
                                      task.units + place * ((D + 31) / 32)};
  uint16_t* const row = task.rows + index * D;
#pragma unroll
  for (int e = 0; e < (D + 31) / 32; ++e) {
    const int i = threadIdx.x % 32 + 32 * e;
    if constexpr (kWrites) {
      cached.store(e, turn<kBlockOf<D>>(i < D ? half_float(row[i]) : 0.f));
    } else {
      const float value = turn<kBlockOf<D>>(cached.load(e));
      if (i < D) row[i] = half_bits(value);
    }
  }
}

template <int kBits, int D>
void start(const CacheTask& task, bool writes, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((task.heads * task.tokens + kCacheWarps - 1) / kCacheWarps);
  if (writes) {
    cache_kernel<kBits, D, true><<<blocks, kCacheThreads, 0, stream>>>(task);
  } else {
    cache_kernel<kBits, D, false><<<blocks, kCacheThreads, 0, stream>>>(task);
  }
  check(cudaGetLastError(), writes ? "cache_write" : "cache_read");
}

template <int kBits>
void start(const CacheTask& task, bool writes, cudaStream_t stream) {
  switch (task.head_dim) {
    case 16: return start<kBits, 16>(task, writes, stream);
    case 32: return start<kBits, 32>(task, writes, stream);
    case 64: return start<kBits, 64>(task, writes, stream);
    case 96: return start<kBits, 96>(task, writes, stream);
    case 128: return start<kBits, 128>(task, writes, stream);
    case 256: return start<kBits, 256>(task, writes, stream);
    default: throw std::runtime_error("heads of this size cannot be coded");
  }
}

void start(const CacheTask& task, bool writes, cudaStream_t stream) {
  if (task.bits != 8 && task.bits != 4) throw std::runtime_error("a cache is coded with 8 or 4 bits");
  if (task.bits == 8) return start<8>(task, writes, stream);
  start<4>(task, writes, stream);
}

}  // namespace

void cache_write(const CacheTask& task, cudaStream_t stream) { start(task, true, stream); }

void cache_read(const CacheTask& task, cudaStream_t stream) { start(task, false, stream); }

}  // namespace exl2::cuda
