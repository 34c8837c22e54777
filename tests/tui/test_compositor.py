"""What the frugal compositor draws is what Textual's own would, for every part of the screen."""

from __future__ import annotations

import random

import pytest
from textual._compositor import Compositor
from textual.geometry import Region
from textual.map_geometry import MapGeometry
from textual.widget import Widget

from exl2_tui.compositor import FrugalCompositor
from tests.tui.conftest import MakeApp
from tests.tui.demo import ANSWERS
from tests.tui.driver import ChatDriver


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_every_part_of_the_screen_is_drawn_as_textual_draws_it(make_app: MakeApp, size: tuple[int, int]) -> None:
    chance = random.Random(7)
    async with make_app().run_test(size=size) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for answer in ANSWERS:
            await chat.ask("a question")
            await chat.answer(answer)
        await chat.ask("one more")
        chat.service.ready()
        chat.service.say(ANSWERS[0])
        await chat.settle()
        ours = chat.chat_screen._compositor
        assert isinstance(ours, FrugalCompositor)
        whole = Region(0, 0, *size)
        parts = [whole] + [
            Region(x, y, chance.randint(1, size[0] - x), chance.randint(1, size[1] - y))
            for x, y in ((chance.randrange(size[0]), chance.randrange(size[1])) for _ in range(40))
        ]
        for part in parts:
            drawn = ours._render_chops(part, part.line_range.__contains__)
            wanted = Compositor._render_chops(ours, part, part.line_range.__contains__)
            for y in part.line_range:
                ends = ours.cuts[y][1:]
                for (cut, strip), end in zip(wanted[y].items(), ends, strict=True):
                    if cut < part.right and end > part.x:
                        assert strip is not None and list(drawn[y][cut]) == list(strip), (part, y, cut)


@pytest.mark.parametrize("mark", [False, True])
async def test_widgets_that_moved_are_where_a_layout_puts_them(make_app: MakeApp, mark: bool) -> None:
    async with make_app().run_test(size=(100, 20)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        for answer in ANSWERS[1:]:
            await chat.ask("a question")
            await chat.answer(answer)
        await chat.ask("one more")
        chat.service.ready()
        screen, transcript = chat.chat_screen, chat.transcript
        compositor = screen._compositor
        assert isinstance(compositor, FrugalCompositor)
        grow, grown = compositor.grow, []

        def counted(text: Widget, view: Widget, rows: int) -> dict[Widget, MapGeometry]:
            grown.append(rows)
            return grow(text, view, rows)

        compositor.grow = counted  # type: ignore[method-assign]
        if mark:
            transcript.mark_turn(transcript._turns[-1])
        text = "\n\n".join(ANSWERS)
        for start in range(0, len(text), 30):
            chat.service.say(text[start : start + 30])
            await chat.settle()
            drawn = [strip.text for strip in compositor.render_strips()]
            moved, scrolled, virtual = compositor.visible_widgets, transcript.scroll_y, transcript.virtual_size
            places = {widget: compositor.find_widget(widget) for widget in moved}
            for widget in moved:
                widget._clear_arrangement_cache()
                widget.clear_cached_dimensions()
            compositor.reflow_visible(screen, screen.outer_size)
            assert compositor.visible_widgets == moved
            assert {widget: compositor.find_widget(widget) for widget in moved} == places
            assert (transcript.scroll_y, compositor.find_widget(transcript).virtual_size) == (scrolled, virtual)
            assert [strip.text for strip in compositor.render_strips()] == drawn
        assert len(grown) > 20 and max(grown) > 1


async def test_an_answer_that_grew_looks_as_if_it_had_been_there_from_the_start(make_app: MakeApp) -> None:
    """Rows that are not drawn again, and layouts that are saved, leave nothing behind that is out of date."""

    async def look(pieces: list[str]) -> list[str]:
        async with make_app().run_test(size=(100, 30)) as pilot:
            chat = ChatDriver(pilot)
            await chat.start()
            await chat.ask("a question")
            chat.service.ready()
            for piece in pieces:
                chat.service.say(piece)
                await chat.settle()
            chat.service.finish()
            await chat.settle()
            await pilot.pause()
            return [strip.text for strip in chat.chat_screen._compositor.render_strips()][1:27]

    text = "\n\n".join(ANSWERS)
    whole, grown = await look([text]), await look([text[start : start + 40] for start in range(0, len(text), 40)])
    assert grown == whole
