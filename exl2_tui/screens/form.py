"""FormScreen: settings as rows of label, value and meaning; every change is checked and used at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Select, Static

from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.requests import SamplerSettings
from exl2_tui.settings import Settings
from exl2_tui.settings_form import Field, Group, is_default, text_of, with_text
from exl2_tui.text import one_line


class FieldRow(Horizontal):
    """One field. A value that differs from the default carries a mark; a wrong one says below what is wrong."""

    def __init__(self, field: Field, settings: Settings) -> None:
        super().__init__(classes="field")
        self.field = field
        self._settings = settings

    def compose(self) -> ComposeResult:
        text = text_of(self._settings, self.field)
        yield Static(Content(self.field.title), classes="label", markup=False)
        if self.field.choices:
            options = [(choice, choice) for choice in self.field.choices]
            yield Select(options, value=text, allow_blank=False, compact=True)
        else:
            control = Input(one_line(text), compact=True)
            control.cursor_blink = False
            yield control
        yield Static("", classes="mark", markup=False)
        yield Static(Content(self.field.help), classes="meaning", markup=False)

    def on_mount(self) -> None:
        self.show_state(self._settings, "")

    def set_text(self, text: str) -> None:
        """Shows another value, as a preset does."""
        for control in self.query(Input):
            control.value = text
        for select in self.query(Select):
            select.value = text

    def show_state(self, settings: Settings, error: str) -> None:
        """Marks the row as default, changed or wrong."""
        mark = "✗" if error else "" if is_default(settings, self.field) else "•"
        self.query_one(".mark", Static).update(Content.styled(mark, "$error" if error else "$primary"), layout=False)
        meaning = Content.styled(one_line(error), "$error") if error else Content(self.field.help)
        self.query_one(".meaning", Static).update(meaning, layout=False)


class FormScreen(ModalScreen[None]):
    """Edits the fields of `groups`. `change(settings)` is called with every valid change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", show=False),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Previous", show=False),
        Binding("f2", "reset", "Reset", show=False),
    ]

    def __init__(
        self,
        title: str,
        groups: tuple[Group, ...],
        settings: Settings,
        change: Callable[[Settings], None],
        *,
        presets: dict[str, SamplerSettings] | None = None,
    ) -> None:
        super().__init__()
        self._title = title
        self._groups = groups
        self._settings = settings
        self._change = change
        self._presets = presets or {}

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide -tall form") as box:
            box.border_title = Content(self._title)
            with VerticalScroll(can_focus=False):
                if self._presets:
                    with Horizontal(classes="field"):
                        yield Static("Preset", classes="label", markup=False)
                        yield Select(
                            [(name, name) for name in self._presets], prompt="own values", compact=True, id="preset"
                        )
                for group in self._groups:
                    if len(self._groups) > 1:
                        yield Static(Content(group.title), classes="group", markup=False)
                    for field in group.fields:
                        yield FieldRow(field, self._settings)
            yield Static("", id="about", markup=False)
            yield Static(Content("tab next   f2 back to default   • changed   esc close"), classes="hint", markup=False)

    def on_mount(self) -> None:
        first = self.query(FieldRow).first()
        first.query_one("Input, SelectCurrent" if not first.field.choices else "Select").focus()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The whole meaning of the field, since its own row may be too narrow."""
        row = next((part for part in event.widget.ancestors if isinstance(part, FieldRow)), None)
        field = row.field if row is not None else None
        about = Content(f"{field.help}   [{field.key}]") if field else Content("")
        self.query_one("#about", Static).update(about, layout=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        row = event.input.parent
        if isinstance(row, FieldRow):
            self._take(row, event.value)

    def on_select_changed(self, event: Select.Changed) -> None:
        row = event.select.parent
        if isinstance(row, FieldRow):
            self._take(row, str(event.value))
        elif event.value in self._presets:
            self._apply_preset(self._presets[str(event.value)])

    def _take(self, row: FieldRow, text: str) -> None:
        if text == text_of(self._settings, row.field):
            row.show_state(self._settings, "")
            return
        try:
            settings = with_text(self._settings, row.field, text)
        except Exl2Error as error:
            row.show_state(self._settings, error.message)
            return
        self._settings = settings
        row.show_state(settings, "")
        self._change(settings)

    def _apply_preset(self, sampler: SamplerSettings) -> None:
        wanted = Settings(sampler=sampler)
        for row in self.query(FieldRow):
            if row.field.section == "sampler" and row.field.name != "seed":
                row.set_text(text_of(wanted, row.field))

    def action_reset(self) -> None:
        """The focused field goes back to its default."""
        focused = self.focused
        row = next((part for part in focused.ancestors if isinstance(part, FieldRow)), None) if focused else None
        if row is not None:
            row.set_text(text_of(Settings(), row.field))

    def action_close(self) -> None:
        self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:
            self.dismiss(None)
