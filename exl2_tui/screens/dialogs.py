"""Small dialogs: a question with verbs for answers, a text to edit, the page of keys."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from exl2_tui.keymap import KEYS, PLACE_TITLES, bindings, effective, spell, with_keys
from exl2_tui.text import one_line, plain
from exl2_tui.widgets.hint_row import HintRow


class ChoiceDialog(ModalScreen[str | None]):
    """Asks which of a few things to do; answers with the choice's key, or None."""

    HELP = "Nothing happens before you choose. The first answer changes nothing, and neither does {dialog.close}."
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog", "cancel")]

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
            yield HintRow("⏎ choose   {dialog.close} go back")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_cancel(self) -> None:
        self.dismiss(None)


class TextDialog(ModalScreen[str | None]):
    """Edits a text of several lines; answers with it, or None to leave everything as it was."""

    HELP = (
        "Enter adds a line here; {text.save} takes the text as it stands, {dialog.close} leaves everything as it was."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog", "cancel"), *bindings("text")]

    def __init__(self, title: str, text: str, *, placeholder: str = "", hint: str = "") -> None:
        super().__init__(id="text")
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
            yield HintRow("{text.save} use it   {dialog.close} leave as it was")

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

    HELP = "Enter takes what stands here, {dialog.close} leaves everything as it was."
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog", "cancel")]

    def __init__(self, title: str, text: str, *, placeholder: str = "") -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._placeholder = placeholder

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = Content(self._title)
            yield Input(one_line(self._text), placeholder=self._placeholder, compact=True)
            yield HintRow("⏎ use it   {dialog.close} leave as it was")

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_cancel(self) -> None:
        self.dismiss(None)


@runtime_checkable
class ExplainsItself(Protocol):
    """A widget whose help depends on what it shows, such as a field of a form."""

    @property
    def help_text(self) -> str: ...


def help_about(screen: Screen[Any]) -> str:
    """What the help says about a screen: the nearest text to what has the focus, then what is around that."""
    parts = screen.focused.ancestors_with_self if screen.focused is not None else [screen]
    found = []
    for part in parts:
        text = part.help_text if isinstance(part, ExplainsItself) else part.HELP
        found += [text] if text else []
    return "\n\n".join(dict.fromkeys(found))


def place_of(screen: Screen[Any]) -> str:
    """Whose keys matter on a screen: by its id, and on the chat by what has the focus."""
    if screen.id != "chat":
        return screen.id if screen.id in PLACE_TITLES else "dialog"
    above = screen.focused.ancestors_with_self if screen.focused is not None else []
    return "find" if any(type(part).__name__ == "FindBar" for part in above) else "chat"


class HelpScreen(ModalScreen[None]):
    """Help for what has the focus: what it is for, its keys as they are bound now, then all others.

    place: whose keys come first; text: a few sentences, plain, with keys by name as `keymap.with_keys` takes them.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("dialog", "cancel"),
        Binding("q,enter", "cancel", "Close", show=False),
    ]

    def __init__(self, place: str, text: str, overrides: dict[str, str]) -> None:
        super().__init__()
        self._place = place
        self._text = with_keys(text, overrides)
        self._keys = effective(overrides)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide -tall") as box:
            title = "this dialog" if self._place == "dialog" else PLACE_TITLES[self._place]
            box.border_title = Content(f"Help: {title}")
            with VerticalScroll():
                yield Static(self._page(), markup=False)
            yield HintRow("↑↓ scroll   {dialog.close} close")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _page(self) -> Content:
        rows: list[Content] = []
        if self._text:
            rows += [Content(self._text), Content("")]
        for place in sorted(PLACE_TITLES, key=lambda place: (place != self._place, place != "app")):
            rows.append(Content.styled(PLACE_TITLES[place], "bold"))
            for key in KEYS:
                if key.place == place:
                    name = spell(self._keys[key.id])
                    rows.append(Content.assemble("  ", (f"{name:<12}", "$primary"), key.help))
            rows.append(Content(""))
        return Content("\n").join(rows[:-1])
