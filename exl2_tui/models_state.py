"""What the places Models, Hub and Downloads know, as plain data. No Textual, no threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from exl2_tui.core.events import Event, ModelInfo
from exl2_tui.core.model_events import (
    DownloadEnded,
    DownloadFinished,
    DownloadPlan,
    DownloadProgress,
    DownloadsListed,
    LibraryListed,
    ModelDetailed,
    ModelRemoved,
    ScanProgress,
)

DownloadStatus = Literal["waiting", "running", "stopping", "stopped", "failed", "finished"]
SortOrder = Literal["last used", "name", "size", "fits"]
ORDERS: tuple[SortOrder, ...] = ("last used", "name", "size", "fits")
_FIT_ORDER = {"yes": 0, "tight": 1, "cpu": 2, "unknown": 3, "no": 4}


@dataclass(slots=True)
class Download:
    """One download of this session, or one that an earlier session began."""

    id: str
    repo: str
    revision: str
    done: int
    total: int
    status: DownloadStatus
    progress: DownloadProgress | None = None
    path: str = ""
    message: str = ""
    hint: str = ""

    @property
    def active(self) -> bool:
        return self.status in ("waiting", "running", "stopping")

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


@dataclass(slots=True)
class ModelsState:
    """`apply` takes events in and says whether anything changed."""

    listed: LibraryListed | None = None
    scanning: bool = False
    order: SortOrder = "last used"
    reading: str = ""  # model whose headers were read last, while a scan runs
    details: dict[str, ModelDetailed] = field(default_factory=dict)
    downloads: dict[str, Download] = field(default_factory=dict)

    def apply(self, event: Event) -> bool:
        if isinstance(event, ScanProgress):
            self.reading = event.name
        elif isinstance(event, LibraryListed):
            self.listed, self.scanning, self.reading = event, False, ""
        elif isinstance(event, ModelDetailed):
            self.details[event.path] = event
        elif isinstance(event, ModelRemoved):
            self.details.pop(event.path, None)
            self.downloads = {name: one for name, one in self.downloads.items() if one.path != event.path}
        elif isinstance(event, DownloadsListed):
            self._begun(event)
        elif isinstance(event, DownloadProgress | DownloadFinished | DownloadEnded):
            self._download(event)
        else:
            return False
        return True

    def started(self, plan: DownloadPlan, name: str) -> None:
        """A download waits for its turn."""
        self.downloads[name] = Download(name, plan.repo, plan.revision, plan.ready, plan.total, "waiting")

    @property
    def running(self) -> Download | None:
        return next((one for one in self.downloads.values() if one.status in ("running", "stopping")), None)

    @property
    def unfinished(self) -> int:
        """Downloads that run, wait, or can go on."""
        return sum(one.status != "finished" for one in self.downloads.values())

    @property
    def badge(self) -> str:
        """How far the download is, for the header; "" if none runs."""
        one = self.running
        return f"{int(100 * one.share)}%" if one is not None else ""

    def _begun(self, event: DownloadsListed) -> None:
        found = {part.id: part for part in event.partial}
        for name in [name for name, one in self.downloads.items() if name not in found]:
            if self.downloads[name].status in ("stopped", "failed"):
                del self.downloads[name]
        for name, part in found.items():
            if name not in self.downloads:
                self.downloads[name] = Download(name, part.repo, part.revision, part.ready, part.total, "stopped")

    def _download(self, event: DownloadProgress | DownloadFinished | DownloadEnded) -> None:
        one = self.downloads.get(event.id)
        if one is None:
            one = self.downloads[event.id] = Download(event.id, event.repo, event.revision, 0, 0, "running")
        if isinstance(event, DownloadProgress):
            one.done, one.total, one.progress = event.done, event.total, event
            one.status = "stopping" if one.status == "stopping" else "running"
        elif isinstance(event, DownloadFinished):
            one.status, one.path, one.done, one.total = "finished", event.path, event.size, event.size
        else:
            one.status = "failed" if event.message else "stopped"
            one.message, one.hint = event.message, event.hint


def ordered(models: tuple[ModelInfo, ...], order: SortOrder) -> list[ModelInfo]:
    """The models as a list shows them; broken ones last, equal ones by name."""

    def rank(model: ModelInfo) -> tuple[object, ...]:
        name = model.name.lower()
        broken = bool(model.problem)
        if order == "last used":
            return broken, -model.used, model.source != "built-in", name
        if order == "size":
            return broken, -model.size_bytes, name
        if order == "fits":
            return broken, _FIT_ORDER[model.fits], model.memory, name
        return broken, name

    return sorted(models, key=rank)


def matching(models: list[ModelInfo], text: str) -> list[ModelInfo]:
    """Those in whose name, family, format or path every word of `text` occurs."""
    words = text.lower().split()
    return [
        model
        for model in models
        if all(word in f"{model.name} {model.family} {model.format} {model.path}".lower() for word in words)
    ]
