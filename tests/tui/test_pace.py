"""How often the screen is drawn, by clocks that the test moves."""

from __future__ import annotations

from exl2_tui.pace import FRAME_SECONDS, LONGEST_SECONDS, SHARE, Pace
from tests.tui.fakes import FakeClock


def frames(cost: float, speed: float, seconds: float = 20.0) -> tuple[int, float]:
    """Frames in that time if each costs `cost` of processor time, and the longest wait between two."""
    clock, spent = FakeClock(0.0), FakeClock(0.0)
    pace = Pace(clock, spent)
    count = 0
    last = longest = 0.0
    while clock.now < seconds:
        wait = pace.wait(speed)
        if wait > 0:
            clock.now += wait
        spent.now += cost
        clock.now += cost
        pace.drawn()
        count += 1
        longest = max(longest, clock.now - last)
        last = clock.now
    return count, longest


def test_cheap_frames_come_twenty_times_a_second() -> None:
    count, longest = frames(0.001, 1500.0)
    assert 18 <= count / 20.0 <= 20 and longest <= FRAME_SECONDS + 0.002


def test_dear_frames_take_no_more_than_their_share_while_tokens_come_fast() -> None:
    count, longest = frames(0.012, 1500.0)
    assert count * 0.012 / 20.0 <= SHARE * 1.1
    assert 2 <= count / 20.0 < 20 and longest <= LONGEST_SECONDS + 0.02


def test_a_frame_is_never_later_than_half_a_second() -> None:
    _, longest = frames(0.2, 1500.0)
    assert longest <= LONGEST_SECONDS + 0.21


def test_slow_tokens_are_drawn_as_they_come() -> None:
    count, _ = frames(0.012, 10.0)
    assert count / 20.0 >= 15
