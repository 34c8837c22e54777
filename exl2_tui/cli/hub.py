"""`exl2-tui models search` and `models download`: the Hugging Face Hub on the command line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import note, print_json, print_text
from exl2_tui.core.errors import CancelledError, HubError
from exl2_tui.core.events import Event
from exl2_tui.core.model_events import DownloadFinished, DownloadPlan, DownloadProgress, HubSearched
from exl2_tui.core.sizes import size_of

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

FITS = {
    "yes": "fits",
    "tight": "is tight",
    "cpu": "fits, but not on the GPU",
    "no": "does not fit",
    "unknown": "may fit",
}


def search(
    words: Annotated[list[str], typer.Argument(help="Words of a name, such as: llama 8b exl2")],
    json: opt.Json = False,
) -> None:
    """Search the Hugging Face Hub for models that can be loaded: EXL2, GPTQ and floats of known architectures."""
    from exl2_tui.models_source import CoreModels

    text = " ".join(words)
    models, skipped = CoreModels().search(text)
    if json:
        print_json(HubSearched(0, text, models, skipped).to_json())
        return
    width = max((len(model.repo) for model in models), default=0)
    for model in models:
        size = size_of(model.size) if model.size else ""
        gated = "  gated" if model.gated else ""
        popular = f"{model.downloads:>11,} downloads"
        print_text(f"{model.repo:<{width}}  {model.kind:<5}  {model.family:<8} {size:>10}  {popular}{gated}")
    left_out = f"{skipped} of other kinds left out. " if skipped else ""
    note(f"{len(models)} found. {left_out}`exl2-tui models download REPO` shows revisions and sizes before it starts.")


def download(
    repository: Annotated[str, typer.Argument(help="owner/name, or owner/name@REVISION for a branch or tag.")],
    plan_only: Annotated[bool, typer.Option("--plan", help="Only show what would be downloaded.")] = False,
    context: opt.Context = None,
    json: opt.Json = False,
) -> None:
    """Download a model into the app's own folder. Interrupted, the same command goes on where it stopped."""
    from exl2_tui.models_source import CoreModels

    repo, _, revision = repository.partition("@")
    source = CoreModels()
    options = opt.override(opt.settings().load, context=context)
    plan = source.plan(repo, revision or "main", options, 0)
    if plan.problem and not revision:
        _show_revisions(source.revisions(repo), repo)
    if json:
        print_json({"event": "DownloadPlan", **dataclasses.asdict(plan), "total": plan.total})
    else:
        _show_plan(plan)
    if plan.problem:
        raise HubError(f"{repo} {plan.revision}: {plan.problem}", hint=plan.hint or None)
    if plan_only:
        return
    with opt.interruptible() as cancel:
        try:
            _run(source.download(plan, cancel), json)
        except CancelledError:
            note("Stopped. The same command goes on where it was.")
            raise


def _run(events: Iterator[Event], json: bool) -> None:
    """Shows a download; events are those of core.library.download."""
    with nullcontext() if json or not sys.stderr.isatty() else _Bars() as bars:
        for event in events:
            if json:
                print_json(event.to_json())
            elif isinstance(event, DownloadProgress) and bars is not None:
                bars.show(event)
            elif isinstance(event, DownloadFinished):
                note(f"{size_of(event.size)} downloaded and checked")
                print_text(event.path)


def _show_plan(plan: DownloadPlan) -> None:
    for file in plan.files:
        note(f"  {size_of(file.size):>10}  {file.name}")
    ready = f", {size_of(plan.ready)} of it are here already" if plan.ready else ""
    note(
        f"{plan.repo} {plan.revision} ({plan.commit[:10]}): {size_of(plan.total)}{ready}; "
        f"{size_of(plan.free_disk)} free on the disk"
    )
    if plan.memory:
        free = f" of {size_of(plan.available)} free" if plan.available is not None else ""
        note(
            f"{plan.family} {plan.format} needs about {size_of(plan.memory)}{free} at a context of {plan.context}: "
            f"{FITS[plan.fits]}"
        )


def _show_revisions(names: tuple[str, ...], repo: str) -> None:
    """Most EXL2 repositories keep one bitrate per branch."""
    if len(names) > 1:
        note(f"Revisions of {repo}: {', '.join(names)}. Download one with {repo}@REVISION.")


class _Bars:
    """A bar for the file and one for everything, on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._file: TaskID = self._progress.add_task("", total=None)
        self._all: TaskID = self._progress.add_task("all files", total=None)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: DownloadProgress) -> None:
        name = f"{event.index}/{event.count} {event.file}" + (" (checking)" if event.step == "check" else "")
        self._progress.update(self._file, description=name, completed=event.file_done, total=event.file_total)
        self._progress.update(self._all, completed=event.done, total=event.total)
