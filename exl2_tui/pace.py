"""Pace: how often the screen is drawn while an answer is written.

An engine that computes on the processor's cores shares them with the screen: while a frame is made, it has one less.
So frames come 20 times a second as long as they are cheap or tokens are slow, and less often when both would cost the
engine more than SHARE of its time. Knows nothing of Textual.
"""

from __future__ import annotations

import time

from exl2_tui.state import Clock

FRAME_SECONDS = 0.05
LONGEST_SECONDS = 0.5  # between two frames, whatever they cost
SHARE = 0.018  # of one core's time that drawing may take while tokens come fast
BURST_SECONDS = 0.014  # of drawing that may be done at once before the share counts
FAST = 30.0  # tokens per second from which it counts


class Pace:
    """A bucket that fills with the time spent drawing and leaks SHARE of the time that passes.

    clock: seconds that pass; spent: seconds of processor time the drawing thread has used.
    """

    def __init__(self, clock: Clock = time.monotonic, spent: Clock = time.thread_time) -> None:
        self._clock = clock
        self._spent = spent
        self._last_frame = self._last_look = clock()
        self._last_spent = spent()
        self._debt = 0.0

    def wait(self, tokens_per_second: float) -> float:
        """Seconds until the next frame may be drawn; 0 or less: now.

        tokens_per_second: of an engine on this processor's cores, 0 if nothing is lost by drawing. What was drawn
        while it was slow is not held against it.
        """
        now, spent = self._clock(), self._spent()
        self._debt = max(0.0, self._debt - (now - self._last_look) * SHARE) + spent - self._last_spent
        self._last_look, self._last_spent = now, spent
        self._debt = min(self._debt, BURST_SECONDS + LONGEST_SECONDS * SHARE)
        least = self._last_frame + FRAME_SECONDS - now
        if tokens_per_second < FAST:
            self._debt = 0.0
            return least
        return max(least, (self._debt - BURST_SECONDS) / SHARE)

    def drawn(self) -> None:
        """A frame was drawn just now."""
        self._last_frame = self._clock()
