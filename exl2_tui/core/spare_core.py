"""SpareCore: a core for whoever draws, where the engine computes on all of them. Standard library only.

A thread that is interrupted in the middle of a piece of work holds up all others, so the native threads are told
beforehand: one of them stands aside between two pieces, and the others do its share (csrc/cpu/spare_core.h).
"""

from __future__ import annotations

import ctypes
import time

LONGEST_SECONDS = 0.1  # that nobody has to give back: if the thread that took the core hangs or dies
# Until a thread has ended the piece it is in: pieces take tens of microseconds.
LEAVE_SECONDS = 0.0001


class SpareCore:
    """Two numbers shared with native code. `take` and `give_back` are for one thread, that of the user interface."""

    __slots__ = ("_until", "_working")

    def __init__(self) -> None:
        self._until = ctypes.c_int64(0)  # by time.monotonic_ns; 0: nobody wants the core
        self._working = ctypes.c_int64(0)  # native threads that are awake

    @property
    def addresses(self) -> tuple[int, int]:
        """Where the two numbers are, for native code that is never unloaded."""
        return ctypes.addressof(self._until), ctypes.addressof(self._working)

    def take(self) -> None:
        """Asks for the core until `give_back`, and waits a moment if it has to be left first."""
        if self._working.value > 0:
            self._until.value = time.monotonic_ns() + int(LONGEST_SECONDS * 1e9)
            time.sleep(LEAVE_SECONDS)

    def give_back(self) -> None:
        self._until.value = 0


spare_core = SpareCore()  # of the process: as are its cores
