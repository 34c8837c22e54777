"""WizardScreen: a new conversion in three steps: which model, how, and a last look. Every field is checked in passing.

Checks run on a thread of the service; an answer to an older question is dropped by its token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from exl2_tui.convert_draft import ConvertDraft, command, make_request, suggested_names
from exl2_tui.convert_place import ConvertPlace, convertible
from exl2_tui.core.errors import ConfigError
from exl2_tui.core.events import Event, ModelInfo, ModelsListed
from exl2_tui.core.job_events import ConvertChecked
from exl2_tui.core.sizes import size_of
from exl2_tui.hints import hint
from exl2_tui.keymap import bindings
from exl2_tui.screens.convert_fields import OTHER, labelled, target_fields
from exl2_tui.settings import data_dir
from exl2_tui.state import Changes
from exl2_tui.text import column, one_line
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.convert_estimate import estimate, size_bars, steps_row, summary
from exl2_tui.widgets.field import Choice, Field
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.path_field import PathInput, StepButton

CHECK_DELAY = 0.2
STEPS = ("source", "target", "check")


class WizardScreen(Screen[None]):
    """Every value has a default, so that enter, enter, enter converts the first model."""

    HELP = (
        "Three steps: what to convert, into what, and a last look with the command line that does the same. Every "
        "value has a default; what is wrong stands under its field while you type. Nothing is written before the last "
        "step."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("wizard"),
        Binding("down", "pick(1)", "Down", show=False),
        Binding("up", "pick(-1)", "Up", show=False),
    ]
    AUTO_FOCUS = None

    def __init__(self, place: ConvertPlace, source: str = "") -> None:
        super().__init__(id="wizard")
        self._place = place
        self._drawn = False  # events may come before there is anything to draw on
        self._source = source
        self._step = 0
        self._token = 0
        self._timer: Timer | None = None
        self._found: ConvertChecked | None = None
        self._going = False  # next was pressed before the answer was there
        self._suggested = {"work": "", "output": ""}  # what was written into these boxes for the person
        self._number = 1  # of the suggested folders; those before it are taken
        self._models: list[ModelInfo] | None = None

    def compose(self) -> ComposeResult:
        yield Header("Convert")
        yield Row(id="title")
        with VerticalScroll(id="source", can_focus=False):
            box = PathInput(self._source, placeholder="~/models/…", id="source-path")
            yield labelled("source", "Model folder", box)
            yield Static("", id="facts", markup=False)
            offered = OptionList(id="models-found", markup=False, compact=True, classes="-rows")
            offered.can_focus = False
            yield offered
        with Horizontal(id="target"):
            with VerticalScroll(id="fields", can_focus=False):
                yield from target_fields()
            yield Static("", id="sizes", markup=False)
        with VerticalScroll(id="check"):
            yield Static("", id="summary", markup=False)
        yield Static("", id="estimate", markup=False)
        with Horizontal(id="buttons"):
            yield StatusRow(id="status")
            yield StepButton("Back", id="back", compact=True)
            yield StepButton("Next", id="next", compact=True, variant="primary")
        yield KeyRow()

    def on_mount(self) -> None:
        self._drawn = True
        for box in self.query(Input):
            box.cursor_blink = False
        self.repaint(Changes(model=True))
        self._show_step()
        self._suggest_folders()
        self._check_now()
        self._place.list_models()

    def repaint(self, changes: Changes) -> None:
        if not self._drawn:
            return
        if changes.model:
            self.query_one(Header).show(self._place.app.session)
        if changes.flash:
            self._say(changes.flash)

    def on_screen_resume(self) -> None:
        """Back from another place: models and folders may be others by now."""
        if self._drawn:
            self.repaint(Changes(model=True))
            self._check_now()
            self._place.list_models()

    def on_resize(self) -> None:
        if self._drawn:
            self.call_after_refresh(self._draw_found)

    # The draft

    @property
    def draft(self) -> ConvertDraft:
        """What the form says now."""
        bits = self.query_one("#bits", Choice).value
        texts = {
            name: self._box(name).value for name in ("calibration", "rows", "length", "measurement", "work", "output")
        }
        return ConvertDraft(
            source=self._box("source-path").value,
            bits=self._box("bits-other").value if bits == OTHER else bits,
            head_bits=self.query_one("#head_bits", Choice).value,
            recipe=self.query_one("#recipe", Choice).value,
            **texts,
        )

    def _box(self, name: str) -> Input:
        return self.query_one(f"#{name}", Input)

    @property
    def keys_wait(self) -> bool:
        """Keys behind an enter that waits for a check are for the next step."""
        return self._going

    def on_input_changed(self, event: Input.Changed) -> None:
        self._changed(event.input.id or "")

    def on_choice_changed(self) -> None:
        self._box("bits-other").display = self.query_one("#bits", Choice).value == OTHER
        self._changed("bits")

    def _changed(self, name: str) -> None:
        if name in ("source-path", "bits", "bits-other"):
            self._number = 1
            self._suggest_folders()
        self._found = None
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(CHECK_DELAY, self._check_now)

    def _suggest_folders(self) -> None:
        """Names for the folders that follow model and bits until the person names them.

        What stands in the box decides, not the messages about it: those may still be on their way.
        """
        draft = self.draft
        names = suggested_names(draft.source, draft.bits, self._number)
        for box, folder, name in zip(("work", "output"), ("jobs", "models"), names, strict=True):
            if self._box(box).value.strip() in ("", self._suggested[box]):
                self._suggested[box] = str(data_dir() / folder / name)
                with self.prevent(Input.Changed):
                    self._box(box).value = self._suggested[box]

    def _check_now(self) -> None:
        self._timer = None
        self._token += 1
        self._found = None
        self._place.jobs.check(self.draft, self._token)

    def checked(self, event: ConvertChecked) -> None:
        """The answer about the draft with this token."""
        if not self._drawn or event.token != self._token or self._timer is not None:
            return
        if any(note.taken and self._box(note.field).value == self._suggested[note.field] for note in event.notes):
            self._number += 1
            self._suggest_folders()
            self._check_now()
            return
        self._found = event
        uses = hint(self, "{wizard.measurement} uses it")
        notes = [
            replace(note, text=f"{note.text}: {uses}") if event.measurement and note.field == "measurement" else note
            for note in event.notes
        ]
        for field in self.query(Field):
            field.show(notes)
        self._draw_found()
        self.refresh_bindings()
        if self._going:
            self._going = False
            step = self._step
            self.action_next()
            self._place.app.keys_go_on(dropped=self._step <= step and self.is_current)

    def service_event(self, event: Event) -> None:
        """The models of this machine: those that can be converted are offered."""
        if not isinstance(event, ModelsListed) or not self._drawn:
            return
        self._models = convertible(event.models)
        options = self.query_one("#models-found", OptionList)
        width = max(40, options.scrollable_content_region.width or 75)
        options.set_options(Option(_model_line(model, width)) for model in self._models)
        if self._models:
            options.highlighted = 0
        self._draw_found()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._take(event.option_index)

    def _take(self, index: int | None) -> None:
        """Takes a model of the list and goes on with it."""
        if self._models and index is not None:
            self._box("source-path").value = self._models[index].path
            self._going = True

    # Drawing

    def _draw_found(self) -> None:
        found, draft = self._found, self.draft
        if found is not None:
            facts = found.facts and Content.assemble(("  ✓ ", "$success"), one_line(found.facts))
            self.query_one("#facts", Static).update(facts or self._no_source())
        self.query_one("#estimate", Static).update(estimate(found, draft))
        self.query_one("#sizes", Static).update(size_bars(found, draft))
        if self._step == 2:
            self.query_one("#summary", Static).update(summary(draft, found, self._command()))
        self._show_title()

    def _no_source(self) -> Content:
        if self._models is None:
            return Content.styled("  Looking for models that can be converted", "$secondary")
        if self._models:
            return Content.styled("  ↑↓ Models on this machine that can be converted", "$secondary")
        return Content.styled("  No float16 model was found in your folders. Type the folder of one.", "$secondary")

    def _show_title(self) -> None:
        name = one_line(self.draft.source.rstrip("/").rpartition("/")[2], 40)
        left = Content.assemble(("  New conversion", "bold"), (f"   {name}" if self._step else "", "$secondary"))
        self.query_one("#title", Row).put(left, steps_row(self._step))

    def _show_step(self) -> None:
        for index, step in enumerate(STEPS):
            self.query_one(f"#{step}").display = index == self._step
        self.query_one("#estimate").display = self._step == 1
        self.query_one("#back", Button).label = "Leave" if self._step == 0 else "Back"
        self.query_one("#next", Button).label = "Start" if self._step == 2 else "Next"
        first: Widget
        if self._step == 0:
            first = self._box("source-path")
        else:
            first = self.query_one("#bits", Choice) if self._step == 1 else self.query_one("#next", Button)
        first.focus()
        self._box("bits-other").display = self.query_one("#bits", Choice).value == OTHER
        self._draw_found()

    def _command(self) -> str:
        try:
            return command(make_request(self.draft))
        except ConfigError:
            return ""

    # Actions

    def on_input_submitted(self) -> None:
        self.action_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "next":
            self.action_next()
        else:
            self.action_back()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense now is in the footer."""
        if action == "use_measurement":
            return self._found is not None and bool(self._found.measurement)
        return action != "copy_command" or self._step > 0

    def action_back(self) -> None:
        if self._going:  # keys that wait were for a step that does not come
            self._going = False
            self._place.app.keys_go_on(dropped=True)
        if self._step == 0:
            self._place.forget_wizard()
            return
        self._step -= 1
        self._show_step()

    def action_pick(self, step: int) -> None:
        """Arrow keys in the path move through the models below it; later they walk through the fields, or scroll."""
        options = self.query_one("#models-found", OptionList)
        if self._step == 1:
            self.screen.focus_next() if step > 0 else self.screen.focus_previous()
        elif self._step == 2:
            self.query_one("#check").scroll_relative(y=step, animate=False)
        elif options.option_count:
            options.highlighted = ((options.highlighted or 0) + step) % options.option_count
            if self._models:
                self._box("source-path").value = self._models[options.highlighted].path

    def action_next(self) -> None:
        """Goes on if nothing is wrong; waits for the check if it is still running."""
        if self._step == 0 and not self._box("source-path").value and self._models:
            self._take(self.query_one("#models-found", OptionList).highlighted)
            return
        found = self._found
        if found is None:
            self._going = True
            self._say("Checking")
            return
        fields = {"source"} if self._step == 0 else {note.field for note in found.notes}
        wrong = next((note for note in found.notes if note.level == "error" and note.field in fields), None)
        if wrong is not None or not found.facts:
            self._say(wrong.text if wrong is not None else "Choose a model first", "$error")
            if wrong is not None:
                self._focus_field(wrong.field)
            return
        if self._step < 2:
            self._step += 1
            self._show_step()
            self.query_one(StatusRow).hush()
            return
        self._start()

    def _focus_field(self, name: str) -> None:
        step = 0 if name == "source" else 1
        if self._step != step:
            self._step = step
            self._show_step()
        controls = self.query(f"#field-{name} Input, #field-{name} Choice")
        if controls and controls.first().display:
            controls.first().focus()

    def _start(self) -> None:
        try:
            request = make_request(self.draft)
        except ConfigError as error:
            self._say(str(error), "$error")
            return
        self._place.start(request)

    def action_use_measurement(self) -> None:
        """Takes the earlier measurement that was found."""
        if self._found is not None and self._found.measurement:
            self._box("measurement").value = self._found.measurement

    def action_copy_command(self) -> None:
        self._place.app.copy(self._command(), "the command")

    def _say(self, text: str, style: str = "$primary") -> None:
        self.query_one(StatusRow).say(text, style)


def _model_line(model: ModelInfo, width: int) -> Content:
    facts = f"{one_line(model.format, 8):>8}{size_of(model.size_bytes):>10}"
    return Content.assemble("  ", column(model.name, width - 22), (facts, "$secondary"))
