"""Dialogs about one model: checking it, removing it, what a download would bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from exl2_tui.core.events import ModelInfo
from exl2_tui.core.model_events import DownloadPlan, ModelVerified, RemovalPlan, VerifyEnded, VerifyProgress
from exl2_tui.core.sizes import size_of
from exl2_tui.hints import hint
from exl2_tui.keymap import bindings
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import Row, meter
from exl2_tui.widgets.hint_row import HintRow
from exl2_tui.widgets.model_list import FIT_STYLES, context_text

MOST_LINES = 200
FITS = {"yes": "fits", "tight": "is tight", "cpu": "fits, but not on the GPU", "no": "does not fit", "unknown": ""}


class VerifyDialog(ModalScreen[None]):
    """Progress of a check, then its result. Escape stops it, or closes the result."""

    HELP = (
        "Every file is compared with the hash that came with the model (SHA256SUMS, or what the Hub announced), every "
        "tensor with the shape the config asks for, and every number is looked at: NaN and infinity are faults. "
        "Nothing is changed."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("dialog", "cancel"),
        Binding("q", "cancel", "Close", show=False),
    ]

    def __init__(self, model: ModelInfo, stop: Callable[[], None]) -> None:
        super().__init__()
        self._model = model
        self._stop = stop
        self.result: ModelVerified | VerifyEnded | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide") as box:
            box.border_title = Content(f"Verify {one_line(self._model.name, 50)}")
            yield Row(id="bar")
            yield Row(id="what")
            with VerticalScroll(id="result"):
                yield Static("", id="findings", markup=False)
            yield Row(classes="hint", id="hint")

    def on_mount(self) -> None:
        self._draw(VerifyProgress(self._model.path, 0, 0, ""))
        self.query_one("#hint", Row).put(Content.styled(hint(self, "{dialog.close} stops it"), "$secondary"))

    def verify_news(self, event: VerifyProgress | ModelVerified | VerifyEnded) -> None:
        if event.path != self._model.path or self.result is not None:
            return
        if isinstance(event, VerifyProgress):
            self._draw(event)
            return
        self.result = event
        self.add_class("-done")
        self.query_one("#findings", Static).update(
            findings(event) if isinstance(event, ModelVerified) else ended(event)
        )
        self.query_one("#hint", Row).put(Content.styled(hint(self, "↑↓ scroll   {dialog.close} close"), "$secondary"))
        self.query_one(VerticalScroll).focus()

    def action_cancel(self) -> None:
        if self.result is None:
            self._stop()
        self.dismiss(None)

    def _draw(self, event: VerifyProgress) -> None:
        share = f" {event.done / event.total:4.0%}" if event.total else ""
        size = f"  {size_of(event.done)} of {size_of(event.total)}" if event.total else "  starting"
        self.query_one("#bar", Row).put(
            Content.assemble(meter(event.done, event.total, cells=40), share, (size, "$secondary"))
        )
        self.query_one("#what", Row).put(Content.styled(one_line(event.what, 76), "$secondary"))


def findings(result: ModelVerified) -> Content:
    """The result in words: the verdict, then what is wrong, then every file."""
    damaged = [file for file in result.files if file.verdict == "damaged"]
    known = [file for file in result.files if file.verdict == "ok"]
    unknown = [file for file in result.files if file.verdict == "unknown"]
    if result.sound:
        lines = [Content.styled("✓ Nothing is wrong with it", "bold $success")]
    else:
        count = len(damaged) + len(result.faults)
        lines = [Content.styled(f"✗ {count} thing{'s are' if count > 1 else ' is'} wrong with it", "bold $error")]
    lines.append(
        Content.styled(
            f"{result.tensors:,} tensors, {result.values:,} numbers looked at in {result.seconds:.1f} s", "$secondary"
        )
    )
    lines.append(Content(""))
    lines += [
        Content.assemble(
            ("✗ ", "$error"), one_line(fault.tensor or "model", 60), (f"  {one_line(fault.fault)}", "$error")
        )
        for fault in result.faults[:MOST_LINES]
    ]
    if len(result.faults) > MOST_LINES:
        lines.append(Content.styled(f"  and {len(result.faults) - MOST_LINES} more", "$error"))
    lines += [
        Content.assemble(("✗ ", "$error"), one_line(file.name, 50), (f"  {one_line(file.note)}", "$error"))
        for file in damaged
    ]
    lines += [
        Content.assemble(("✓ ", "$success"), one_line(file.name, 50), (f"  hash as in {file.note}", "$secondary"))
        for file in known
    ]
    if unknown and not known and not damaged:
        lines.append(Content.styled("· There is no hash to compare its files with", "$secondary"))
    else:
        lines += [
            Content.assemble(("· ", "$secondary"), one_line(file.name, 50), (f"  {file.note}", "$secondary"))
            for file in unknown
        ]
    if not result.sound:
        lines += [Content(""), Content.styled("Download or convert it again; do not trust its answers.", "$warning")]
    return Content("\n").join(lines)


def ended(event: VerifyEnded) -> Content:
    """A check that came to no result."""
    if not event.message:
        return Content.styled("Stopped. Nothing can be said about it.", "$warning")
    return Content.styled(f"✗ {one_line(event.message)} {one_line(event.hint)}", "$error")


class RemoveDialog(ModalScreen[bool | None]):
    """Says what is deleted; a directory that is not the app's must be named. Answers with True to delete."""

    HELP = (
        "Only the files of the model are deleted, and a folder only if nothing else is left in it. A folder that the "
        "app did not make is deleted when you have typed its name. {dialog.close} leaves it."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog", "cancel")]

    def __init__(self, plan: RemovalPlan) -> None:
        super().__init__()
        self._plan = plan

    @property
    def by_name(self) -> bool:
        return self._plan.kind == "directory"

    def compose(self) -> ComposeResult:
        plan = self._plan
        with Vertical(classes="dialog -wide") as box:
            box.border_title = Content(f"Delete {one_line(plan.name, 50)}?")
            yield Static(removal_text(plan), classes="text", markup=False)
            if self.by_name:
                yield Input(placeholder=one_line(plan.name), compact=True)
                yield Row(classes="hint", id="hint")
            else:
                yield OptionList(
                    Option(Content("Leave it alone"), id="leave"),
                    Option(Content(f"Delete it for good, {size_of(plan.freed)}"), id="delete"),
                    markup=False,
                    compact=True,
                )
                yield HintRow("⏎ choose   {dialog.close} go back")

    def on_mount(self) -> None:
        if self.by_name:
            self.query_one(Input).focus()
            self._hint(hint(self, "Type the name and press ⏎ to delete the files   {dialog.close} go back"))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id == "delete")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip() == one_line(self._plan.name):
            self.dismiss(True)
        else:
            self._hint(f"That is not its name: {one_line(self._plan.name, 40)}", "$error")

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _hint(self, text: str, style: str = "$secondary") -> None:
        self.query_one("#hint", Row).put(Content.styled(text, style))


