"""SamplerPanel: the sampler's settings, and beside them what each step leaves of the tokens that may come next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input, Select, Static

from exl2_tui.core.events import Event, SamplerPreview
from exl2_tui.core.requests import SamplerSettings
from exl2_tui.keymap import bindings
from exl2_tui.screens.form import Choices, FieldRow, Form
from exl2_tui.settings import Settings
from exl2_tui.settings_form import PRESETS, SAMPLER, text_of
from exl2_tui.state import Changes
from exl2_tui.text import one_line
from exl2_tui.widgets.hint_row import HintRow
from exl2_tui.widgets.survivors import survivors_table

PREVIEW_DELAY = 0.06  # seconds of rest after a key before the steps are computed again


class SamplerPanel(Form, ModalScreen[Any]):
    """`ask(sampler, token)` requests a SamplerPreview, which `service_event` brings. `prompts_read()`: how many."""

    HELP = (
        "How the next token is chosen, from top to bottom. Beside it stands what each step leaves of the tokens that "
        "may follow your last prompt, as the engine computes it: a dot means dropped, the last column is what is drawn "
        "from. Values are used from the next answer on."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("dialog", "cancel", "reset"),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Previous", show=False),
    ]

    def __init__(
        self,
        settings: Settings,
        change: Callable[[Settings], None],
        ask: Callable[[SamplerSettings, int], None],
        prompts_read: Callable[[], int],
    ) -> None:
        super().__init__(settings, change)
        self._ask = ask
        self._prompts_read = prompts_read
        self._shown_prompt = prompts_read()
        self._token = 0
        self._timer: Timer | None = None
        self._preview: SamplerPreview | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog form sampler") as box:
            box.border_title = Content("Sampler")
            with Horizontal(id="panes"):
                with VerticalScroll(can_focus=False, id="values"):
                    with Horizontal(classes="field"):
                        yield Static("Preset", classes="label", markup=False)
                        yield Choices(
                            [(name, name) for name in PRESETS],
                            value=preset_of(self._settings.sampler) or Select.NULL,
                            prompt="custom",
                            compact=True,
                            id="preset",
                        )
                    for field in SAMPLER.fields:
                        yield FieldRow(field, self._settings)
                with Vertical(id="survivors"):
                    yield Static(Content("The token after your last prompt"), id="survivors-head", markup=False)
                    yield Static("", id="survivors-table", markup=False)
            yield Static("", id="about", markup=False)
            yield HintRow("↑↓ next   {dialog.reset} back to default   • changed from default   {dialog.close} close")

    def on_mount(self) -> None:
        self.query(FieldRow).first().query_one(Input).focus()
        self._request()

    def on_resize(self) -> None:
        self._draw()

    def on_select_changed(self, event: Select.Changed) -> None:
        if event.select.id == "preset" and event.value in PRESETS:
            self._apply(PRESETS[str(event.value)])

    def settings_changed(self, settings: Settings) -> None:
        """A value was taken: the preset is named if it is one, and the steps are computed again."""
        select = self.query_one("#preset", Select)
        with select.prevent(Select.Changed):
            name = preset_of(settings.sampler)
            if name is None:
                select.clear()
            else:
                select.value = name
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(PREVIEW_DELAY, self._request)

    def repaint(self, changes: Changes) -> None:
        """Asks again when another prompt has been read or another model is there."""
        prompts = self._prompts_read()
        if changes.model or prompts != self._shown_prompt:
            self._shown_prompt = prompts
            self._request()

    def service_event(self, event: Event) -> None:
        """Takes the answer to the last question; others are late."""
        if isinstance(event, SamplerPreview) and event.token == self._token:
            self._preview = event
            self._draw()

    def action_cancel(self) -> None:
        self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:
            self.dismiss(None)

    def _request(self) -> None:
        self._token += 1
        self._ask(self._settings.sampler, self._token)

    def _apply(self, sampler: SamplerSettings) -> None:
        wanted = Settings(sampler=sampler)
        for row in self.query(FieldRow):
            if row.field.name != "seed":
                row.set_text(text_of(wanted, row.field))

    def _draw(self) -> None:
        preview = self._preview
        table = self.query_one("#survivors-table", Static)
        if preview is None:
            return
        if preview.error:
            table.update(Content.styled(one_line(preview.error), "$secondary"))
            return
        room = self.query_one("#survivors").content_size
        table.update(survivors_table(preview.steps, room.width, room.height - 1))


def preset_of(sampler: SamplerSettings) -> str | None:
    """The preset with these values, whatever the seed."""
    fields = [field.name for field in SAMPLER.fields if field.name != "seed"]
    return next(
        (
            name
            for name, preset in PRESETS.items()
            if all(getattr(preset, field) == getattr(sampler, field) for field in fields)
        ),
        None,
    )
