"""Drives the Models place as a person would: keys in, what is on screen out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from exl2_tui.core.model_events import (
    RemovalPlan,
)
from exl2_tui.widgets.bars import StatusRow
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.model_fakes import FakeModels


class ModelsDriver:
    """What a person sees and does on the screens of this place."""

    def __init__(self, chat: ChatDriver) -> None:
        self.chat = chat
        self.app = chat.app
        self.pilot = chat.pilot

    @property
    def fake(self) -> FakeModels:
        return cast(FakeModels, self.app.models.service)

    @property
    def rows(self) -> list[str]:
        return [str(option.prompt) for option in self.app.screen.query_one("#list", OptionList).options]

    def text(self, query: str) -> str:
        return str(self.app.screen.query_one(query, Static).render())

    @property
    def status(self) -> str:
        return self.app.screen.query_one(StatusRow).plain

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.chat.settle()

    async def screen(self, kind: type) -> None:
        await until(lambda: isinstance(self.app.screen, kind))
        await self.chat.settle()

    async def at(self, name: str) -> None:
        """Moves the cursor to a model."""
        await self.press("home")
        await self.press(*["down"] * next(index for index, row in enumerate(self.rows) if name in row))

    def calls(self, what: str) -> list[tuple[object, ...]]:
        return [call[1:] for call in self.fake.calls if call[0] == what]


@asynccontextmanager
async def models(
    make_app: MakeApp, size: tuple[int, int] = (80, 24), key: str = "f3", **options: object
) -> AsyncIterator[ModelsDriver]:
    async with make_app(**options).run_test(size=size) as pilot:
        chat = ChatDriver(cast(Pilot[None], pilot))
        await chat.start()
        driver = ModelsDriver(chat)
        await driver.press(key)
        await until(lambda: driver.app.models.state.listed is not None)
        await chat.settle()
        yield driver


def removal(path: str, name: str, **changes: object) -> RemovalPlan:
    base = RemovalPlan(path, name, "own", path, ("config.json", "model.safetensors"), 19_800_000_000)
    return replace(base, **changes)  # type: ignore[arg-type]
