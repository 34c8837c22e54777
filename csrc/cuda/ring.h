// Which slot of a ring, in which phase of its `full` barrier, the copy of some time ago went to. Integer logic only, for
// host and device: the CPU tests run what the feeder runs.
#pragma once

#include <cstdint>

#include "codes.h"

// Copies that the feeder keeps in flight per ring; 0: as many as there are free slots. Fewer leave shorter queues for
// barriers and activations to wait in (docs/cuda.md, "Next to try").
#ifndef EXL2_COPIES_IN_FLIGHT
#define EXL2_COPIES_IN_FLIGHT 0
#endif

namespace exl2::cuda {

constexpr int kCopiesInFlight = EXL2_COPIES_IN_FLIGHT;

struct RingPlace {
  int slot;
  uint32_t parity;
};

// Of the copy `back` (0 ... slots) before the next one. next: its slot, and the parity of the phase in which it will
// land, 0 in the first round. A copy before the first counts as landed: a barrier that nobody used yet is done for
// parity 1.
EXL2_HD RingPlace earlier_copy(RingPlace next, int back, int slots) {
  const int slot = next.slot - back;
  return slot >= 0 ? RingPlace{slot, next.parity} : RingPlace{slot + slots, next.parity ^ 1};
}

}  // namespace exl2::cuda
