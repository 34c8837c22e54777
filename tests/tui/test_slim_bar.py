"""The slim scroll bar is drawn, cell for cell, as Textual draws one."""

from __future__ import annotations

import pytest
from textual.geometry import Offset, Region
from textual.scrollbar import ScrollBar

from exl2_tui.themes import THEMES
from exl2_tui.widgets.slim_bar import SlimBar
from tests.tui.conftest import MakeApp
from tests.tui.demo import ANSWERS
from tests.tui.driver import ChatDriver


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES.values()])
async def test_every_position(make_app: MakeApp, theme: str) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        chat.app.theme = theme
        await chat.ask("a question")
        await chat.answer(ANSWERS[0] * 3)
        bar = chat.transcript.vertical_scrollbar
        assert isinstance(bar, SlimBar) and bar.display
        for grabbed in (None, Offset(0, 0)):
            bar.grabbed = grabbed
            for size, position in ((25, 0), (40, 3.25), (40, 17), (200, 0), (200, 99.5), (200, 181), (19, 0)):
                bar.window_virtual_size, bar.position = size, position
                bar.refresh()
                for crop in (bar.size.region, Region(0, 3, 1, 5)):
                    assert [list(strip) for strip in bar.render_lines(crop)] == [
                        list(strip) for strip in ScrollBar.render_lines(bar, crop)
                    ]
