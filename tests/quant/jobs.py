"""What tests of whole conversions share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from exl2_tui.core.events import Event
from exl2_tui.core.job_events import JobFinished
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest


def request(source: Path, work: Path, **changes: object) -> ConvertRequest:
    """A conversion of about a second."""
    base = ConvertRequest(
        source=str(source), work=str(work), bits=(4.0,), rows=4, length=64, measure_rows=2, measure_length=48
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def convert(asked: ConvertRequest, on_event: Callable[[Event], object] | None = None) -> list[Event]:
    """All events of a run to the end; each is shown to on_event first."""
    job = ConvertJob.open(asked)
    events: list[Event] = []
    try:
        for event in job.run():
            events.append(event)
            if on_event is not None:
                on_event(event)
        return events
    finally:
        job.close()


def finished(events: list[Event]) -> Path:
    """The directory of the one model that was made."""
    last = events[-1]
    assert isinstance(last, JobFinished) and len(last.paths) == 1
    return Path(last.paths[0])


def weights_hash(model: Path) -> str:
    return hashlib.sha256((model / "output.safetensors").read_bytes()).hexdigest()
