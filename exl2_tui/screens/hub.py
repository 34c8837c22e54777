"""HubScreen: search the Hugging Face Hub, choose a revision, see what a download would bring."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static

from exl2_tui.core.model_events import HubModel, HubPlanned, HubRevisions, HubSearched
from exl2_tui.hints import hint
from exl2_tui.keymap import bindings
from exl2_tui.models_place import HubAnswer, ModelsPlace
from exl2_tui.screens.model_dialogs import PlanDialog
from exl2_tui.screens.models_tab import ModelsTab
from exl2_tui.state import Changes
from exl2_tui.text import one_line, sentence
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.hub_rows import model_heading, model_row, revision_heading, revision_row
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.keyed_list import KeyedList
from exl2_tui.widgets.place_tabs import PlaceTabs
from exl2_tui.widgets.status import SPINNER

SPIN_SECONDS = 0.25
FIRST = "Words of a name, such as: llama 8b exl2"


class HubScreen(ModelsTab):
    """Results, then the revisions of one of them, then the plan of a download."""

    HELP = (
        "Search the Hugging Face Hub by words of a name; enter shows the revisions of a model (EXL2 models keep each "
        "bitrate on one), enter again its files, their size and whether it fits. A revision marked ✗ cannot be used, "
        "for the reason in its row. Nothing is downloaded before you agree."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("hub")]

    def __init__(self, place: ModelsPlace) -> None:
        super().__init__(place, id="hub")
        self._found: HubSearched | None = None
        self._repo = ""  # whose revisions are shown
        self._came_from = ""  # whose revisions were shown last
        self._proposed: str | None = None  # where the cursor was put; elsewhere the person has moved it
        self._revisions: HubRevisions | None = None
        self._waiting = ""  # what is being asked
        self._wrong: tuple[str, str] = ("", "")

    def compose(self) -> ComposeResult:
        yield Header("Models")
        yield PlaceTabs("hub", id="tabs")
        yield Input(placeholder=FIRST, compact=True, id="filter")
        yield Row(id="columns")
        yield KeyedList(classes="-rows", id="list")
        with Vertical(id="bottom"):
            yield Static("", id="details", markup=False)
            yield StatusRow(id="status")
        yield KeyRow()

    def on_mount(self) -> None:
        self._spinner = self.set_interval(SPIN_SECONDS, self._draw_status, pause=True)
        self.query_one(Input).cursor_blink = False
        self.query_one(Input).focus()
        self.repaint(Changes(model=True))
        self.fill()

    # What it hears

    def models_changed(self) -> None:
        self._draw_tabs()

    def hub_answered(self, event: HubAnswer) -> None:
        self._waiting = ""
        self._wrong = (event.error, event.hint)
        if isinstance(event, HubSearched):
            self._found, self._repo, self._came_from, self._revisions = event, "", "", None
            if event.models:
                self.query_one("#list").focus()
        elif isinstance(event, HubRevisions):
            self._revisions = event
            self._waiting = "" if event.done else f"looking at the revisions of {event.repo}"
        elif event.plan is not None:
            self._ask(event)
        self.fill()

    # What the person does

    def on_input_submitted(self, event: Input.Submitted) -> None:
        words = event.value.strip()
        if not words:
            return
        self._repo, self._revisions, self._found = "", None, None
        self._waiting = f"searching for {words}"
        self._wrong = ("", "")
        self._place.search(words)
        self.fill()

    def on_option_list_option_highlighted(self) -> None:
        self._show_details()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        at = event.option_index
        if self._repo:
            if self._revisions is not None and at < len(self._revisions.revisions):
                self._plan(self._revisions.revisions[at].name)
            return
        if self._found is not None and at < len(self._found.models):
            self._repo = self._found.models[at].repo
            self._revisions = None
            self._waiting = f"asking for the revisions of {self._repo}"
            self._place.revisions(self._repo)
            self.fill()

    def action_leave(self) -> None:
        """Back one step: from revisions to results, from results to the models."""
        if self._waiting or self._repo:
            self._place.nevermind()
            self._waiting = ""
            self._came_from, self._repo, self._revisions = self._repo, "", None
            self._wrong = ("", "")
            self.query_one(KeyedList).put([])
            self.fill()
            self.query_one("#list").focus()
        else:
            self._place.show("models")

    def action_search(self) -> None:
        self.query_one(Input).focus()

    def action_downloads(self) -> None:
        self._place.show("downloads")

    def action_models(self) -> None:
        self._place.show("models")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where words are typed, its key is one of their letters."""
        return not (action == "search" and isinstance(self.focused, Input))

    def _plan(self, revision: str) -> None:
        self._waiting = f"asking what {self._repo} {revision} holds"
        self._wrong = ("", "")
        self._place.plan(self._repo, revision)
        self._draw_status()

    def _ask(self, event: HubPlanned) -> None:
        plan = event.plan
        if plan is None:
            return

        def answered(agreed: bool | None) -> None:
            if agreed:
                self._place.download(plan)

        self.app.push_screen(PlanDialog(plan), answered)

    # Drawing

    def fill(self) -> None:
        options = self.query_one_optional("#list", KeyedList)
        if options is None:  # not yet, or no longer, on the screen
            return
        room = options.room
        if self._repo:
            looked_at = self._revisions.revisions if self._revisions is not None else ()
            rows = [(one.name, revision_row(one, room)) for one in looked_at]
            heading = revision_heading(self._repo, room)
            usable = next((one.name for one in looked_at if not one.problem), None)
        else:
            rows = [(model.repo, model_row(model, room)) for model in self._found.models] if self._found else []
            heading = model_heading(room) if rows else Content("")
            usable = self._came_from
        self.query_one("#columns", Row).put(heading)
        untouched = options.at_cursor in (None, self._proposed)
        options.put(rows)
        if rows and untouched:
            keys = [key for key, _ in rows]
            options.highlighted = keys.index(usable) if usable in keys else 0
            self._proposed = options.at_cursor
        self._draw_tabs()
        self._draw_status()
        self._show_details()

    def _draw_tabs(self) -> None:
        state = self._place.state
        counts = {
            "models": len(state.listed.models) if state.listed is not None else 0,
            "downloads": state.unfinished,
        }
        self.query_one(PlaceTabs).show(counts, Content(""))

    def _draw_status(self) -> None:
        left = Content.styled("  Only names of models are sent to the Hub, nothing of yours.", "$secondary")
        right = Content("")
        if self._waiting:
            self._spinner.resume()
            spin = SPINNER[int(self._place.clock() / SPIN_SECONDS) % len(SPINNER)]
            left = Content.styled(f"  {spin} {one_line(self._waiting, 60)}", "$primary")
            right = Content.styled(hint(self, "{hub.leave} gives up "), "$secondary")
        else:
            self._spinner.pause()
        self.query_one(StatusRow).show(left, right)

    def _show_details(self) -> None:
        self.query_one("#details", Static).update(self._details())

    def _details(self) -> Content:
        error, remedy = self._wrong
        if error:
            lines = [Content.styled(f"✗ {sentence(error)}", "$error")]
            return Content("\n").join([*lines, Content.styled(one_line(remedy), "$secondary")])
        at = self.query_one("#list", OptionList).highlighted
        if self._repo:
            rows = self._revisions.revisions if self._revisions is not None else ()
            if at is None or at >= len(rows):
                return Content("")
            if rows[at].problem:
                return Content.styled(f"✗ {sentence(rows[at].problem)}", "$error")
            return Content.styled("⏎ shows its files and what it needs before anything is downloaded.", "$secondary")
        if self._found is None:
            return Content.styled(
                "Finds EXL2, GPTQ and float models of the architectures that can be loaded. ⏎ searches.", "$secondary"
            )
        if not self._found.models:
            more = f" {self._found.skipped} of other kinds were left out." if self._found.skipped else ""
            again = hint(self, "{hub.search} searches again.")
            return Content.styled(f"Nothing that can be loaded was found.{more} {again}", "$secondary")
        model = self._found.models[at] if at is not None and at < len(self._found.models) else None
        return self._about(model) if model is not None else Content("")

    def _about(self, model: HubModel) -> Content:
        gated = " · gated: its owner gives access on request" if model.gated else ""
        left_out = f" · {self._found.skipped} of other kinds left out" if self._found and self._found.skipped else ""
        return Content("\n").join(
            [
                Content.styled(one_line(model.repo), "bold"),
                Content.styled(
                    f"{model.downloads:,} downloads · {model.likes:,} likes · updated {one_line(model.updated)}{gated}",
                    "$secondary",
                ),
                Content.styled(f"⏎ shows its revisions with sizes{left_out}", "$secondary"),
            ]
        )
