"""What the core reports about the models of this machine and of the Hub: lists, details, checks, downloads.

Standard library only, like `events.py`. Sizes are bytes. Names and texts may come from strangers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exl2_tui.core.events import Event, Fit, ModelInfo
from exl2_tui.core.requests import CacheKind

# The library


@dataclass(frozen=True, slots=True)
class ScanProgress(Event):
    """`done` models are looked at; `name` is the one just read. Those the cache knows are not told."""

    done: int
    name: str


@dataclass(frozen=True, slots=True)
class LibraryListed(Event):
    """Every model of this machine with what it takes at `context` (None: its own, as far as it fits) and `cache`.

    available: memory that is free for a model, None if unknown. disk_bytes: what all models take; free_disk: what is
    left where downloads go. caches: the kinds that can be had here.
    """

    models: tuple[ModelInfo, ...]
    context: int | None
    cache: str
    available: int | None
    disk_bytes: int
    free_disk: int
    caches: tuple[CacheKind, ...] = ("fp16", "q8")


@dataclass(frozen=True, slots=True)
class LibraryFailed(Event):
    """A question about the library or a removal could not be answered; message "": it was given up for a newer one."""

    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """What a model takes at one context and cache kind."""

    context: int
    cache_kind: str
    weights: int
    cache: int
    scratch: int
    fits: Fit

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch


@dataclass(frozen=True, slots=True)
class LinearBits:
    """One linear as stored. bits: per weight, everything counted; recipe: what it is made of, "" for plain floats."""

    name: str
    kind: str
    bits: float
    weights: int
    recipe: str


@dataclass(frozen=True, slots=True)
class ModelDetailed(Event):
    """Answers the question for one model. `problem` says why it cannot be told, then the rest is empty.

    mode is the prompt mode that "auto" turns out to be. linears are in model order, the head last.
    """

    path: str
    problem: str = ""
    architecture: str = ""
    layers: int = 0
    hidden_size: int = 0
    ffn_size: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    context: int = 0
    rope: str = ""
    tied_head: bool = False
    mode: str = ""
    mode_note: str = ""
    memory: tuple[MemoryRow, ...] = ()
    linears: tuple[LinearBits, ...] = ()


# Verifying

FileVerdict = Literal["ok", "damaged", "unknown"]


@dataclass(frozen=True, slots=True)
class VerifyProgress(Event):
    """`done` of `total` bytes are read, each file once for its hash and once for its tensors."""

    path: str
    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file. unknown: there is no hash to compare with; note says where the expected one came from."""

    name: str
    size: int
    verdict: FileVerdict
    note: str


@dataclass(frozen=True, slots=True)
class TensorFault:
    """A tensor (or, with an empty name, something about the model) that is not as it must be."""

    tensor: str
    fault: str


@dataclass(frozen=True, slots=True)
class ModelVerified(Event):
    """The whole result. tensors: how many were read; values: how many numbers were looked at for NaN and infinity."""

    path: str
    name: str
    files: tuple[FileCheck, ...]
    faults: tuple[TensorFault, ...]
    tensors: int
    values: int
    seconds: float

    @property
    def sound(self) -> bool:
        return not self.faults and all(file.verdict != "damaged" for file in self.files)


@dataclass(frozen=True, slots=True)
class VerifyEnded(Event):
    """Verifying stopped without a result: the person cancelled (message "") or it could not be read."""

    path: str
    message: str = ""
    hint: str = ""


# Removing

RemovalKind = Literal["own", "hub", "directory"]


@dataclass(frozen=True, slots=True)
class RemovalPlan(Event):
    """What removing a model would delete. `refused` says why it is not possible, "" if it is.

    kind "directory": nobody but the person knows what the directory is, so it must be confirmed by name. files: what
    is deleted, relative to `root`; freed: bytes; kept: files of the directory that stay, with the reason in `note`.
    """

    path: str
    name: str
    kind: RemovalKind
    root: str
    files: tuple[str, ...]
    freed: int
    kept: int = 0
    note: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class ModelRemoved(Event):
    """The files are gone. `problem` names one that could not be deleted, "" if all could."""

    path: str
    name: str
    freed: int
    problem: str = ""


# The Hugging Face Hub


@dataclass(frozen=True, slots=True)
class HubModel:
    """One repository that was found. size: bytes of its tensors on the main branch, 0 if the hub does not tell."""

    repo: str
    kind: str
    family: str
    size: int
    downloads: int
    likes: int
    updated: str
    gated: bool


@dataclass(frozen=True, slots=True)
class HubSearched(Event):
    """Answers a search. skipped: repositories of other kinds that were left out. error, hint: why there is none."""

    token: int
    words: str
    models: tuple[HubModel, ...]
    skipped: int = 0
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. sha256 for large files, git_sha1 (of the blob) for the others."""

    name: str
    size: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What would be downloaded. commit pins the revision; ready: bytes that an earlier try left here.

    memory: what loading it would take at `context` tokens, 0 if unknown. problem: why it cannot be loaded or stored.
    """

    repo: str
    revision: str
    commit: str
    folder: str
    files: tuple[RemoteFile, ...]
    ready: int
    free_disk: int
    family: str = ""
    format: str = ""
    context: int = 0
    memory: int = 0
    available: int | None = None
    fits: Fit = "unknown"
    problem: str = ""
    hint: str = ""

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class HubRevision:
    """A branch or tag. size: bytes of what a model needs of it; bits: what its name or config says, 0 if nothing."""

    name: str
    size: int
    bits: float
    fits: Fit
    problem: str = ""


@dataclass(frozen=True, slots=True)
class HubRevisions(Event):
    """The revisions of a repository, as they become known; `done` when all are looked at."""

    token: int
    repo: str
    revisions: tuple[HubRevision, ...]
    done: bool
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class HubPlanned(Event):
    """Answers the question what a download would bring; plan None: it could not be told, error and hint say why."""

    token: int
    repo: str
    revision: str
    plan: DownloadPlan | None
    error: str = ""
    hint: str = ""


DownloadStep = Literal["download", "check"]


@dataclass(frozen=True, slots=True)
class DownloadProgress(Event):
    """One download. done of total bytes over all files; file_done of file_total of `file`, number `index` of `count`.

    speed in bytes per second over the last seconds; seconds_left None until there is something to go by.
    """

    id: str
    repo: str
    revision: str
    file: str
    step: DownloadStep
    file_done: int
    file_total: int
    index: int
    count: int
    done: int
    total: int
    speed: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class DownloadFinished(Event):
    """The model lies complete and checked in `path`."""

    id: str
    repo: str
    revision: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class DownloadEnded(Event):
    """A download stopped before its end: by the person (message ""), or by what the message says. It can go on."""

    id: str
    repo: str
    revision: str
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PartialDownload:
    """A download that was begun and can go on. ready: bytes that are here."""

    id: str
    repo: str
    revision: str
    ready: int
    total: int


@dataclass(frozen=True, slots=True)
class DownloadsListed(Event):
    """Downloads that were begun and not finished."""

    partial: tuple[PartialDownload, ...]
