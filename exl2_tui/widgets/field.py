"""Field: a label, a control and, under it, what was found about what is in it. Choice: a few values on one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from exl2_tui.core.job_events import FieldNote
from exl2_tui.text import one_line

MARKS = {"ok": ("✓", "$success"), "info": ("·", "$secondary"), "warning": ("!", "$warning"), "error": ("✗", "$error")}
ORDER = ("error", "warning", "ok", "info")


class Field(Vertical):
    """One row of a form, and a row under it while there is something to say. help_text: what it is for."""

    DEFAULT_CSS: ClassVar[str] = """
    Field { height: auto; width: 1fr; }
    Field > Horizontal { height: 1; width: 1fr; }
    Field .label { width: 18; height: 1; color: $secondary; }
    Field > .note { height: 1; width: 1fr; padding-left: 18; display: none; text-wrap: nowrap;
        text-overflow: ellipsis; }
    Field.-noted > .note { display: block; }
    """

    def __init__(self, name: str, label: str, *controls: Widget, help_text: str = "") -> None:
        super().__init__(id=f"field-{name}")
        self.field = name
        self.help_text = f"{label}: {help_text}"
        self._label = label
        self._controls = controls

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(Content(self._label), classes="label", markup=False)
            yield from self._controls
        yield Static("", classes="note", markup=False)

    def show(self, notes: Sequence[FieldNote]) -> None:
        """The worst of the notes about this field; none hides the row."""
        mine = sorted((note for note in notes if note.field == self.field), key=lambda note: ORDER.index(note.level))
        self.set_class(bool(mine), "-noted")
        if mine:
            mark, style = MARKS[mine[0].level]
            text = style if mine[0].level in ("error", "warning") else "$secondary"
            found = Content.assemble((f"{mark} ", style), (one_line(mine[0].text), text))
            self.query_one(".note", Static).update(found, layout=False)


class Choice(Widget, can_focus=True):
    """A few values side by side; arrow keys or a click choose one."""

    DEFAULT_CSS: ClassVar[str] = "Choice { height: 1; width: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Left", show=False),
        Binding("right,space", "move(1)", "Right", show=False),
    ]

    value: reactive[str] = reactive("", init=False)

    class Changed(Message):
        """Another value was chosen."""

    def __init__(self, options: Sequence[str], value: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._options = list(options)
        self.set_reactive(Choice.value, value)

    def render(self) -> Content:
        parts: list[tuple[str, str]] = []
        for option in self._options:
            if option != self.value:
                parts.append((f" {option} ", "$secondary"))
            elif self.has_focus:
                parts.append((f"[{option}]", "bold $input-selection-foreground on $input-selection-background"))
            else:
                parts.append((f"[{option}]", "bold $primary"))
        return Content.assemble(*parts)

    def watch_value(self) -> None:
        self.post_message(self.Changed())

    def action_move(self, step: int) -> None:
        at = self._options.index(self.value) if self.value in self._options else 0
        self.value = self._options[(at + step) % len(self._options)]

    def on_click(self, event: Click) -> None:
        right = 0
        for option in self._options:
            right += len(option) + 2
            if event.x < right:
                self.value = option
                return
