"""ModelsScreen: the models of this machine, what each needs, and loading one."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from exl2_tui.core.events import Event, ModelInfo, ModelsListed
from exl2_tui.keymap import bindings
from exl2_tui.screens.dialogs import LineDialog
from exl2_tui.session import ChatSession
from exl2_tui.state import Changes
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.status import header, size_of, status_row


class ModelsScreen(Screen[None]):
    """A list with a filter and the facts of the model under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("models")]

    def __init__(
        self,
        session: ChatSession,
        *,
        scan: Callable[[], None],
        load: Callable[[str], None],
        unload: Callable[[], None],
        add_folder: Callable[[str], None],
    ) -> None:
        super().__init__(id="models")
        self._session = session
        self._scan = scan
        self._load = load
        self._unload = unload
        self._add_folder = add_folder
        self._models: tuple[ModelInfo, ...] | None = None

    def compose(self) -> ComposeResult:
        yield Row(id="header")
        yield Input(placeholder="filter by name, bits or family", compact=True, id="filter")
        yield Row(id="columns")
        yield OptionList(markup=False, compact=True, classes="-rows", id="list")
        with Vertical(id="bottom"):
            yield Static("", id="details", markup=False)
            yield StatusRow(id="status")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(Input).cursor_blink = False
        self.query_one(OptionList).focus()
        self.repaint(Changes(model=True, status=True))
        self._fill()
        self._scan()

    def on_resize(self) -> None:
        self._fill()

    def repaint(self, changes: Changes) -> None:
        """Draws what changed of the model that is loaded or loading."""
        if changes.model or changes.status:
            self.query_one("#header", Row).put(*header(self._session, "Models", self.app.size.width))
            self.query_one(StatusRow).show(*status_row(self._session, 0))
        if changes.model and self._session.model.status in ("ready", "none"):
            self._fill()
        if changes.flash:
            self.query_one(StatusRow).say(changes.flash)

    def service_event(self, event: Event) -> None:
        if isinstance(event, ModelsListed):
            self._models = event.models
            self._fill()

    def on_input_changed(self) -> None:
        self._fill()

    def on_input_submitted(self) -> None:
        self.query_one(OptionList).focus()

    def on_option_list_option_highlighted(self) -> None:
        self._show_details()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        model = self._at_cursor()
        if model is None:
            return
        if model.problem:
            self.query_one(StatusRow).say(model.problem, "$error")
        else:
            self._load(model.path)

    def action_leave(self) -> None:
        """Escape empties the filter first."""
        box = self.query_one(Input)
        if box.value or box.has_focus:
            box.value = ""
            self.query_one(OptionList).focus()
        else:
            self.dismiss(None)

    def action_filter(self) -> None:
        self.query_one(Input).focus()

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_rescan(self) -> None:
        self.query_one(StatusRow).say("Looking for models")
        self._scan()

    def action_unload(self) -> None:
        if self._session.ready:
            self._unload()
        else:
            self.query_one(StatusRow).say("No model is loaded")

    def action_add_folder(self) -> None:
        def named(path: str | None) -> None:
            if path is not None and path.strip():
                self._add_folder(path.strip())

        self.app.push_screen(LineDialog("Add a folder of models", "", placeholder="~/models"), named)

    def _shown(self) -> list[ModelInfo]:
        words = self.query_one(Input).value.lower().split()
        return [
            model
            for model in self._models or ()
            if all(word in f"{model.name} {model.family} {model.format} {model.path}".lower() for word in words)
        ]

    def _at_cursor(self) -> ModelInfo | None:
        options = self.query_one(OptionList)
        shown = self._shown()
        at = options.highlighted
        return shown[at] if at is not None and at < len(shown) else None

    def _fill(self) -> None:
        options = self.query_one(OptionList)
        width = max(40, (options.content_size.width or 80) - 1)
        kept = options.highlighted or 0
        shown = self._shown()
        name_width = width - 42
        self.query_one("#columns", Row).put(
            Content.styled(f"   {'NAME':<{name_width}}{'FORMAT':>16}{'SIZE':>10}{'CONTEXT':>10}", "$secondary")
        )
        options.set_options(Option(self._line(model, name_width)) for model in shown)
        if shown:
            options.highlighted = min(kept, len(shown) - 1)
        self._show_details()

    def _line(self, model: ModelInfo, name_width: int) -> Content:
        loaded = self._session.ready and self._session.model.name == model.name
        mark = ("✗ ", "$error") if model.problem else ("● ", "$primary") if loaded else ("  ", "")
        name = Content(one_line(model.name, name_width - 2)).pad_right(name_width)
        name = name[: max(0, name_width)]
        context = f"{model.context:,}" if model.context else ""
        facts = f"{one_line(model.format, 15):>16}{size_of(model.size_bytes):>10}{context:>10}"
        return Content.assemble(mark, name, (facts, "$secondary"))

    def _show_details(self) -> None:
        details = self.query_one("#details", Static)
        model = self._at_cursor()
        if model is None:
            if self._models is None:
                text = "Looking for models"
            elif self._models:
                text = "No model matches the filter. esc clears it."
            else:
                text = "No models found. a adds a folder of model directories."
            details.update(Content.styled(text, "$secondary"))
            return
        lines = [
            Content.assemble((one_line(model.name), "bold"), (f"   {one_line(model.source)}", "$secondary")),
            Content(one_line(model.path)),
            Content.styled(
                f"{one_line(model.family)} · {one_line(model.format)} · {model.bits_per_weight:.2f} bits per weight · "
                f"{size_of(model.size_bytes)} · context {model.context:,}",
                "$secondary",
            ),
        ]
        if model.problem:
            lines.append(Content.styled(f"✗ {one_line(model.problem)}", "$error"))
        details.update(Content("\n").join(lines))
