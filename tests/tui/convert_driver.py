"""Drives the Convert place as a person would: keys in, what is on screen out."""

from __future__ import annotations

from typing import cast

from textual import events
from textual.keys import _character_to_key as character_to_key
from textual.pilot import Pilot
from textual.widgets import Input, Static

from exl2_tui.app import Exl2App
from exl2_tui.core.events import ModelInfo
from exl2_tui.job_state import JobState
from exl2_tui.screens.convert import ConvertScreen
from exl2_tui.screens.convert_wizard import WizardScreen
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.layer_chart import LayerChart
from exl2_tui.widgets.layer_table import LayerTable
from tests.tui import convert_fakes as fake
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import until
from tests.tui.fakes import FakeClock, FakeService

MODELS = (
    ModelInfo("nano-chat", "/models/nano-chat", "directory", "Llama", "fp16", 16.0, 24_400_432, 1024),
    ModelInfo("nano-exl2", "/models/nano-exl2", "directory", "Llama", "EXL2 4.00 bpw", 4.0, 13_000_000, 1024),
)


class ConvertDriver:
    """What a person sees and does in the Convert place."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        self.app = cast(Exl2App, pilot.app)

    @property
    def service(self) -> FakeConvert:
        return cast(FakeConvert, self.app.convert._service)

    @property
    def clock(self) -> FakeClock:
        return cast(FakeClock, self.app.clock)

    @property
    def job(self) -> JobState:
        return next(iter(reversed(self.app.convert.jobs.jobs.values())))

    def row(self, name: str) -> str:
        row = self.app.screen.query_one(f"#{name}", Row)
        return row.plain

    def text(self, name: str) -> str:
        part = self.app.screen.query_one(f"#{name}", Static)
        return str(part.render()) if part.display else ""

    @property
    def said(self) -> str:
        return self.app.screen.query_one(StatusRow).plain

    @property
    def notes(self) -> str:
        """What stands under the fields."""
        return "\n".join(str(note.render()) for note in self.app.screen.query(".note").results(Static))

    @property
    def table(self) -> list[str]:
        table = self.app.screen.query_one(LayerTable)
        return [table.render_line(y).text.rstrip() for y in range(table.size.height)]

    @property
    def chart(self) -> list[str]:
        chart = self.app.screen.query_one(LayerChart)
        return [chart.render_line(y).text.rstrip() for y in range(chart.size.height)]

    def burst(self, *keys: str) -> None:
        """All keys at once, as after one read of the terminal."""
        for key in keys:
            character = key if len(key) == 1 else None
            self.app.post_message(events.Key(character_to_key(key) if character else key, character))

    async def open(self) -> None:
        await until(lambda: self.app.service is not None)
        cast(FakeService, self.app.service).loaded()
        await self.pilot.press("f4")
        await until(lambda: isinstance(self.app.screen, ConvertScreen))
        await self.settle()

    async def settle(self) -> None:
        await until(lambda: not self.app._bridge._events)
        await self.pilot.pause()

    async def checked(self) -> None:
        """Waits until the newest draft has been answered for."""
        screen = cast(WizardScreen, self.app.screen)
        await self.pilot.pause()
        await until(lambda: screen._timer is None and (screen._found is not None or not self.service.answering))
        await self.pilot.pause()

    async def wizard(self, source: str = "/models/nano-chat") -> WizardScreen:
        await self.open()
        await self.pilot.press("n")
        await until(lambda: isinstance(self.app.screen, WizardScreen))
        await self.pilot.pause()
        self.app.screen.query_one("#source-path", Input).value = source
        await self.pilot.pause()
        await self.checked()
        return cast(WizardScreen, self.app.screen)

    async def started(self) -> str:
        """A conversion started through the wizard; returns its name."""
        await self.wizard()
        for _ in range(3):
            await self.pilot.press("enter")
            await self.settle()
        await until(lambda: self.service.started)
        job = self.service.started[-1].work
        self.service.post(fake.opened(job))
        await self.settle()
        return job

    async def quantized(self, layers: int = 7) -> str:
        job = await self.started()
        self.service.play(fake.calibrated(job))
        self.service.play(fake.measured(job))
        self.service.play(fake.quantized(job, layers))
        await self.settle()
        return job
