"""ChatDriver: what a person sees and does on the chat screen, in words a test can use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from textual.app import App
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.timer import Timer
from textual.widgets import Static

from exl2_tui.app import Exl2App
from exl2_tui.screens.chat import ChatScreen
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.composer import Composer
from exl2_tui.widgets.transcript import Transcript
from exl2_tui.widgets.turn_view import TurnView
from tests.tui.fakes import FakeService

LIMIT = 60.0  # seconds; reached only by what never comes


async def until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Waits for a condition instead of sleeping for a guessed time."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "the condition was never met"
        await asyncio.sleep(0.005)


async def rested(app: App[None]) -> None:
    """Waits until what the screen does after a short rest (previews, checks) is under way."""

    def is_over() -> bool:
        timer: Timer | None = getattr(app.screen, "_timer", None)
        return timer is None or timer._task is None or timer._task.done()

    await until(is_over)


async def gathered(app: App[None]) -> None:
    """Waits until the command palette has found all that fits what was typed."""
    group = CommandPalette._GATHER_COMMANDS_GROUP
    await until(lambda: not any(worker.group == group for worker in app.workers))


class ChatDriver:
    """Wraps a Pilot."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        self.app = cast(Exl2App, pilot.app)

    @property
    def service(self) -> FakeService:
        return cast(FakeService, self.app.service)

    @property
    def chat_screen(self) -> ChatScreen:
        return next(screen for screen in self.app.screen_stack if isinstance(screen, ChatScreen))

    @property
    def composer(self) -> Composer:
        return self.chat_screen.query_one(Composer)

    @property
    def transcript(self) -> Transcript:
        return self.chat_screen.query_one(Transcript)

    @property
    def turns(self) -> list[TurnView]:
        return list(self.chat_screen.query(TurnView))

    @property
    def header(self) -> str:
        return self.chat_screen.query_one("#header", Row).plain

    @property
    def status(self) -> str:
        return self.chat_screen.query_one(StatusRow).plain

    @property
    def queue(self) -> str:
        row = self.chat_screen.query_one("#queue", Row)
        return row.plain if row.display else ""

    def text(self, view: TurnView) -> str:
        """Everything a turn shows."""
        return "\n".join(str(part.render()) for part in view.query(Static) if part.display)

    @property
    def everything(self) -> str:
        """Everything the transcript shows."""
        return "\n".join(str(part.render()) for part in self.transcript.query(Static) if part.display)

    async def start(self) -> FakeService:
        """Waits for the service and lets the model be there."""
        await until(lambda: self.app.service is not None)
        self.service.loaded()
        await until(lambda: self.app.session.ready)
        await self.pilot.pause()
        return self.service

    async def ask(self, text: str) -> None:
        """Types a message and sends it."""
        before = len(self.service.requests)
        self.composer.set_message(text)
        await self.pilot.press("enter")
        await until(lambda: len(self.service.requests) > before)

    async def answer(self, text: str, **finish: object) -> None:
        """The model says all of `text` and ends."""
        writing = self.app.session.writing
        self.service.ready()
        self.service.say(text)
        self.service.finish(**finish)  # type: ignore[arg-type]
        await until(lambda: self.app.session.writing is not writing)
        await self.pilot.pause()

    async def settle(self) -> None:
        """Waits until all posted events are drawn."""
        await until(lambda: not self.app._bridge._events)
        await self.pilot.pause()
