"""The window is closed, or the system shuts down: the app leaves as if the person had quit."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable


def leave_on_signals(leave: Callable[[], object], hung_up: Callable[[], object]) -> None:
    """Calls `leave` on the running loop for SIGTERM and `hung_up` for SIGHUP, where the system has them."""
    loop = asyncio.get_running_loop()
    for name, call in (("SIGTERM", leave), ("SIGHUP", hung_up)):
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(getattr(signal, name), call)
