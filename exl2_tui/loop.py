"""The app's event loop: while it is awake it has a core to itself, if the engine computes on all of them."""

from __future__ import annotations

import asyncio
import selectors

from exl2_tui.core.spare_core import SpareCore, spare_core


class SparingSelector(selectors.DefaultSelector):
    """Gives the core back whenever the loop has to wait, and takes it again as soon as there is something to do."""

    def __init__(self, core: SpareCore = spare_core) -> None:
        super().__init__()
        self._core = core

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:  # more is to be done: this is only a look
            return super().select(timeout)
        self._core.give_back()
        ready = super().select(timeout)
        self._core.take()
        return ready


def new_event_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(SparingSelector())
