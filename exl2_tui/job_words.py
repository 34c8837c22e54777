"""What numbers and events of a conversion are called in words. Pure functions."""

from __future__ import annotations

import math
from typing import Literal

from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Allocated,
    CalibrationReady,
    Evaluated,
    JobEnded,
    JobEstimate,
    JobFinished,
    LayerMeasured,
    LayerQuantized,
    ModelWritten,
    QualityWarning,
    StageStarted,
)
from exl2_tui.core.sizes import size_of
from exl2_tui.eta import exact
from exl2_tui.job_points import short_name

LogLevel = Literal["info", "warning", "error", "done"]


def number(value: float) -> str:
    """An error in three significant digits without a leading zero: ".0121", "1.2e-05", "nan"."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if value and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.4f}".removeprefix("0") if value < 1 else f"{value:.3g}"


def remedy_for(message: str) -> str:
    """What to do about a warning of the core."""
    if "calibrat" in message:
        return "Use more calibration text: more rows, or longer ones"
    if "broken" in message:
        return "Convert again with more bits per weight"
    return "Compare the result with the original before you rely on it"


def verdict(judged: Evaluated) -> tuple[LogLevel, str]:
    """What the numbers of an evaluation mean."""
    if judged.broken:
        return "error", "Broken: do not use this model"
    if judged.kl < 0.01:
        return "done", "Practically the original"
    if judged.kl < 0.03:
        return "done", "Very close to the original"
    if judged.kl < 0.15:
        return "done", "Close to the original, with a small loss"
    return "warning", "A clear loss: more bits per weight would help"


def log_line(event: Event) -> tuple[LogLevel, str] | None:
    """An event as a line of the log; None for those that only move the bar."""
    if isinstance(event, StageStarted):
        what = f" at {event.bits:g} bits per weight" if event.bits else ""
        return "info", f"{event.stage}{what}{', resumed' if event.resumed else ''}"
    if isinstance(event, JobEstimate):
        needs = f"{size_of(event.peak_memory)} of memory and {size_of(event.disk)} of disk"
        return "info", f"needs about {needs}"
    if isinstance(event, CalibrationReady):
        rows = f"{event.rows} rows of {event.length:,} tokens from {event.description.strip('()')}"
        return "info", f"{rows}; {event.held_out_rows} more judge the result"
    if isinstance(event, LayerMeasured) and event.errors:
        return "info", f"{short_name(event.key):<20}  {len(event.errors)} candidates tried in {exact(event.seconds)}"
    if isinstance(event, Allocated):
        head = f", {event.head_bpw:.3f} in the head," if event.head_bpw else ""
        return "info", f"{event.reached_bpw:.3f} bits per weight{head} reached for a target of {event.bits:g}"
    if isinstance(event, LayerQuantized):
        numbers = f"{event.bpw:.2f} bpw  error {number(event.error)}  {exact(event.seconds)}"
        return "info", f"{short_name(event.key):<20}  {numbers}"
    if isinstance(event, QualityWarning):
        return "warning", event.message + (f" ({event.key})" if event.key else "")
    if isinstance(event, Evaluated):
        level, text = verdict(event)
        return level, f"{text}: KL {event.kl:.4f}, same top token {event.top1:.1%}, perplexity {event.perplexity:.2f}"
    if isinstance(event, ModelWritten):
        return "done", f"written to {event.path}"
    if isinstance(event, JobEnded):
        return ("error", event.message) if event.reason == "failed" else ("info", "paused; resume goes on here")
    if isinstance(event, JobFinished):
        return "done", f"finished in {exact(event.seconds)}"
    return None
