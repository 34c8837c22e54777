#include "embedding.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace exl2 {

Embedding::Embedding(FloatType type, int64_t columns, const void* table)
    : type_(type), columns_(columns), table_(static_cast<const uint8_t*>(table)) {}

Embedding::Embedding(FloatType type, int64_t columns, const TablePlace& place)
    : type_(type), columns_(columns), place_(place) {}

Embedding::~Embedding() {
  if (place_.descriptor != kNone) close(place_.descriptor);
}

int64_t Embedding::row_bytes() const { return columns_ * (type_ == FloatType::kF32 ? 4 : 2); }

void Embedding::expect(const int64_t* ids, int64_t count) const {
  if (table_ != nullptr) return;
  for (int64_t i = 0; i < count; ++i) {
    posix_fadvise(place_.descriptor, place_.offset + ids[i] * row_bytes(), row_bytes(), POSIX_FADV_WILLNEED);
  }
}

int Embedding::read(const Kernels& kernels, const int64_t* ids, int64_t count, void* room, float* out) const {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t offset = ids[i] * row_bytes();
    if (table_ == nullptr) {
      const int error = fill(place_.offset + offset, room);
      if (error != 0) return error;
    }
    kernels.to_float(type_, table_ == nullptr ? room : table_ + offset, columns_, out + i * columns_);
  }
  return table_ == nullptr ? compare() : 0;  // afterwards, so that no row is of another file
}

int Embedding::fill(int64_t offset, void* room) const {
  const int64_t bytes = row_bytes();
  for (int64_t done = 0; done < bytes;) {
    const ssize_t found =
        pread(place_.descriptor, static_cast<uint8_t*>(room) + done, static_cast<size_t>(bytes - done), offset + done);
    if (found == 0) return ESTALE;  // the file ends here
    if (found > 0) {
      done += found;
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

int Embedding::compare() const {
  struct stat now;
  if (fstat(place_.descriptor, &now) != 0) return errno;
  const int64_t modified = int64_t{now.st_mtim.tv_sec} * 1'000'000'000 + now.st_mtim.tv_nsec;
  return now.st_size == place_.size && modified == place_.modified ? 0 : ESTALE;
}

}  // namespace exl2
