// The embedding (V, C): a token needs one row of it, as float32.
//
// So the rows need not be in memory: they may stay in the file they are stored in. The system keeps what was read for
// as long as nobody needs the room.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace exl2 {

// Where a table lies in a file. Whoever writes to the file changes its size or its time.
struct TablePlace {
  int descriptor;    // of the open file
  int64_t offset;    // of the table, in bytes from the start of the file; any, also an odd one
  int64_t size;      // of the file, in bytes
  int64_t modified;  // when the file was written, in nanoseconds since 1970
};

class Embedding {
 public:
  // table: (V, C) in memory, outlives it.
  Embedding(FloatType type, int64_t columns, const void* table);
  // In a file. The descriptor becomes its own.
  Embedding(FloatType type, int64_t columns, const TablePlace& place);
  ~Embedding();
  Embedding(const Embedding&) = delete;
  Embedding& operator=(const Embedding&) = delete;

  // Has the disk look for the rows of all these tokens at once.
  void expect(const int64_t* ids, int64_t count) const;

  // out (count, C) = the rows of these tokens; room: for one of them as it is stored, which takes no more than a
  // row of `out`. Safe from several threads at once. Returns 0, or the errno that says why they cannot be had: ESTALE,
  // as network file systems have it, where the file is no longer the one that was opened. Then anything is in `out`.
  int read(const Kernels& kernels, const int64_t* ids, int64_t count, void* room, float* out) const;

 private:
  static constexpr int kNone = -1;

  int64_t row_bytes() const;
  int fill(int64_t offset, void* room) const;
  int compare() const;

  FloatType type_;
  int64_t columns_;
  const uint8_t* table_ = nullptr;  // null: it is in a file
  TablePlace place_ = {kNone, 0, 0, 0};
};

}  // namespace exl2
