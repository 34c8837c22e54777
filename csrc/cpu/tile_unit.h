// The unit of AMX that multiplies matrices of bytes: eight registers of 16 rows of 64 bytes.
//
// A product of activations (16 tokens x 64 rows of the weight) and codes (64 rows x 16 columns) takes 16 cycles, in
// which vectors multiply an eighth of that. Codes lie as quads do (linear_layout.h): 16 lines, each 4 rows of 16
// columns.
//
// Statements of assembly, since GCC 12's own intrinsics do not say that they read memory: the compiler would leave out
// what was written there just before.
#pragma once

#include <cstdint>
#include <cstring>

#include "linear_layout.h"

namespace exl2 {
namespace EXL2_ISA {

constexpr int kTileTokens = 16;
constexpr int kTileRows = 64;
constexpr int kTileQuads = kTileRows / 4;
constexpr int kTileBytes = kTileTokens * kTileRows;  // also of a tile of sums: 16 tokens x 16 columns of int32

// While one is alive, its thread's registers are tiles of 16 full rows.
class TileUnit {
 public:
  TileUnit() {
    struct alignas(kLine) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    static_assert(sizeof shape == 64);
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = kLine, shape.rows[i] = 16;
    asm volatile("ldtilecfg %0" : : "m"(shape) : "memory");
  }
  ~TileUnit() { asm volatile("tilerelease" : : : "memory"); }  // or every change of threads would save 8 KiB
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  template <int T>
  static EXL2_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  template <int T>
  static EXL2_INLINE void load(const uint8_t* tile) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(tile), "r"(int64_t(kLine)) : "memory");
  }
  template <int T>
  static EXL2_INLINE void store(int32_t* tile) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(tile), "r"(int64_t(kLine)) : "memory");
  }
  // sums[t][c] += sum over r of x[t][r] * codes[r][c], all of them signed bytes, sums int32.
  template <int SUMS, int X, int CODES>
  static EXL2_INLINE void multiply() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(X), "i"(CODES));
  }
};

}  // namespace EXL2_ISA
}  // namespace exl2
