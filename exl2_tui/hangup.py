"""A program whose terminal has gone ends, even where nothing else of it notices any more. Standard library only.

Textual ends on SIGHUP and at the end of its input. But where somebody has SIGHUP ignored, and the terminal goes while
the screen is drawn for the first time, the thread that writes dies, the app waits for it for ever, and the one that
reads spins.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 3.0  # in which the app ends by itself, as a rule


def end_with_terminal(descriptor: int, end: Callable[[], object], patience: float = PATIENCE_SECONDS) -> None:
    """Calls `end`, in a thread of its own, `patience` seconds after the terminal behind `descriptor` hung up."""
    poll = select.poll()
    poll.register(descriptor, 0)  # nothing but errors and hanging up

    def wait() -> None:
        happened = poll.poll()[0][1]
        if not happened & select.POLLNVAL:
            time.sleep(patience)
            end()

    threading.Thread(target=wait, name="hangup", daemon=True).start()
