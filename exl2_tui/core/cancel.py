"""CancelToken: how a person stops work that is already running on another thread.

Standard library only. Python code polls `cancelled`; native code polls the byte at `address`, so that one long native
call can stop between layers without the interpreter lock.
"""

from __future__ import annotations

import ctypes

from exl2_tui.core.errors import CancelledError


class CancelToken:
    """A flag that is set once from any thread and never cleared. The token must outlive native calls that poll it."""

    __slots__ = ("_flag",)

    def __init__(self) -> None:
        self._flag = ctypes.c_uint8(0)

    def cancel(self) -> None:
        self._flag.value = 1

    @property
    def cancelled(self) -> bool:
        return self._flag.value != 0

    @property
    def address(self) -> int:
        """Address of one byte that turns non-zero when cancelled."""
        return ctypes.addressof(self._flag)

    def check(self) -> None:
        """Raises CancelledError once the token is set."""
        if self._flag.value:
            raise CancelledError
