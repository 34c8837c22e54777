"""Rows of the Hub's lists and of downloads, as content. Pure functions."""

from __future__ import annotations

from textual.content import Content

from exl2_tui.core.model_events import HubModel, HubRevision
from exl2_tui.core.sizes import size_of
from exl2_tui.eta import rough
from exl2_tui.keymap import with_keys
from exl2_tui.models_state import Download
from exl2_tui.text import column, one_line
from exl2_tui.widgets.bars import meter
from exl2_tui.widgets.model_list import FIT_STYLES

MODEL_FACTS = 42
REVISION_FACTS = 34
DOWNLOAD_FACTS = 46
MARKS = {
    "waiting": ("·", "$secondary"),
    "running": ("●", "$primary"),
    "stopping": ("‖", "$warning"),
    "stopped": ("‖", "$warning"),
    "failed": ("✗", "$error"),
    "finished": ("✓", "$success"),
}
FIT_WORDS = {"yes": "fits", "tight": "tight", "cpu": "on CPU", "no": "too large", "unknown": ""}


def model_heading(room: int) -> Content:
    return Content.styled(
        f"   {'REPOSITORY':<{room - MODEL_FACTS - 2}}{'KIND':>7}{'FAMILY':>10}{'SIZE':>9}{'DOWNLOADS':>12}",
        "$secondary",
    )


def model_row(model: HubModel, room: int) -> Content:
    mark = ("! ", "$warning") if model.gated else ("  ", "")
    name = column(model.repo, room - MODEL_FACTS - 2)
    size = size_of(model.size) if model.size else ""
    facts = f"{model.kind:>7}{one_line(model.family, 9):>10}{size:>9}{model.downloads:>12,}"
    return Content.assemble(mark, name, (facts, "$secondary"))


def revision_heading(repo: str, room: int) -> Content:
    title = one_line(f"REVISION of {repo}", room - REVISION_FACTS - 3)
    return Content.styled(
        f"   {title:<{room - REVISION_FACTS - 2}}{'BITS':>8}{'SIZE':>11}  {'MEMORY':<10}", "$secondary"
    )


def revision_row(revision: HubRevision, room: int) -> Content:
    mark = ("✗ ", "$secondary") if revision.problem else ("  ", "")
    name = column(revision.name, room - REVISION_FACTS - 2)
    if revision.problem:
        why = one_line(revision.problem.removeprefix("this revision has "), REVISION_FACTS - 3)
        return Content.assemble(mark, name, ("   " + why, "$secondary"))
    bits = f"{revision.bits:.2f}" if revision.bits else ""
    size = size_of(revision.size) if revision.size else ""
    return Content.assemble(
        mark,
        name,
        (f"{bits:>8}", "$secondary"),
        f"{size:>11}  ",
        (f"{FIT_WORDS[revision.fits]:<10}", FIT_STYLES[revision.fits]),
    )


def download_heading(room: int) -> Content:
    name = f"{'DOWNLOAD':<{room - DOWNLOAD_FACTS - 2}}"
    return Content.styled(f"   {name}{'DONE':<13}{'SIZE':>8}{'SPEED':>11}{'LEFT':>12}", "$secondary")


def download_row(one: Download, room: int) -> Content:
    mark, style = MARKS[one.status]
    name = column(one.id, room - DOWNLOAD_FACTS - 2)
    speed = left = ""
    if one.status == "running" and one.progress is not None:
        speed = f"{size_of(int(one.progress.speed))}/s" if one.progress.speed else ""
        left = rough(one.progress.seconds_left) if one.progress.seconds_left is not None else ""
    elif one.status != "running":
        left = one.status
    return Content.assemble(
        (f"{mark} ", style),
        name,
        meter(one.share, 1.0, cells=6),
        f" {int(100 * one.share):>3}%  ",
        (f"{size_of(one.total):>8}{speed:>11}{left:>12}", "$secondary"),
    )


def download_details(one: Download, keys: dict[str, str]) -> Content:
    """Up to four lines about the download under the cursor. keys: the person's own."""
    lines = [
        Content.assemble(
            (one_line(one.repo, 60), "bold"),
            (f"   revision {one_line(one.revision, 30)} · {size_of(one.done)} of {size_of(one.total)}", "$secondary"),
        )
    ]
    progress = one.progress
    if one.status == "failed":
        lines.append(Content.styled(f"✗ {one_line(one.message)}", "$error"))
        again = with_keys("{downloads.resume} goes on where it stopped.", keys)
        lines.append(Content.styled(one_line(one.hint) or again, "$secondary"))
    elif one.status == "finished":
        lines.append(Content.styled(one_line(one.path), "$secondary"))
        lines.append(Content.styled("Every file has the hash the Hub announced.", "$secondary"))
        text = "{downloads.chat} chats with it, {downloads.unlist} takes it off the list; the model stays."
        lines.append(Content.styled(with_keys(text, keys), "$secondary"))
    elif one.status == "stopped":
        text = "Stopped; what is here stays. {downloads.resume} goes on, {downloads.discard} deletes it."
        lines.append(Content.styled(with_keys(text, keys), "$secondary"))
    elif one.status == "stopping":
        lines.append(Content.styled("Stopping", "$warning"))
    elif progress is not None:
        verb = "checking what is here of" if progress.step == "check" else "file"
        lines.append(
            Content.assemble(
                (f"{verb} {one_line(progress.file, 44)}  ", "$secondary"),
                meter(progress.file_done, progress.file_total, cells=12),
                f" {size_of(progress.file_done)} of {size_of(progress.file_total)}",
            )
        )
        pauses = with_keys("{downloads.pause} pauses it", keys)
        lines.append(Content.styled(f"{progress.index} of {progress.count} files · {pauses}", "$secondary"))
    else:
        lines.append(Content.styled("Waiting for the one before it", "$secondary"))
    return Content("\n").join(lines)
