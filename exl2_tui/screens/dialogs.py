"""Small dialogs: a question with verbs for answers, a text to edit, the page of keys."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from exl2_tui.keymap import KEYS, effective, spell
from exl2_tui.text import one_line, plain


class ChoiceDialog(ModalScreen[str | None]):
    """Asks which of a few things to do; answers with the choice's key, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Close", show=False)]

    def __init__(self, title: str, text: str, choices: list[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._choices = choices

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = Content(self._title)
            yield Static(plain(self._text), classes="text", markup=False)
            yield OptionList(*(Option(Content(label), id=key) for key, label in self._choices), markup=False)
            yield Static(Content("⏎ choose   esc go back"), classes="hint", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_cancel(self) -> None:
        self.dismiss(None)


class TextDialog(ModalScreen[str | None]):
    """Edits a text of several lines; answers with it, or None to leave everything as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", show=False),
        Binding("ctrl+s,f2", "save", "Save", show=False, priority=True),
    ]

    def __init__(self, title: str, text: str, *, placeholder: str = "", hint: str = "") -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._placeholder = placeholder
        self._hint = hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide") as box:
            box.border_title = Content(self._title)
            area = TextArea(
                plain(self._text).plain,
                soft_wrap=True,
                compact=True,
                highlight_cursor_line=False,
                placeholder=self._placeholder,
                tab_behavior="focus",
            )
            area.cursor_blink = False
            yield area
            if self._hint:
                yield Static(Content(self._hint), classes="text", markup=False)
            yield Static(Content("^s use it   esc leave as it was"), classes="hint", markup=False)

    def on_mount(self) -> None:
        area = self.query_one(TextArea)
        area.move_cursor(area.document.end)
        area.focus()

    def action_save(self) -> None:
        self.dismiss(self.query_one(TextArea).text)

    def action_cancel(self) -> None:
        self.dismiss(None)


class LineDialog(ModalScreen[str | None]):
    """Asks for one line; answers with it, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", show=False)]

    def __init__(self, title: str, text: str, *, placeholder: str = "") -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._placeholder = placeholder

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = Content(self._title)
            yield Input(one_line(self._text), placeholder=self._placeholder, compact=True)
            yield Static(Content("⏎ use it   esc leave as it was"), classes="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_cancel(self) -> None:
        self.dismiss(None)


HELP_TITLES = {
    "chat": "Chat",
    "composer": "Writing",
    "turn": "On a marked turn (alt+up, alt+down)",
    "models": "Models",
    "hub": "Models: Hugging Face Hub",
    "downloads": "Models: downloads",
    "convert": "Convert: the list",
    "wizard": "Convert: a new one",
    "job": "Convert: one conversion",
    "app": "Everywhere",
}


class HelpScreen(ModalScreen[None]):
    """All keys, as they are bound now."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,enter", "cancel", "Close", show=False)]

    def __init__(self, overrides: dict[str, str]) -> None:
        super().__init__()
        self._keys = effective(overrides)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide -tall") as box:
            box.border_title = Content("Keys")
            with VerticalScroll():
                yield Static(self._table(), markup=False)
            yield Static(Content("↑↓ scroll   esc close"), classes="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _table(self) -> Content:
        rows: list[Content] = []
        for place, title in HELP_TITLES.items():
            rows.append(Content.styled(title, "bold"))
            for key in KEYS:
                if key.place == place:
                    name = spell(self._keys[key.id])
                    rows.append(Content.assemble("  ", (f"{name:<12}", "$primary"), key.help))
            rows.append(Content(""))
        return Content("\n").join(rows[:-1])
