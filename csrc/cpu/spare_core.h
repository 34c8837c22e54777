// A core that somebody wants for a moment: the thread of the user interface, while it makes a frame.
//
// Where all cores compute, the system interrupts one of the threads in the middle of a piece of work, and soon the
// others wait for that piece: a frame costs all cores its time. So who makes frames says so first, and the last worker
// stands aside between two pieces; the others do its share. exl2_tui/core/spare_core.py is the other side.
#pragma once

#include <cstdint>

namespace exl2 {

// Whoever wants the core writes into `until` when that ends, in nanoseconds of the steady clock, so that nothing waits
// for ever if he dies; 0: nobody does. `working` takes the number of workers that are awake. The memory stays for good.
void set_spare_core(const int64_t* until, int64_t* working);

bool spare_core_is_wanted();

// A worker woke up (1), or goes to sleep (-1).
void count_working(int change);

}  // namespace exl2
