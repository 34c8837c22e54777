"""DownloadsScreen: what is being downloaded, was begun, or is finished."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList, Static

from exl2_tui.core.sizes import size_of
from exl2_tui.hints import hint, keys_of
from exl2_tui.keymap import bindings
from exl2_tui.models_place import ModelsPlace
from exl2_tui.models_state import Download
from exl2_tui.screens.dialogs import ChoiceDialog
from exl2_tui.screens.models_tab import ModelsTab
from exl2_tui.state import Changes
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.hub_rows import download_details, download_heading, download_row
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.keyed_list import KeyedList
from exl2_tui.widgets.place_tabs import PlaceTabs


class DownloadsScreen(ModelsTab):
    """One row per download; it goes on whether somebody looks or not."""

    HELP = (
        "Downloads go on while you chat. One that was paused, or stopped because the program or the connection ended, "
        "goes on where it was; discarding deletes what is here of it. Hashes are checked at the end. A finished one "
        "can be taken off this list: its model stays, until you delete it in {app.models}."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("downloads")]

    def __init__(self, place: ModelsPlace) -> None:
        super().__init__(place, id="downloads")

    def compose(self) -> ComposeResult:
        yield Header("Models")
        yield PlaceTabs("downloads", id="tabs")
        yield Row(id="columns")
        yield KeyedList(classes="-rows", id="list")
        with Vertical(id="bottom"):
            yield Static("", id="details", markup=False)
            yield StatusRow(id="status")
        yield KeyRow()

    def on_mount(self) -> None:
        self.query_one("#list").focus()
        self.repaint(Changes(model=True))
        self._place.service.unfinished()
        self.models_changed()

    def models_changed(self) -> None:
        self.fill()

    def fill(self) -> None:
        state = self._place.state
        rows = list(state.downloads.values())
        options = self.query_one_optional("#list", KeyedList)
        if options is None:  # not yet, or no longer, on the screen
            return
        self.query_one("#columns", Row).put(download_heading(options.room) if rows else Content(""))
        options.put([(one.id, download_row(one, options.room)) for one in rows])
        counts = {
            "models": len(state.listed.models) if state.listed is not None else 0,
            "downloads": state.unfinished,
        }
        self.query_one(PlaceTabs).show(counts, Content(""))
        self._show_details()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense for the download under the cursor is in the footer."""
        one = self._at_cursor
        if action == "pause":
            return one is not None and one.active
        if action == "resume":
            return one is not None and one.status in ("stopped", "failed")
        if action == "discard":
            return one is not None and one.status != "finished"
        if action in ("chat", "unlist"):
            return one is not None and one.status == "finished"
        return True

    def on_option_list_option_highlighted(self) -> None:
        self._show_details()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        one = self._at_cursor
        if one is not None and one.status == "finished":
            self._place.load(one.path)
        elif one is not None and not one.active:
            self._place.resume(one)
            self.models_changed()

    def action_leave(self) -> None:
        self._place.show("models")

    def action_hub(self) -> None:
        self._place.show("hub")

    def action_pause(self) -> None:
        one = self._at_cursor
        if one is not None:
            self._place.stop(one)
            self.models_changed()

    def action_resume(self) -> None:
        one = self._at_cursor
        if one is not None:
            self._place.resume(one)
            self.models_changed()

    def action_discard(self) -> None:
        one = self._at_cursor
        if one is None:
            return
        if one.active:
            self.query_one(StatusRow).say(hint(self, "Pause it first ({downloads.pause})"))
            return

        def answered(choice: str | None) -> None:
            if choice == "delete":
                self._place.discard(one)

        text = f"{size_of(one.done)} of {one_line(one.repo, 60)} are here and would be fetched again."
        choices = [("leave", "Leave it alone"), ("delete", "Delete what is here of it")]
        self.app.push_screen(ChoiceDialog("Discard the download?", text, choices), answered)

    def action_unlist(self) -> None:
        """Only the row goes: the model is in the library, where it can be deleted."""
        one = self._at_cursor
        if one is not None:
            self._place.unlist(one)

    def action_chat(self) -> None:
        one = self._at_cursor
        if one is not None:
            self._place.load(one.path)

    @property
    def _at_cursor(self) -> Download | None:
        listed = self.query_one_optional(KeyedList)  # none before it is on the screen
        return self._place.state.downloads.get(listed.at_cursor or "") if listed is not None else None

    def _show_details(self) -> None:
        one = self._at_cursor
        nothing = hint(self, "Nothing is being downloaded. {downloads.hub} searches the Hugging Face Hub.")
        details = download_details(one, keys_of(self)) if one is not None else Content.styled(nothing, "$secondary")
        self.query_one("#details", Static).update(details)
        self.refresh_bindings()
