"""ModelsScreen: the models of this machine, what each needs, and what can be done with one."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, OptionList, Static

from exl2_tui.core.events import ModelInfo
from exl2_tui.core.sizes import size_of
from exl2_tui.hints import hint, keys_of
from exl2_tui.keymap import bindings
from exl2_tui.models_place import CONTEXTS, ModelsPlace
from exl2_tui.models_state import ORDERS, matching, ordered
from exl2_tui.screens.folder_dialog import FolderDialog
from exl2_tui.screens.models_tab import ModelsTab
from exl2_tui.state import Changes
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.model_details import full_facts, short_facts
from exl2_tui.widgets.model_list import ModelList, heading
from exl2_tui.widgets.place_tabs import PlaceTabs
from exl2_tui.widgets.status import status_row

SPIN_SECONDS = 0.25
CACHE_NOTES = {"q8": ": about half the memory", "q6": ": keys of 8 bits, values of 4", "q4": ": about a quarter"}


class ModelsScreen(ModelsTab):
    """A list with a filter; the facts of the model under the cursor below it, or beside it where there is room."""

    HELP = (
        "The models of this machine: those in your folders, in the Hugging Face cache, and downloaded here. MEMORY "
        "and FITS are for the context and the cache that {models.less} {models.more} and {models.cache} choose, in "
        "what is free now; a load uses the same. Enter loads a model and goes to the chat, {models.load} loads it and "
        "stays."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("models")]
    AUTO_FOCUS = "ModelList"  # from the very first: on a busy machine letters meant as keys went to the filter

    def __init__(self, place: ModelsPlace) -> None:
        super().__init__(place, id="models")
        self._session = place.session
        self._shown: list[ModelInfo] = []

    def compose(self) -> ComposeResult:
        yield Header("Models")
        with Horizontal(id="main"):
            with Vertical(id="left"):
                yield PlaceTabs("models", id="tabs")
                words = hint(self, "{models.filter} filter by name, bits or family")
                yield Input(placeholder=words, compact=True, id="filter")
                yield Row(id="columns")
                yield ModelList(id="list")
            with VerticalScroll(id="side", can_focus=True):
                yield Static("", id="full", markup=False)
        with Vertical(id="bottom"):
            yield Static("", id="details", markup=False)
            yield StatusRow(id="status")
        yield KeyRow(lambda: {"models.leave": self._leave_label})

    def on_mount(self) -> None:
        self._spinner = self.set_interval(SPIN_SECONDS, self._draw_status, pause=True)
        self.query_one(Input).cursor_blink = False
        self.repaint(Changes(model=True, status=True))
        self.fill()
        self._place.scan()

    # What it hears

    def repaint(self, changes: Changes) -> None:
        """Draws what changed of the model that is loaded or loading."""
        super().repaint(changes)
        if changes.model or changes.status:
            self._draw_status()
            self.fill()
            self.refresh_bindings()
        if changes.model and self._session.model.status == "failed":
            model = self._session.model
            self.query_one(StatusRow).say(" ".join(filter(None, (model.error, model.hint))), "$error", seconds=12)

    def models_changed(self) -> None:
        self.fill()
        self._draw_status()

    # What the person does

    def on_input_changed(self) -> None:
        self.fill()
        self.refresh_bindings()

    def on_input_submitted(self) -> None:
        self.query_one(ModelList).focus()

    def on_option_list_option_highlighted(self) -> None:
        self._show_details()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._load(stay=False)

    def action_load_here(self) -> None:
        self._load(stay=True)

    @property
    def _leave_label(self) -> str:
        """What escape does: it stops a load, then empties the filter, then goes to the list, then to the chat."""
        box = self.query_one_optional(Input)
        if self._session.model.status == "loading":
            return "Stop"
        if box is not None and box.value:
            return "Clear"
        return "List" if self.has_class("-info") or isinstance(self.focused, Input) else "Chat"

    def action_leave(self) -> None:
        does = self._leave_label
        if does == "Stop":
            self._place.cancel_load()
        elif does == "Clear":
            self.query_one(Input).value = ""
            self.query_one(ModelList).focus()
        elif self.has_class("-info"):
            self.action_info()
        elif does == "List":
            self.query_one(ModelList).focus()
        else:
            self.dismiss(None)

    def action_filter(self) -> None:
        self.query_one(Input).focus()

    def action_move(self, step: int) -> None:
        options = self.query_one(ModelList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_rescan(self) -> None:
        self._place.scan(tell=True)

    def action_unload(self) -> None:
        if self._session.ready:
            self._place.unload()
        else:
            self._say("No model is loaded")

    def action_info(self) -> None:
        """Where there is room for one thing only: the details in place of the list, and back."""
        self.toggle_class("-info")
        self.query_one("#side" if self.has_class("-info") else ModelList).focus()
        self.call_after_refresh(self._show_details)

    def action_sort(self) -> None:
        state = self._place.state
        state.order = ORDERS[(ORDERS.index(state.order) + 1) % len(ORDERS)]
        self.fill()

    def action_context(self, step: int) -> None:
        """The next smaller or larger context; below the smallest is the model's own."""
        now = self._place.options.context
        at = (
            CONTEXTS.index(now)
            if now in CONTEXTS
            else sum(1 for one in CONTEXTS if one is not None and one < (now or 0))
        )
        context = CONTEXTS[max(0, min(len(CONTEXTS) - 1, at + step))]
        self._place.choose_memory(context, self._place.options.cache)
        self._say(f"Context {context:,}" if context is not None else "Context: each model's own, as far as it fits")

    def action_cache(self) -> None:
        if (listed := self._place.state.listed) is None:
            return
        now, kinds = self._place.options.cache, listed.caches
        kind = kinds[(kinds.index(now) + 1) % len(kinds)] if now in kinds else kinds[0]
        self._place.choose_memory(self._place.options.context, kind)
        self._say(f"Cache {kind}" + CACHE_NOTES.get(kind, ""))

    def action_verify(self) -> None:
        if (model := self._at_cursor()) is not None:
            self._place.verify(model)

    def action_remove(self) -> None:
        if (model := self._at_cursor()) is not None:
            self._place.ask_remove(model)

    def action_convert(self) -> None:
        model = self._at_cursor()
        if model is None or model.problem:
            return
        if model.format in ("fp16", "bf16", "fp32"):
            self._place.convert(model)
        else:
            self._say(f"{model.format} is quantized already; choose an fp16 model")

    def action_hub(self) -> None:
        self._place.show("hub")

    def action_downloads(self) -> None:
        self._place.show("downloads")

    def action_add_folder(self) -> None:
        def named(path: str | None) -> None:
            if path is not None:
                self._place.add_folder(path, tell=True)

        self.app.push_screen(FolderDialog("Add a folder of models"), named)

    # Drawing

    def _load(self, *, stay: bool) -> None:
        model = self._at_cursor()
        if model is None:
            return
        if model.problem:
            self.query_one(StatusRow).say(model.problem, "$error")
        else:
            self._place.load(model.path, stay=stay)

    def _say(self, text: str) -> None:
        self.query_one(StatusRow).say(text)

    def _at_cursor(self) -> ModelInfo | None:
        path = self.query_one(ModelList).at_cursor
        return next((model for model in self._shown if model.path == path), None)

    def _draw_status(self) -> None:
        status = self._session.model.status
        if status == "loading":
            self._spinner.resume()
        else:
            self._spinner.pause()
        if status in ("loading", "failed"):
            ticks = int(self._place.clock() / SPIN_SECONDS)
            row = self.query_one(StatusRow)
            row.show(*status_row(self._session, ticks, row.content_size.width, cancel="{models.leave} cancels "))
            return
        listed = self._place.state.listed
        left = Content.styled("  Looking for models", "$secondary")
        if self._place.state.scanning and self._place.state.reading:
            left = Content.styled(f"  Reading {one_line(self._place.state.reading, 40)}", "$primary")
        elif listed is not None:
            left = Content.styled(
                f"  models {size_of(listed.disk_bytes)} · {size_of(listed.free_disk)} free on disk"
                + (f" · {size_of(listed.available)} memory free" if listed.available is not None else ""),
                "$secondary",
            )
        self.query_one(StatusRow).show(left, Content(""))

    def fill(self) -> None:
        options = self.query_one_optional(ModelList)
        if options is None:  # not yet, or no longer, on the screen
            return
        state = self._place.state
        models = ordered(state.listed.models, state.order) if state.listed is not None else []
        self._shown = matching(models, self.query_one(Input).value)
        used = max(models, key=lambda model: model.used, default=None)
        options.show(self._shown, self._session, used.path if used is not None and used.used else "")
        self.query_one("#columns", Row).put(heading(options.room, state.listed))
        counts = {"models": len(models), "downloads": state.unfinished}
        self.query_one(PlaceTabs).show(counts, Content.styled(f"sort: {state.order}  ", "$secondary"))
        self._show_details()

    def _show_details(self) -> None:
        short = self.query_one("#details", Static)
        full = self.query_one("#full", Static)
        model = self._at_cursor()
        state = self._place.state
        if model is None:
            if state.listed is None:
                text = "Looking for models"
            elif state.listed.models:
                text = "No model matches the filter. {models.leave} clears it."
            else:
                text = "No models found. {models.add} adds a folder of models, {models.hub} finds some on the Hub."
            short.update(Content.styled(hint(self, text), "$secondary"))
            full.update(Content(""))
            return
        self._place.look(model)
        detail = state.details.get(model.path)
        now = self._place.wall_clock()
        short.update(short_facts(model, detail, state.listed, now, keys_of(self)))
        width = max(30, full.content_size.width or 40)
        full.update(full_facts(model, detail, state.listed, width, now, keys_of(self)))
