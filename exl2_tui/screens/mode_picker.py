"""ModePicker: prompt modes with the exact prompt each would make of this chat, special tokens marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from exl2_tui.core.events import Event, ModeChoice, ModesListed, PromptPreview
from exl2_tui.keymap import bindings
from exl2_tui.text import clean, one_line, plain
from exl2_tui.widgets.hint_row import HintRow

PREVIEW_DELAY = 0.08  # seconds the cursor rests on a mode before its prompt is asked for
PREVIEW_LIMIT = 12_000  # characters drawn; a long chat shows its beginning and its end


class ModePicker(ModalScreen[str | None]):
    """Answers with the chosen mode, or None. `ask(mode, token)` requests the PromptPreview."""

    HELP = (
        "A prompt mode is how a conversation is written down for a model; auto takes the template that came with it. "
        "Below is the exact prompt, control tokens in another colour, and with it its number of tokens and what ends "
        "an answer."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("dialog", "cancel"),
        Binding("enter", "choose", "Choose", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("pageup", "scroll(-1)", "Scroll", show=False, priority=True),
        Binding("pagedown", "scroll(1)", "Scroll", show=False, priority=True),
    ]

    def __init__(
        self, modes: tuple[ModeChoice, ...], current: str, ask: Callable[[str, int], None], *, ready: bool
    ) -> None:
        super().__init__()
        self._modes = modes
        self._current = current
        self._ask = ask
        self._ready = ready
        self._token = 0
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide mode-picker") as box:
            box.border_title = Content("Prompt mode")
            yield Input(placeholder="type to filter", compact=True)
            yield OptionList(markup=False, compact=True, classes="-rows")
            yield Static("", id="preview-head", markup=False)
            with VerticalScroll(id="preview", can_focus=False):
                yield Static("", markup=False)
            yield HintRow("⏎ use   ↑↓ choose   PgUp PgDn scroll   {dialog.close} keep ", one_line(self._current, 20))

    def on_mount(self) -> None:
        self.query_one(Input).cursor_blink = False
        self._fill("")
        self.query_one(Input).focus()

    def service_event(self, event: Event) -> None:
        """Takes answers of the service; previews of another mode than the one under the cursor are dropped."""
        if isinstance(event, ModesListed):
            self._modes = event.modes
            self._fill(self.query_one(Input).value)
        elif isinstance(event, PromptPreview) and event.token == self._token:
            self._show(event)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._fill(event.value)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(PREVIEW_DELAY, self._request)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:
            self.dismiss(None)

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        if options.option_count:
            options.highlighted = ((options.highlighted or 0) + step) % options.option_count

    def action_scroll(self, step: int) -> None:
        pane = self.query_one("#preview", VerticalScroll)
        pane.scroll_relative(y=step * max(1, pane.size.height - 1), animate=False)

    def action_choose(self) -> None:
        mode = self._highlighted()
        if mode is not None:
            self.dismiss(mode)

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _highlighted(self) -> str | None:
        options = self.query_one(OptionList)
        if options.highlighted is None or not options.option_count:
            return None
        return options.get_option_at_index(options.highlighted).id

    def _fill(self, words: str) -> None:
        wanted = words.lower().split()
        modes = [
            mode for mode in self._modes if all(word in f"{mode.name} {mode.description}".lower() for word in wanted)
        ]
        width = max([8, *(len(mode.name) for mode in self._modes)]) + 2
        options = self.query_one(OptionList)
        options.set_options(
            Option(
                Content.assemble(
                    ("● " if mode.name == self._current else "  ", "$primary"),
                    f"{one_line(mode.name):<{width}}",
                    (one_line(mode.description), "$secondary"),
                ),
                id=mode.name,
            )
            for mode in modes
        )
        names = [mode.name for mode in modes]
        options.highlighted = names.index(self._current) if self._current in names else (0 if names else None)
        if not names:
            self._put_head("no mode of that name", "")
            self._put_body(Content(""))

    def _request(self) -> None:
        mode = self._highlighted()
        if mode is None:
            return
        self._token += 1
        if self._ready:
            self._ask(mode, self._token)
        else:
            self._put_head("The exact prompt is shown here once a model is loaded.", "")

    def _show(self, event: PromptPreview) -> None:
        if event.error:
            self._put_head("This mode does not work here", "")
            self._put_body(plain(event.error, "$error"))
            return
        stops = ", ".join(one_line(stop) for stop in event.stop_strings[:3])
        used = f" · is {one_line(event.mode)}" if event.mode != self._highlighted() else ""
        self._put_head(
            f"What the model will see{used}",
            f"{event.token_count:,} tokens" + (f" · stops on {stops}" if stops else ""),
        )
        parts: list[tuple[str, str]] = []
        for part in event.parts:
            text = clean(part.text)
            if part.special:
                parts.append((text, "$warning"))
            else:
                parts.append((text.replace("\n", "⏎\n"), "" if part.role != "template" else "$secondary"))
        body = Content.assemble(*((text, style) if style else text for text, style in parts))
        if len(body) > PREVIEW_LIMIT:
            half = PREVIEW_LIMIT // 2
            body = body[:half] + Content.styled("\n… left out here …\n", "$secondary") + body[-half:]
        if event.note:
            body = plain(one_line(event.note) + "\n", "$secondary") + body
        self._put_body(body)

    def _put_head(self, left: str, right: str) -> None:
        head = self.query_one("#preview-head", Static)
        width = head.content_size.width or 60
        head.update(Content(left + right.rjust(max(2, width - len(left)) if right else 0)), layout=False)

    def _put_body(self, body: Content) -> None:
        pane = self.query_one("#preview", VerticalScroll)
        pane.query_one(Static).update(body)
        pane.scroll_home(animate=False)
