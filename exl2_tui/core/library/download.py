"""Downloading a model: resumable, every file checked, in its place only when it is whole.

Files gather in a hidden folder beside the models. A file that was fully received and whose hash is right has its own
name there; one that is under way ends in ".part" and is gone on with. When all are there, the folder moves to its
place in one step.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint.checksums import file_pieces, new_digest, write_sums
from exl2_tui.core.errors import CheckpointError, Exl2Error, HubError, JobError, MemoryLimitError
from exl2_tui.core.events import Event
from exl2_tui.core.library.hub import Hub, Response, UnreachableError
from exl2_tui.core.library.hub_names import is_commit, is_file, is_repo, is_revision
from exl2_tui.core.library.json_file import read_json, write_json
from exl2_tui.core.library.plan import MARGIN, PART, PARTIAL, free_space, origin_line, partial_folder, ready_bytes
from exl2_tui.core.model_events import (
    DownloadFinished,
    DownloadPlan,
    DownloadProgress,
    DownloadStep,
    PartialDownload,
    RemoteFile,
)
from exl2_tui.core.sizes import size_of

TRIES = 5  # without a byte in between
REPORT_SECONDS = 0.1
SPEED_SECONDS = 5.0
SPEED_FROM = (0.5, 256 << 10)  # seconds and bytes from which a speed means something
PLAN = ".json"
LOCK = ".lock"


def download(hub: Hub, plan: DownloadPlan, own: Path, cancel: CancelToken) -> Iterator[Event]:
    """DownloadProgress..., DownloadFinished. The same plan again goes on where this one stopped.

    Raises CancelledError, HubError, MemoryLimitError for a full disk, CheckpointError for a file that is not what the
    Hub says it is, JobError if another program is at the same download. What is here stays for the next try.
    """
    if plan.problem:
        raise HubError(plan.problem, hint=plan.hint or None)
    target = Path(plan.folder)
    partial = partial_folder(own, target.name)
    with _disk_errors(partial), _locked(own, target.name):
        partial.mkdir(parents=True, exist_ok=True)
        _keep_what_is_the_same(own, plan, partial)
        _require_room(own, plan, partial)
        run = _Run(hub, plan, partial, cancel)
        yield from run.files()
        write_sums(partial, run.sums, origin_line(plan.repo, plan.revision, plan.commit))
        if target.exists():
            raise JobError("something is in the place of the model by now", file=target, hint="Move it away")
        partial.rename(target)
        (own / PARTIAL / (target.name + PLAN)).unlink(missing_ok=True)
    yield DownloadFinished(target.name, plan.repo, plan.revision, str(target), plan.total)


def unfinished(own: Path) -> tuple[PartialDownload, ...]:
    """Downloads that were begun and can go on."""
    found = []
    for file in sorted((own / PARTIAL).glob("*" + PLAN)):
        plan = stored_plan(own, file.name.removesuffix(PLAN))
        if plan is not None:
            partial = partial_folder(own, Path(plan.folder).name)
            ready = ready_bytes(partial, plan.files)
            found.append(PartialDownload(Path(plan.folder).name, plan.repo, plan.revision, ready, plan.total))
    return tuple(found)


def discard(own: Path, name: str) -> int:
    """Deletes what an unfinished download left; returns the bytes. Raises JobError while a program is at it."""
    plan = stored_plan(own, name)
    if plan is None:
        raise JobError(f"there is no unfinished download {ascii(name)[:80]}")
    partial = partial_folder(own, name)
    with _locked(own, name):
        size = ready_bytes(partial, plan.files)
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        (own / PARTIAL / (name + PLAN)).unlink(missing_ok=True)
    return size


def stored_plan(own: Path, name: str) -> DownloadPlan | None:
    """The plan of an unfinished download, None if there is none that can be trusted."""
    table = read_json(own / PARTIAL / (name + PLAN))
    if not isinstance(table, dict):
        return None
    try:
        files = tuple(RemoteFile(**file) for file in table["files"])
        plan = DownloadPlan(**{**table, "files": files})
    except (KeyError, TypeError):
        return None
    sound = all(is_file(file.name) and type(file.size) is int and file.size >= 0 for file in files)
    named = is_repo(plan.repo) and is_revision(plan.revision) and is_commit(plan.commit)
    return plan if sound and named and Path(plan.folder) == own / name else None


class _Run:
    """One download under way."""

    def __init__(self, hub: Hub, plan: DownloadPlan, partial: Path, cancel: CancelToken) -> None:
        self._hub = hub
        self._plan = plan
        self._partial = partial
        self._cancel = cancel
        self._done = 0  # bytes of the files before this one
        self._received: deque[tuple[float, int]] = deque()
        self._told = -REPORT_SECONDS
        self.sums: dict[str, str] = {}

    def files(self) -> Iterator[Event]:
        for index, file in enumerate(self._plan.files):
            self._cancel.check()
            if not (self._partial / file.name).is_file():
                yield from self._file(index, file)
            elif file.sha256:
                self.sums[file.name] = file.sha256
            else:
                self.sums[file.name] = _sha256(self._partial / file.name)
            yield self._progress(index, file, file.size, "download")
            self._done += file.size

    def _file(self, index: int, file: RemoteFile) -> Iterator[Event]:
        """Receives one file, in as many pieces as the network makes of it, and checks it."""
        part = self._partial / (file.name + PART)
        with part.open("r+b" if part.exists() else "w+b", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > file.size:
                stream.truncate(0)
                size = 0
            digests = (new_digest("sha256", file.size), new_digest("git", file.size))
            have = 0
            for piece in file_pieces(part, self._cancel):  # what an earlier try left counts for the hash, too
                for digest in digests:
                    digest.update(piece)
                have += len(piece)
                if self._due():
                    yield self._progress(index, file, have, "check")
            tries = TRIES
            while have < file.size:
                before = have
                try:
                    with self._hub.stream(
                        self._plan.repo, self._plan.commit, file.name, have, self._cancel
                    ) as response:
                        if have and not _continues(response, have):  # the server sends it from its beginning
                            stream.truncate(0)
                            digests = (new_digest("sha256", file.size), new_digest("git", file.size))
                            before = have = 0
                        stream.seek(have)
                        for piece in response.pieces:
                            self._cancel.check()
                            if have + len(piece) > file.size:
                                raise CheckpointError(
                                    f"expected {file.size} bytes, the server sends more", file=part, hint=_AGAIN
                                )
                            _write(stream, piece)
                            for digest in digests:
                                digest.update(piece)
                            have += len(piece)
                            self._note(len(piece))
                            if self._due():
                                yield self._progress(index, file, have, "download")
                    if have < file.size:
                        raise UnreachableError("the connection ended before the file did", hint=_GOES_ON)
                    break
                except UnreachableError:
                    self._cancel.check()
                    tries = TRIES if have > before else tries - 1
                    if tries == 0:
                        raise
                    self._wait(min(8.0, 0.5 * 2 ** (TRIES - tries)))
            os.fsync(stream.fileno())
        self._settle(part, file, digests[0].hexdigest(), digests[1].hexdigest())

    def _settle(self, part: Path, file: RemoteFile, sha256: str, git_sha1: str) -> None:
        """The file gets its name if it is what the Hub announced, else it goes."""
        expected, found = (file.sha256, sha256) if file.sha256 else (file.git_sha1, git_sha1)
        if found != expected:
            part.unlink(missing_ok=True)
            raise CheckpointError(
                f"the hash of {file.name} is {found[:12]}…, but the Hub announces {expected[:12]}…: what arrived is "
                "not the file",
                file=part,
                hint=_AGAIN,
            )
        part.rename(self._partial / file.name)
        self.sums[file.name] = sha256

    def _wait(self, seconds: float) -> None:
        """Before another try; ends at once when cancelled."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._cancel.check()
            time.sleep(0.05)

    def _note(self, count: int) -> None:
        now = time.monotonic()
        self._received.append((now, count))
        while self._received and self._received[0][0] < now - SPEED_SECONDS:
            self._received.popleft()

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._told < REPORT_SECONDS:
            return False
        self._told = now
        return True

    def _progress(self, index: int, file: RemoteFile, have: int, step: DownloadStep) -> DownloadProgress:
        done = min(self._plan.total, self._done + have)
        speed = self._speed()
        return DownloadProgress(
            id=Path(self._plan.folder).name,
            repo=self._plan.repo,
            revision=self._plan.revision,
            file=file.name,
            step=step,
            file_done=have,
            file_total=file.size,
            index=index + 1,
            count=len(self._plan.files),
            done=done,
            total=self._plan.total,
            speed=speed,
            seconds_left=(self._plan.total - done) / speed if speed > 0 else None,
        )

    def _speed(self) -> float:
        """Bytes per second over the last seconds; 0 while small files say more about the Hub than about the network."""
        if not self._received:
            return 0.0
        seconds = self._received[-1][0] - self._received[0][0]
        count = sum(size for _, size in self._received) - self._received[0][1]
        return count / seconds if seconds >= SPEED_FROM[0] and count >= SPEED_FROM[1] else 0.0


