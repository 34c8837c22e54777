"""FolderDialog: asks for a folder that is there, with completion while it is typed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from exl2_tui.keymap import bindings
from exl2_tui.text import one_line
from exl2_tui.widgets.hint_row import HintRow
from exl2_tui.widgets.path_field import PathSuggester


class FolderDialog(ModalScreen[str | None]):
    """Answers with the absolute path of a folder, or None."""

    HELP = (
        "A folder whose models are to be found: a model itself, or a folder of models. Enter takes it, the right arrow "
        "completes what is grey, {dialog.close} leaves everything as it was. Settings, Models lists all folders."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog", "cancel")]

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = Content(self._title)
            yield Input(placeholder="~/models", compact=True, suggester=PathSuggester(folders_only=True))
            yield Static("", id="wrong", classes="text", markup=False)
            yield HintRow("⏎ use it   → complete   {dialog.close} leave as it was")

    def on_mount(self) -> None:
        box = self.query_one(Input)
        box.cursor_blink = False
        box.focus()

    def on_input_changed(self) -> None:
        self.query_one("#wrong", Static).update("")

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        typed = event.value.strip()
        if not typed:
            return
        found, wrong = await asyncio.to_thread(_look_at, typed)
        if wrong:
            self.query_one("#wrong", Static).update(Content.styled(f"✗ {one_line(wrong)}", "$error"))
        else:
            self.dismiss(found)

    def action_cancel(self) -> None:
        self.dismiss(None)


def _look_at(typed: str) -> tuple[str, str]:
    """The folder that is meant, and what is wrong with it. The disk may be slow: on a thread."""
    try:
        folder = Path(typed).expanduser().absolute()
        if folder.is_dir():
            next(folder.iterdir(), None)
            return str(folder), ""
    except (OSError, RuntimeError) as error:
        return "", f"It cannot be read: {getattr(error, 'strerror', None) or error}"
    return "", f"{'This is a file, not a folder' if folder.is_file() else 'There is no such folder'}: {folder}"
