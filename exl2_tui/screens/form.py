"""Settings as rows of label, value and meaning; every change is checked and used at once.

FieldRow is a row. Form is what a screen of such rows does; `sampler.py` and `settings.py` are such screens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Select, Static

from exl2_tui.core.errors import Exl2Error
from exl2_tui.hints import hint
from exl2_tui.settings import Settings
from exl2_tui.settings_form import Field, is_default, text_of, with_text
from exl2_tui.text import one_line


class Choices(Select[str], inherit_bindings=False):
    """A Select that leaves the arrow keys to the form, so that they walk through all rows alike."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "show_overlay", "Choices", show=False)]


class FieldRow(Horizontal):
    """One field. A value that differs from the default carries a mark; a wrong one says below what is wrong."""

    def __init__(self, field: Field, settings: Settings) -> None:
        super().__init__(classes="field")
        self.field = field
        self._settings = settings

    def compose(self) -> ComposeResult:
        text = text_of(self._settings, self.field)
        label = Static(Content(self.field.title), classes="label", markup=False)
        label.tooltip = Content(self.meaning)
        yield label
        if self.field.choices:
            options = [(choice, choice) for choice in self.field.choices]
            yield Choices(options, value=text, allow_blank=False, compact=True)
        else:
            control = Input(one_line(text), compact=True)
            control.cursor_blink = False
            yield control
        yield Static("", classes="mark", markup=False)
        yield Static(Content(self.meaning), classes="meaning", markup=False)

    @property
    def meaning(self) -> str:
        """What the field is for, with keys as they are now."""
        return hint(self, self.field.help)

    @property
    def help_text(self) -> str:
        default = text_of(Settings(), self.field) or "empty"
        name = f"[{self.field.section}] {self.field.name}"
        return f"{self.field.title}: {self.field.help}. Its default is {default}; in the file it is {name}."

    def on_mount(self) -> None:
        self.show_state(self._settings, "")

    def show(self, settings: Settings) -> None:
        """Shows the value of other settings; nothing is changed by that."""
        self._settings = settings
        with self.prevent(Input.Changed, Select.Changed):
            self.set_text(one_line(text_of(settings, self.field)))
        self.show_state(settings, "")

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
        meaning = Content.styled(one_line(error), "$error") if error else Content(self.meaning)
        self.query_one(".meaning", Static).update(meaning, layout=False)


class Form(Screen[Any]):
    """A screen with FieldRows. `change(settings)` is called with every valid change; an invalid one is explained in
    its row and changes nothing."""

    def __init__(self, settings: Settings, change: Callable[[Settings], None], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._settings = settings
        self._change = change

    def settings_changed(self, settings: Settings) -> None:
        """For screens that show more than the rows."""

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The whole meaning of the field, since its own row may be too narrow."""
        row = self._row_of(event.widget)
        if row is not None:
            self._about(row)

    def tell(self, text: str, style: str = "") -> None:
        """What the row at the bottom says."""
        self.query_one("#about", Static).update(Content.styled(one_line(text), style), layout=False)

    def _about(self, row: FieldRow, error: str = "") -> None:
        """Says at the bottom what is wrong with a field, else what it is for."""
        default = text_of(Settings(), row.field) or "empty"
        if error:
            self.tell(f"✗ {error}", "$error")
        else:
            self.tell(f"{row.meaning} · default {default} · [{row.field.key}]")

    def on_input_changed(self, event: Input.Changed) -> None:
        row = event.input.parent
        if isinstance(row, FieldRow):
            self._take(row, event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        row = event.input.parent
        if isinstance(row, FieldRow) and row.field.long:
            self._edit_long(row)

    def on_select_changed(self, event: Select.Changed) -> None:
        row = event.select.parent
        if isinstance(row, FieldRow):
            self._take(row, str(event.value))

    def action_reset(self) -> None:
        """The focused field goes back to its default."""
        row = self._row_of(self.focused)
        if row is not None:
            row.set_text(text_of(Settings(), row.field))

    def use(self, settings: Settings) -> None:
        """Takes settings that are valid as a whole."""
        self._settings = settings
        self._change(settings)
        self.settings_changed(settings)

    def take(self, settings: Settings) -> None:
        """The settings were changed elsewhere: by a key, by the palette, by a model that was loaded."""
        before, self._settings = self._settings, settings
        for row in self.query(FieldRow):
            if text_of(settings, row.field) != text_of(before, row.field):
                row.show(settings)
        if settings != before:
            self.settings_changed(settings)

    def _row_of(self, widget: Widget | None) -> FieldRow | None:
        above = widget.ancestors if widget is not None else ()
        return next((part for part in above if isinstance(part, FieldRow)), None)

    def _take(self, row: FieldRow, text: str) -> None:
        now = text_of(self._settings, row.field)
        settings, error = self._settings, ""
        if "\n" in now and text != one_line(now) and text:
            error = "it has several lines: enter edits them"
        elif text not in (now, one_line(now)):
            try:
                settings = with_text(self._settings, row.field, text)
            except Exl2Error as wrong:
                error = wrong.message
        row.show_state(settings, error)
        if self._row_of(self.focused) is row:
            self._about(row, error)
        if settings is not self._settings:
            self.use(settings)

    def _edit_long(self, row: FieldRow) -> None:
        from exl2_tui.screens.dialogs import TextDialog

        def edited(text: str | None) -> None:
            if text is not None:
                self.use(with_text(self._settings, row.field, text))
                row.show_state(self._settings, "")
                row.set_text(one_line(text))

        self.app.push_screen(TextDialog(row.field.title, text_of(self._settings, row.field)), edited)
