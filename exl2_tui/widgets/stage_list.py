"""The stages of a conversion as one row: done, running with its count, still to come."""

from __future__ import annotations

from textual.content import Content

from exl2_tui.job_state import STAGES, JobState
from exl2_tui.text import one_line

MARKS = {"done": ("✓", "$success"), "now": ("●", "$primary"), "next": ("·", "$secondary"), "held": ("‖", "$warning")}


LEAST = 12  # cells of what is being done right now, however narrow the row is


def stages(job: JobState, width: int) -> Content:
    """Such as "✓ calibrate  ● measure 12/25  · allocate …", in `width` cells."""
    room = width - sum(len(stage) + 4 for stage in STAGES)
    at = len(STAGES) if job.status == "finished" else STAGES.index(job.stage) if job.stage in STAGES else 0
    parts: list[tuple[str, str]] = []
    for index, stage in enumerate(STAGES):
        state = "done" if index < at else "next" if index > at else "now" if job.working else "held"
        mark, style = MARKS[state]
        parts.append((f"{mark} ", style))
        text = stage + (_count(job, room) if index == at else "")
        parts.append((text + "  ", "" if state == "now" else "$secondary"))
    return Content.assemble(*parts)


def _count(job: JobState, room: int) -> str:
    if job.stage in ("calibrate", "evaluate") and job.detail:
        return f", {one_line(job.detail, max(LEAST, room - 2))}"
    if job.stage == "measure" and job.eta.measure_steps:
        return f" {job.eta.measured}/{job.eta.measure_steps}"
    if job.stage == "quantize" and job.layers:
        started = {point.label.rpartition(" ")[0] for point in job.points.values() if point.kind != "head"}
        return f" {len(started)}/{job.layers}"
    return ""