_AGAIN = "Start the download again; if it fails again, the repository or something on the way is broken"
_GOES_ON = "Check the network connection; the download goes on where it stopped"


def _continues(response: Response, start: int) -> bool:
    """True for an answer that begins at `start`. Raises HubError for one that begins elsewhere."""
    if response.status != 206:
        return False
    found = response.headers.get("Content-Range", "")
    if not found.startswith(f"bytes {start}-"):
        raise HubError(
            f"the server sends another part of the file than was asked for: {ascii(found)[:60]}", hint=_AGAIN
        )
    return True


def _write(stream: FileIO, piece: bytes) -> None:
    """All of it: a raw file may take less at once."""
    view = memoryview(piece)
    while view:
        view = view[stream.write(view) :]


def _sha256(file: Path) -> str:
    digest = new_digest("sha256", 0)
    for piece in file_pieces(file):
        digest.update(piece)
    return digest.hexdigest()


def _keep_what_is_the_same(own: Path, plan: DownloadPlan, partial: Path) -> None:
    """Files of an earlier plan whose hash differs now, and files that are in no plan, are deleted."""
    old = stored_plan(own, Path(plan.folder).name)
    before = {file.name: file for file in old.files} if old is not None else {}
    wanted = {file.name: file for file in plan.files}
    for entry in list(partial.iterdir()):
        name = entry.name.removesuffix(PART)
        if name not in wanted or before.get(name) != wanted[name]:
            if entry.is_dir() and not entry.is_symlink():
                raise JobError("a folder is in the way", file=entry, hint="Move it away")
            entry.unlink()
    write_json(own / PARTIAL / (Path(plan.folder).name + PLAN), asdict(plan))


def _require_room(own: Path, plan: DownloadPlan, partial: Path) -> None:
    missing = plan.total - ready_bytes(partial, plan.files) + MARGIN - free_space(own)
    if missing > 0:
        raise MemoryLimitError(
            f"the disk is too full: {size_of(missing)} are missing", file=own, hint="Free some space, then go on"
        )


@contextmanager
def _locked(own: Path, name: str) -> Iterator[None]:
    """Only one program at a time works on a download."""
    file = own / PARTIAL / (name + LOCK)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(
                "another program is at this download", file=file, hint="Wait for it, or stop it there"
            ) from error
        yield


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What the system says about the disk, as an error with a remedy."""
    try:
        yield
    except Exl2Error:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MemoryLimitError(
                "the disk is full", file=folder, hint="Free some space; the download goes on where it stopped"
            ) from error
        raise JobError(f"cannot write the download: {error.strerror or error}", file=folder) from error
