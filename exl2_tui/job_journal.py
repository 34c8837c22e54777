"""The journal of a conversion: what it reported and when, one JSON object per line beside its state.

Whoever runs a job writes it (`recorded`): the app as well as `exl2-tui convert` in a shell. Whoever shows the job reads
on from where it was (`read`), so that a conversion of another process is as live as one's own. The other way round, a
file called "pause" asks the process that works there to stop, as Ctrl-C would.

The state file stays the truth; the journal is for people. If it cannot be written the job goes on without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, Exl2Error
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import JobEnded, JobFinished

JOURNAL = "events.jsonl"
PAUSE = "pause"
LOOK_SECONDS = 0.3
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__subclasses__()}

Heard = tuple[float, Event]
"""Seconds since the epoch, and what was reported then."""


def recorded(work: Path, running: Iterable[Event], cancel: CancelToken, *, resumed: bool) -> Iterator[Event]:
    """The events of a job that runs in `work`, each written down before it is passed on; `resumed` keeps what is there.

    Meanwhile the file "pause" sets `cancel`. Every end but the death of the process is written too.
    """
    asked = _Asked(work / PAUSE, cancel)
    journal = _Journal(work / JOURNAL, append=resumed)
    job = str(work)
    end: JobEnded | None = JobEnded(job, "paused")  # also if the reader of the events goes away
    try:
        for event in running:
            journal.write(event)
            yield event
        end = None
    except Exl2Error as error:
        if not isinstance(error, CancelledError):
            end = ended(job, error)
        raise
    except Exception as error:
        end = JobEnded(job, "failed", f"Internal error: {type(error).__name__}: {error}")
        raise
    finally:
        if end is not None:
            journal.write(end)
        journal.close()
        asked.close()


def ended(job: str, error: Exl2Error) -> JobEnded:
    """How a job ends that cannot go on: what is wrong first, since a row of the screen may cut the rest."""
    place = " ".join(filter(None, (Path(error.file).name if error.file else "", error.tensor)))
    return JobEnded(job, "failed", f"{error.message} ({place})" if place else error.message, error.hint or "")


def ask_to_pause(work: Path) -> None:
    """Asks the process that works there to stop. Raises OSError."""
    (work / PAUSE).touch()


def leave(work: Path) -> None:
    """Says that the run is over, for a program that ends without waiting for its thread."""
    journal = _Journal(work / JOURNAL, append=True)
    journal.write(JobEnded(str(work), "paused"))
    journal.close()


def read(work: Path, offset: int = 0) -> tuple[list[Heard], int]:
    """What was reported from a place on, and the place to read on from; a line that is not whole yet is left for later.

    Lines that make no sense (torn by a crash, or of another version) are skipped. Nothing if there is no journal.
    """
    try:
        with (work / JOURNAL).open("rb") as stream:
            if offset > os.fstat(stream.fileno()).st_size:  # the job was started anew
                offset = 0
            stream.seek(offset)
            text = stream.read()
    except OSError:
        return [], offset
    whole = text[: text.rfind(b"\n") + 1]
    return [heard for line in whole.splitlines() if (heard := _decode(line)) is not None], offset + len(whole)


def last_end(heard: Iterable[Heard]) -> JobEnded | JobFinished | None:
    """How the last run ended; None if its process died without a word."""
    last = None
    for _, event in heard:
        last = event
    return last if isinstance(last, JobEnded | JobFinished) else None


def _decode(line: bytes) -> Heard | None:
    try:
        data: dict[str, Any] = json.loads(line)
        when, kind = float(data.pop("time")), KINDS[data.pop("event")]
        names = {field.name for field in dataclasses.fields(kind)}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return when, kind(**{name: value for name, value in values.items() if name in names})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


class _Journal:
    """Lines added to a file; it stops quietly when that is no longer possible."""

    def __init__(self, path: Path, *, append: bool) -> None:
        self._stream: BinaryIO | None = None
        with contextlib.suppress(OSError):
            self._stream = path.open("ab" if append else "wb", buffering=0)
            if append and _is_torn(path):
                self._stream.write(b"\n")

    def write(self, event: Event) -> None:
        if self._stream is None:
            return
        line = json.dumps({"time": round(time.time(), 3), **event.to_json()}) + "\n"
        try:
            self._stream.write(line.encode())
        except OSError:
            self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _is_torn(path: Path) -> bool:
    """Whether the last line was cut off when its process died."""
    with path.open("rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


class _Asked:
    """Watches for the file that asks for a pause; one that was left over asks nobody."""

    def __init__(self, path: Path, cancel: CancelToken) -> None:
        self._path = path
        self._cancel = cancel
        self._over = threading.Event()
        self._forget()
        threading.Thread(target=self._watch, name="exl2-pause", daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._forget()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if self._path.exists():
                self._cancel.cancel()
                return

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
