"""JobList: a row per conversion with its state, how far it is and how long it still takes."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from exl2_tui.eta import exact, rough
from exl2_tui.job_state import JobState, Status
from exl2_tui.job_words import number, verdict
from exl2_tui.keymap import with_keys
from exl2_tui.text import column, one_line
from exl2_tui.widgets.bars import meter
from exl2_tui.widgets.keyed_list import KeyedList

FACTS = 47  # cells right of the name
MARKS: dict[Status, tuple[str, str, str]] = {
    "waiting": ("·", "$secondary", "waiting"),
    "running": ("●", "$primary", "running"),
    "pausing": ("‖", "$warning", "stopping"),
    "stopped": ("‖", "$warning", "paused"),
    "interrupted": ("!", "$warning", "interrupted"),
    "failed": ("✗", "$error", "failed"),
    "finished": ("✓", "$success", "finished"),
    "elsewhere": ("●", "$secondary", "elsewhere"),
    "damaged": ("✗", "$error", "damaged"),
}


class JobList(KeyedList):
    """The conversions of this machine, by work directory, newest first."""

    def show(self, jobs: Sequence[JobState], now: float) -> None:
        self.put([(job.job, row(job, now, self.room)) for job in reversed(jobs)])


def heading(room: int) -> Content:
    return Content.styled(
        f"   {'MODEL':<{room - FACTS - 2}}{'BPW':>8}  {'STATE':<12}{'DONE':<17}{'LEFT':>8}", "$secondary"
    )


def row(job: JobState, now: float, room: int) -> Content:
    """One line of the list."""
    mark, style, word = MARKS[job.status]
    name = column(job.name, room - FACTS - 2)
    bits = ",".join(f"{value:g}" for value in job.info.bits)
    left = job.left(now) if job.working else None
    return Content.assemble(
        (f"{mark} ", style),
        name,
        f"{one_line(bits, 8):>8}  ",
        (f"{word:<12}", style if job.status in ("failed", "damaged") else "$secondary"),
        meter(job.share, 1.0, cells=10),
        f" {int(100 * job.share):>3}%  ",
        (f"{rough(left) if left is not None else '':>8}", "$secondary"),
    )


def job_facts(job: JobState, now: float, keys: dict[str, str]) -> Content:
    """Three lines about one conversion: what it is, where it is, what came out or what is wrong. keys: the person's."""
    bits = ", ".join(f"{value:g}" for value in job.info.bits)
    again = with_keys("{convert.resume} goes on from there.", keys)
    lines = [
        Content.assemble(
            (one_line(job.name, 40), "bold"),
            (
                f"   {bits} bits per weight · {one_line(job.info.recipe)} · worked {exact(job.elapsed(now))}",
                "$secondary",
            ),
        ),
        Content.styled(one_line(job.job), "$secondary"),
    ]
    if job.status in ("failed", "damaged"):
        lines.append(Content.styled(f"✗ {one_line(' '.join(filter(None, (job.error, job.hint))))}", "$error"))
    elif job.status == "finished":
        judged = [result.judged for result in job.results.values() if result.judged is not None]
        if judged:
            worst = max(judged, key=lambda one: one.kl)
            level, text = verdict(worst)
            style = {"error": "$error", "warning": "$warning"}.get(level, "$success")
            lines.append(
                Content.assemble((text, style), (f" · KL {number(worst.kl)} · ⏎ shows the report", "$secondary"))
            )
        else:
            lines.append(
                Content.styled(with_keys("⏎ shows the report, {convert.chat} chats with it", keys), "$secondary")
            )
    elif job.status == "stopped":
        lines.append(Content.styled(f"Stopped at {one_line(job.stage)}. {again}", "$secondary"))
    elif job.status == "interrupted":
        lines.append(Content.styled(f"Its process ended at {one_line(job.stage)}. {again}", "$warning"))
    elif job.status == "elsewhere":
        asked = "is asked to pause" if job.asked_to_pause else "works on it"
        pauses = with_keys("⏎ watches it, {convert.pause} pauses it.", keys)
        lines.append(Content.styled(f"Another process {asked}. {pauses}", "$secondary"))
    else:
        lines.append(Content.styled(one_line(f"{job.stage} {job.detail}"), "$secondary"))
    return Content("\n").join(lines)


def nothing_yet(listed: bool, keys: dict[str, str]) -> Content:
    """What an empty list says. keys: the person's own."""
    if not listed:
        return Content.styled("Looking for conversions", "$secondary")
    return Content("\n").join(
        [
            Content("No conversions yet."),
            Content.assemble(
                (with_keys("{convert.new}", keys), "$primary"),
                (" makes an EXL2 model of a float16 one: 2 to 8 bits per weight.", "$secondary"),
            ),
            Content.styled("It runs in the background; you can chat meanwhile, quit, and go on later.", "$secondary"),
        ]
    )