def removal_text(plan: RemovalPlan) -> Content:
    """Which files, where, how many bytes, and what stays."""
    count = len(plan.files)
    where = {"own": "from the app's own folder", "hub": "from the Hugging Face cache", "directory": "from"}[plan.kind]
    lines = [
        Content.assemble(
            (f"{count} file{'' if count == 1 else 's'}, {size_of(plan.freed)}", "bold"), f" are deleted {where}"
        ),
        Content.styled(one_line(plan.root), "$secondary"),
    ]
    lines += [Content.styled(f"  {one_line(name, 76)}", "$secondary") for name in plan.files[:6]]
    if count > 6:
        lines.append(Content.styled(f"  and {count - 6} more", "$secondary"))
    if plan.note:
        lines.append(Content(f"{one_line(plan.note)}."))
    lines.append(Content.styled("This cannot be undone.", "$warning"))
    return Content("\n").join(lines)


class PlanDialog(ModalScreen[bool | None]):
    """What a download would bring. Answers with True to download."""

    HELP = (
        "Every file that would be fetched, its size, and whether the model fits into memory; the weights are "
        "*.safetensors only, never pickles. A download can be paused, goes on where it stopped, and every file is "
        "compared with the hash that the Hub announces."
    )
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog", "cancel")]

    def __init__(self, plan: DownloadPlan) -> None:
        super().__init__()
        self._plan = plan

    def compose(self) -> ComposeResult:
        plan = self._plan
        with Vertical(classes="dialog -wide") as box:
            box.border_title = Content(f"Download {one_line(plan.repo, 50)}")
            yield Static(plan_text(plan), classes="text", markup=False)
            with VerticalScroll(id="files"):
                yield Static(file_lines(plan), markup=False)
            choices = [Option(Content("Leave it"), id="leave")]
            if not plan.problem:
                left = size_of(plan.total - plan.ready)
                word = f"Go on: {left} are left" if plan.ready else f"Download {left}"
                choices.insert(0, Option(Content(word), id="download"))
            yield OptionList(*choices, markup=False, compact=True)
            yield HintRow("⏎ choose   tab scroll the files   {dialog.close} go back")

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id == "download")

    def action_cancel(self) -> None:
        self.dismiss(None)


def plan_text(plan: DownloadPlan) -> Content:
    """Revision, size, disk, memory; what keeps it from being downloaded."""
    facts = " · ".join(one_line(part) for part in (plan.family, plan.format) if part)
    lines = [
        Content.assemble(
            ("revision ", "$secondary"), one_line(plan.revision, 40), (f"  {plan.commit[:10]}  {facts}", "$secondary")
        ),
        Content.assemble(
            (f"{size_of(plan.total)}", "bold"),
            f" in {len(plan.files)} files",
            (f" · {size_of(plan.free_disk)} free on the disk", "$secondary"),
        ),
        Content.styled(f"to {one_line(plan.folder, 76)}", "$secondary"),
    ]
    if plan.memory:
        word = FITS[plan.fits]
        free = f", {size_of(plan.available)} free" if plan.available is not None else ""
        lines.append(
            Content.assemble(
                f"Needs about {size_of(plan.memory)} of memory at {context_text(plan.context)} context{free}: ",
                (word, FIT_STYLES[plan.fits]),
            )
        )
    if plan.problem:
        lines.append(Content.styled(f"✗ {one_line(plan.problem)}", "$error"))
        if plan.hint:
            lines.append(Content.styled(one_line(plan.hint), "$secondary"))
    return Content("\n").join(lines)


def file_lines(plan: DownloadPlan) -> Content:
    """Every file with its size."""
    if not plan.files:
        return Content.styled("no files that a model needs", "$secondary")
    rows = [
        Content.assemble(f"{one_line(file.name, 56):<58}", (f"{size_of(file.size):>10}", "$secondary"))
        for file in plan.files
    ]
    return Content("\n").join(rows)
