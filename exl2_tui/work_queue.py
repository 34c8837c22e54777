"""WorkQueue: a thread that calls one thing after another."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable


class WorkQueue:
    """A daemon thread. It starts with the first call and ends with `stop`.

    nice: by how much the system prefers other threads to this one and to those it starts.
    """

    def __init__(self, name: str, *, nice: int = 0) -> None:
        self._nice = nice
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._stopped = False
        # A daemon: a native call that cannot be interrupted must not keep the program from ending.
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def put(self, call: Callable[[], None]) -> None:
        with self._changed:
            if self._stopped:
                return
            if not self._thread.ident:
                self._thread.start()
            self._calls.append(call)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._calls.clear()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _loop(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere it would be the whole process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._stopped)
                if self._stopped:
                    return
                call = self._calls.popleft()
            call()
