"""The sampler panel: values, presets, and what each step leaves of the next token."""

from __future__ import annotations

import pytest
from textual.content import Content
from textual.widgets import Input, Select, Static

from exl2_tui.core.requests import SamplerSettings
from exl2_tui.screens.sampler import SamplerPanel, preset_of
from exl2_tui.settings_form import PRESETS
from exl2_tui.widgets.survivors import survivors_table
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.fakes import WORDS, sampler_steps


@pytest.mark.parametrize(("width", "height"), [(37, 17), (74, 17), (20, 5), (1, 1)])
def test_the_table_fits_its_room(width: int, height: int) -> None:
    table = survivors_table(sampler_steps(SamplerSettings()), width, height)
    rows = table.split("\n")
    assert len(rows) <= max(3, height)
    assert all(row.cell_length <= max(16, width) for row in rows)


def test_columns_are_the_steps_and_dropped_tokens_are_dots() -> None:
    rows = survivors_table(sampler_steps(SamplerSettings(top_p=0.8)), 74, 12).plain.split("\n")
    assert rows[0].split() == ["model", "temp", "top-k", "top-p"]
    assert rows[1].split() == ["left", "8", "8", "8", "3"]
    assert rows[2].split()[:5] == ["␣the", "43.3%", "50.0%", "50.0%", "55.6%"] and "━" in rows[2]
    assert rows[3].startswith("⏎") and rows[5].startswith("[b]") and rows[5].rstrip().endswith("·")
    assert "\x1b" not in "".join(rows) and len(rows) == 2 + len(WORDS)


def test_a_survivor_the_model_thought_little_of_has_a_row() -> None:
    steps = sampler_steps(SamplerSettings(temperature=1.0, top_k=0, top_p=1.0))
    last = type(steps[0])("typical_p", 1, (steps[0].best[-1],))
    rows = survivors_table((*steps, last), 74, 6).plain.split("\n")
    assert len(rows) == 6 and rows[-1].startswith("<s>")


def test_presets_are_known_by_their_values() -> None:
    for name, sampler in PRESETS.items():
        assert preset_of(sampler) == name
    assert preset_of(SamplerSettings(seed=7)) == "balanced"
    assert preset_of(SamplerSettings(top_k=41)) is None


async def test_the_steps_follow_the_values(make_app: MakeApp) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()

        def table() -> str:
            content = chat.app.screen.query_one("#survivors-table", Static).render()
            return content.plain if isinstance(content, Content) else str(content)

        await pilot.press("ctrl+s")
        await until(lambda: isinstance(chat.app.screen, SamplerPanel) and service.sampler_previews)
        await chat.settle()
        assert "Ask something first" in table()
        await pilot.press("escape")
        await chat.ask("hi")
        await chat.answer("ho")
        await pilot.press("ctrl+s")
        await until(lambda: "top-p" in table())
        await chat.settle()
        panel = chat.app.screen
        assert table().split("\n")[1].split()[-1] == "3"
        asked = len(service.sampler_previews)
        top_k = next(row for row in panel.query("FieldRow") if row.field.name == "top_k")  # type: ignore[attr-defined]
        top_k.query_one(Input).focus()
        await pilot.press("end", "backspace", "backspace", "2")
        await until(lambda: table().split("\n")[1].split()[-1] == "2")
        assert len(service.sampler_previews) > asked
        assert service.sampler_previews[-1][0] == chat.app.settings.sampler
        assert panel.query_one("#preset", Select).value == Select.NULL
        await pilot.press("x")  # no number: nothing is asked, the last steps stay
        await chat.settle()
        assert table().split("\n")[1].split()[-1] == "2"
        panel.query_one("#preset", Select).value = "greedy"
        await until(lambda: "greedy" in table())
        assert chat.app.settings.sampler == SamplerSettings.greedy()
        late = service.sampler_previews[0][1]
        from exl2_tui.core.events import SamplerPreview

        service.post(SamplerPreview(late, error="late"))
        await chat.settle()
        assert "late" not in table()


async def test_the_steps_follow_the_answer_and_the_model(make_app: MakeApp) -> None:
    """Opened while a model loads or a prompt is read, the panel asks again when there is more to know."""
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        service = await chat.start()
        await chat.ask("hi")
        await pilot.press("ctrl+s")
        await until(lambda: isinstance(chat.app.screen, SamplerPanel) and service.sampler_previews)
        asked = len(service.sampler_previews)
        service.say("one ")
        await until(lambda: len(service.sampler_previews) == asked + 1)
        service.say("two ")
        await chat.settle()
        assert len(service.sampler_previews) == asked + 1  # it is about the end of the prompt, not of the answer
        chat.app.load_model("other", stay=True)
        service.loaded("other")
        await until(lambda: len(service.sampler_previews) > asked + 1)


async def test_the_row_at_the_bottom_says_what_is_wrong(make_app: MakeApp) -> None:
    """At 80 columns the field's own row has room for a mark only."""
    async with make_app().run_test(size=(80, 24)) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("ctrl+s")

        def about() -> str:
            return str(chat.app.screen.query_one("#about", Static).render())

        await until(lambda: isinstance(chat.app.screen, SamplerPanel) and "most probable" in about())
        await pilot.press("end", "x")
        await until(lambda: "✗" in about() and "number" in about())
        await pilot.press("backspace")
        await until(lambda: "most probable" in about())
