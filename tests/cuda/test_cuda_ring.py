"""Which copy the feeder waits for when it keeps only a few in flight (csrc/cuda/ring.h), simulated on the CPU."""

from __future__ import annotations

import ctypes
import random

import pytest
from support.compiled import compile_cpp

SOURCE = r"""
#include "ring.h"
using namespace exl2::cuda;
extern "C" int place(int slot, uint32_t parity, int back, int slots) {
  const RingPlace found = earlier_copy({slot, parity}, back, slots);
  return found.slot * 2 + static_cast<int>(found.parity);
}
extern "C" int copies_in_flight() { return kCopiesInFlight; }
"""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_cpp(tmp_path_factory.mktemp("ring"), SOURCE)


def test_the_default_is_what_ran_on_a_gpu(ring: ctypes.CDLL) -> None:
    assert ring.copies_in_flight() == 0


@pytest.mark.parametrize("slots", range(3, 9))
def test_earlier_copies_are_found(ring: ctypes.CDLL, slots: int) -> None:
    for copy in range(3 * slots):
        for back in range(slots + 1):
            earlier = copy - back  # negative: before the first, for which a fresh barrier counts as done
            expected = earlier % slots, earlier // slots & 1
            found = ring.place(copy % slots, copy // slots & 1, back, slots)
            assert (found // 2, found % 2) == expected


@pytest.mark.parametrize(("slots", "limit"), [(3, 1), (5, 2), (8, 4), (4, 4)])
def test_a_feeder_keeps_no_more_in_flight_and_never_stops(ring: ctypes.CDLL, slots: int, limit: int) -> None:
    """Barriers as hardware has them: a wait for parity p passes if the phase that is under way has another parity."""
    chance = random.Random(slots * 10 + limit)
    landed_phases, freed_phases = [0] * slots, [0] * slots
    slot = read = started = 0
    parity = 1  # of `empty`, as in feed_rings
    in_flight: list[int] = []
    waiting: list[int] = []  # landed, not read yet, in order
    most = 0
    for _ in range(4000):
        if started < 200:
            found = ring.place(slot, parity ^ 1, min(limit, slots), slots)
            free = freed_phases[slot] & 1 != parity
            if free and landed_phases[found // 2] & 1 != found % 2:
                in_flight.append(started)
                started += 1
                slot += 1
                if slot == slots:
                    slot, parity = 0, parity ^ 1
        most = max(most, len(in_flight))
        if in_flight and chance.random() < 0.4:
            copy = in_flight.pop(chance.randrange(len(in_flight)))  # copies may overtake each other
            landed_phases[copy % slots] += 1
            waiting.append(copy)
        if read in waiting and chance.random() < 0.5:
            waiting.remove(read)
            freed_phases[read % slots] += 1
            read += 1
    assert read == 200 and most == min(limit, slots)
