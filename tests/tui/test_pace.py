"""How often the screen is drawn, by clocks that the test moves."""

from __future__ import annotations

import pytest

from exl2_tui.core.events import LoadFinished
from exl2_tui.pace import FRAME_SECONDS, LONGEST_SECONDS, SHARE, Pace
from exl2_tui.session import ChatSession
from exl2_tui.settings import Settings
from exl2_tui.state import ModelState, Writing
from exl2_tui.store.memory import MemoryStore
from exl2_tui.store.tree import Chat, Turn
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
    count, longest = frames(0.0008, 1500.0)
    assert 18 <= count / 20.0 <= 20 and longest <= FRAME_SECONDS + 0.002


def test_dear_frames_take_no_more_than_their_share_while_tokens_come_fast() -> None:
    count, longest = frames(0.008, 1500.0)
    assert count * 0.008 / 20.0 <= SHARE * 1.1
    assert 2 <= count / 20.0 < 20 and longest <= LONGEST_SECONDS + 0.02


def test_a_frame_is_never_later_than_half_a_second() -> None:
    _, longest = frames(0.2, 1500.0)
    assert longest <= LONGEST_SECONDS + 0.21


def test_slow_tokens_are_drawn_as_they_come() -> None:
    count, _ = frames(0.012, 10.0)
    assert count / 20.0 >= 15


def test_what_was_drawn_while_tokens_were_slow_does_not_count() -> None:
    """Such as the beginning of an answer: its first words must not wait for it."""
    clock, spent = FakeClock(0.0), FakeClock(0.0)
    pace = Pace(clock, spent)
    spent.now += 10.0
    assert pace.wait(0.0) <= FRAME_SECONDS
    clock.now += FRAME_SECONDS
    assert pace.wait(1500.0) <= 0


@pytest.mark.parametrize(("device", "shares"), [("cpu", True), ("cuda:0", False)])
def test_only_an_engine_on_the_same_cores_loses_by_drawing(device: str, shares: bool) -> None:
    clock = FakeClock(100.0)
    session = ChatSession(Settings(), MemoryStore(lambda token: None), clock=clock)
    assert session.pace == 0.0
    info = LoadFinished("m", "Llama", "EXL2", 4096, 1, 1, 2, 0.1, device, "kernels", "/m")
    session.model = ModelState("ready", "m", info=info)
    assert session.pace == 0.0
    session.writing = Writing(Chat(), Turn("assistant", "", None), first_token=99.0, tokens=1500)
    assert session.pace == (1500.0 if shares else 0.0)
