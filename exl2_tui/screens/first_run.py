"""FirstRun: what was found on this machine, and the ways to begin. Shown once."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from exl2_tui.core.events import Event, MachineFound, ModelsListed
from exl2_tui.core.sizes import size_of
from exl2_tui.keymap import bindings
from exl2_tui.text import one_line
from exl2_tui.widgets.hint_row import HintRow

CHOICES = (
    ("chat", "Chat with the built-in model"),
    ("folder", "Use a folder of models I have"),
    ("hub", "Download a model from the Hub"),
    ("models", "Look at the models of this machine"),
    ("convert", "Convert a model to EXL2"),
)


class FirstRun(ModalScreen[str | None]):
    """Answers "chat", "hub", "models", "convert", "folder PATH", or None. What was found arrives by `service_event`."""

    HELP = "Nothing is decided for good here: models, conversions and settings are one key away at any time."
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("dialog", "cancel"),
        *(Binding(str(number + 1), f"choose({number})", "Choose", show=False) for number in range(len(CHOICES))),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._machine: MachineFound | None = None
        self._models: ModelsListed | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide first-run") as box:
            box.border_title = Content("Welcome to exl2-tui")
            yield Static("", id="found", markup=False)
            yield OptionList(*self._options(), markup=False, compact=True)
            yield Static(
                Content.styled("Everything stays on this machine; only a search on the Hub leaves it.", "$secondary"),
                classes="text",
                markup=False,
            )
            yield HintRow(f"1-{len(CHOICES)} or ⏎ choose   {{dialog.close}} skip   {{app.help}} help at any time")

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()
        self._draw()

    def service_event(self, event: Event) -> None:
        if isinstance(event, MachineFound):
            self._machine = event
        elif isinstance(event, ModelsListed):
            self._models = event
            options = self.query_one(OptionList)
            at = options.highlighted
            options.set_options(self._options())
            options.highlighted = at or 0
        self._draw()

    def _options(self) -> list[Option]:
        models = self._models.models if self._models is not None else ()
        built_in = next((model for model in models if model.source == "built-in"), None)
        others = sum(not model.problem for model in models) - (built_in is not None)
        notes = {
            "chat": f"{one_line(built_in.name, 20)}, {size_of(built_in.size_bytes)}" if built_in else "",
            "models": f"{others:,} found besides it" if others else "",
            "folder": "you name the folder",
            "hub": "with its size, before you agree",
            "convert": "fp16 to 2-8 bits per weight",
        }
        return [
            Option(Content.assemble((f"{number}  ", "$primary"), f"{label:<36}", (notes[key], "$secondary")), id=key)
            for number, (key, label) in enumerate(CHOICES, 1)
        ]

    def _draw(self) -> None:
        self.query_one("#found", Static).update(_found(self._machine))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.action_choose(event.option_index)

    def action_choose(self, number: int) -> None:
        choice = CHOICES[number][0]
        if choice == "folder":
            self._ask_folder()
        else:
            self.dismiss(choice)

    def _ask_folder(self) -> None:
        from exl2_tui.screens.folder_dialog import FolderDialog

        def named(path: str | None) -> None:
            if path is not None:
                self.dismiss(f"folder {path}")

        self.app.push_screen(FolderDialog("Folder with models"), named)

    def action_cancel(self) -> None:
        self.dismiss(None)


def _found(machine: MachineFound | None) -> Content:
    """Three rows about the machine; the rows are there from the start, so that nothing jumps."""
    rows: list[tuple[str, str, str]] = []
    if machine is None:
        rows = [("Processor", "looking", "$secondary"), ("GPU", "", ""), ("Memory", "", "")]
    else:
        kernels = f", {machine.kernels} kernels" if machine.kernels else ", plain torch (slow)"
        cores = f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}"
        rows.append(("Processor", f"{machine.cpu}, {cores}{kernels}", ""))
        rows.append(("GPU", "; ".join(machine.gpus) or "none found; models run on the processor", ""))
        memory = size_of(machine.memory_free) + " free" if machine.memory_free is not None else "unknown"
        disk = f", {size_of(machine.disk_free)} free on disk" if machine.disk_free is not None else ""
        rows.append(("Memory", memory + disk, ""))
    lines = [
        Content.assemble((f"{name:<11}", "$secondary"), (one_line(text, 66), style) if style else one_line(text, 66))
        for name, text, style in rows
    ]
    if machine is not None and machine.note:
        lines.append(Content.styled(one_line(machine.note, 76), "$warning"))
    return Content("\n").join(lines)
