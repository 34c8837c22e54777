"""The window is closed, or the system shuts down: the app leaves as if the person had quit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

STDIN = 0


def leave_on_signals(leave: Callable[[], object], hung_up: Callable[[], object]) -> None:
    """Calls `leave` on the running loop for SIGTERM and `hung_up` for SIGHUP, where the system has them."""
    loop = asyncio.get_running_loop()
    for name, call in (("SIGTERM", leave), ("SIGHUP", hung_up)):
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(getattr(signal, name), call)


def watch_terminal(hung_up: Callable[[], object]) -> None:
    """Calls `hung_up` on a thread of its own once the terminal is gone, where there is one and the system can tell.

    Not every terminal that goes sends a signal (one that is not the session's own, or `nohup`), and Textual's driver
    would then read nothing for ever, with all of a core, while the screen waits for what nobody reads.
    """
    if not hasattr(select, "poll") or not os.isatty(STDIN):
        return

    def watch() -> None:
        poll = select.poll()
        poll.register(STDIN, 0)  # no event but the one that cannot be left out: it hung up
        while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
            pass
        hung_up()

    threading.Thread(target=watch, name="exl2-terminal", daemon=True).start()
