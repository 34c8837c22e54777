"""The end of a program whose terminal has gone."""

from __future__ import annotations

import os
import pty
import threading

from exl2_tui.hangup import end_with_terminal


def test_nothing_happens_while_the_terminal_is_there_and_the_end_comes_after_it() -> None:
    master, slave = pty.openpty()
    ended = threading.Event()
    end_with_terminal(slave, ended.set, patience=0.0)
    os.write(master, b"keys")
    assert not ended.wait(0.2)
    os.close(master)
    assert ended.wait(60)
    os.close(slave)
