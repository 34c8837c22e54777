"""The work directory of a job: a lock, a state file that is replaced atomically, and artifacts with hashes.

Every artifact is written under a new name, complete and flushed to disk, before the state names it; what the state no
longer names is deleted only afterwards. So the state always describes files that exist, whenever the process dies.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.safetensors import TensorSource, open_file, write_file
from exl2_tui.core.errors import CheckpointError, JobError, MemoryLimitError

STATE = "job.json"
LOCK = "lock"
VERSION = 2
CALIBRATION = "calibration.safetensors"
EMBEDDING = "embedding.safetensors"
MEASUREMENT = "measurement.json"
_RUN_FILES = ("events.jsonl", "pause")
"""What a run leaves that has computed nothing."""
_OWN_FILES = (STATE, MEASUREMENT, CALIBRATION, EMBEDDING, *_RUN_FILES)
_LOCK_TRIES = 10
_OWN_FOLDERS = re.compile(r"states|quantized-[0-9]+")
DISK_FULL = "the disk is full"
DISK_HINT = "Free some space, then run the same command to go on."
WRITE_HINT = "Make it writable, then run the same command to go on."


class WorkDir:
    """Exclusive owner of a directory while open. Raises JobError if it cannot be made, written or locked.

    Where no job is begun, the directory is left as it was found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []
        for _ in range(_LOCK_TRIES):  # a job that was refused takes lock and directory away again
            self._made = _missing(path)
            self._lock = self._locked()
            if _is_at(self._lock, path / LOCK):
                break
            self._lock.close()
        self._sweep()

    def _locked(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            self._take_back()
            raise JobError(f"the work directory cannot be written ({error.strerror})", file=self.path) from None
        try:
            _lock(lock.fileno())
        except OSError as error:
            lock.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise JobError(
                    "another process is working in this directory",
                    file=self.path,
                    hint="Wait for it, or choose another one.",
                ) from None
            self._take_back()
            raise JobError(
                f"the directory cannot be locked ({error.strerror})", file=self.path, hint="Choose one on a local disk."
            ) from None
        return lock

    def __enter__(self) -> WorkDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back, and takes away what was made here if no job was begun."""
        if not self.is_begun:
            self._take_back()
        self._lock.close()

    def _take_back(self) -> None:
        """Removes what was not there before, but for directories that hold something by now."""
        for place in self._made:
            with contextlib.suppress(OSError):
                if place.is_dir():
                    place.rmdir()
                else:
                    place.unlink(missing_ok=True)

    @property
    def is_begun(self) -> bool:
        """Whether there is a job here, damaged or not."""
        return (self.path / STATE).exists()

    def read_state(self) -> dict[str, Any] | None:
        """The state, or None in a fresh directory. Raises JobError if it is damaged or from another version."""
        return read_state(self.path)

    def write_state(self, state: dict[str, Any]) -> None:
        """Replaces the state atomically and flushes it to disk."""
        write_durably(self.path / STATE, json.dumps({"version": VERSION, **state}, indent=1).encode())

    def write_tensors(self, name: str, tensors: dict[str, Tensor | TensorSource]) -> str:
        """Writes an artifact and returns its SHA-256. Raises JobError, and leaves nothing behind, if it cannot."""
        try:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            return write_file(self.path / name, tensors)
        except MemoryLimitError:
            raise JobError(DISK_FULL, file=self.path / name, hint=DISK_HINT) from None
        except CheckpointError as error:
            raise JobError(error.message, file=self.path / name, hint=error.hint or WRITE_HINT) from None
        except OSError as error:
            raise disk_error(self.path / name, error) from None

    def read_tensors(self, name: str, sha256: str) -> dict[str, Tensor]:
        """An artifact, after its hash was compared. Raises JobError if it differs."""
        self.verify(name, sha256)
        file = open_file(self.path / name)
        return {key: file.tensor(key) for key in file.tensors}

    def view(self, name: str, tensor: str, device: torch.device) -> Tensor:
        """One tensor of an artifact, on the CPU as a view of the mapped file: do not write to it."""
        return open_file(self.path / name).view(tensor).to(device)

    def holds(self, name: str, sha256: str, poll: Callable[[], None] | None = None) -> bool:
        """Whether the artifact is there and has this hash. `poll` is called often and may raise."""
        try:
            return hash_file(self.path / name, poll) == sha256
        except OSError:
            return False

    def verify(self, name: str, sha256: str, poll: Callable[[], None] | None = None) -> None:
        """Raises JobError unless the artifact has this hash."""
        try:
            found = hash_file(self.path / name, poll)
        except OSError as error:
            raise JobError(
                f"the file cannot be read ({error.strerror})", file=self.path / name, hint="Start anew with -nr."
            ) from None
        if found != sha256:
            raise JobError(
                "the file was changed or damaged since it was written",
                file=self.path / name,
                hint="Start anew with -nr.",
            )

    def keep_only(self, names: set[str]) -> None:
        """Deletes artifacts that are not among `names`. Nothing but a job's own files is ever touched."""
        for folder in self._own_folders():
            for file in folder.rglob("*.safetensors"):
                if file.relative_to(self.path).as_posix() not in names:
                    file.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        for name in {CALIBRATION, EMBEDDING} - names:
            (self.path / name).unlink(missing_ok=True)

    def clear(self, claimed: Sequence[str]) -> None:
        """Deletes everything a job leaves here and nothing else. claimed: directories of its models, of which those
        directly in this one go too."""
        for name in _OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        here = self.path.resolve()
        models = [folder for folder in map(Path, claimed) if folder.parent.resolve() == here]
        for folder in (*self._own_folders(), *filter(_is_real, models)):
            shutil.rmtree(folder)

    def _own_folders(self) -> list[Path]:
        return [folder for folder in self.path.iterdir() if _OWN_FOLDERS.fullmatch(folder.name) and _is_real(folder)]

    def _sweep(self) -> None:
        """Deletes what a killed process was writing. Nobody else can be writing it: the directory is locked."""
        folders = (self.path, *self._own_folders())
        for partial in [file for folder in folders for file in folder.glob("*.partial")]:
            if any(partial.name.startswith(start) for start in (".", *_OWN_FILES)):
                partial.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any] | None:
    """The state in a work directory without locking it."""
    file = path / STATE
    try:
        state = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"the job file is damaged ({error})", file=file, hint="Start anew with -nr.") from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise JobError("the job file was written by another version", file=file, hint="Start anew with -nr.")
    return state


def write_durably(file: Path, content: bytes) -> None:
    """Replaces a small file so that either the old or the new content is there after a crash."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        if sys.platform != "win32":
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(file, error) from None


def disk_error(file: Path, error: OSError) -> JobError:
    """What a failed write means for a job."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError(DISK_FULL, file=file, hint=DISK_HINT)
    return JobError(f"the file cannot be written ({error.strerror})", file=file, hint=WRITE_HINT)


def hash_file(file: Path, poll: Callable[[], None] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal. `poll` is called between pieces of it and may raise."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            if poll is not None:
                poll()
            digest.update(piece)
    return digest.hexdigest()


def is_locked(path: Path) -> bool:
    """Whether a process works in this directory; asking holds its lock for a moment."""
    try:
        with (path / LOCK).open("r+") as lock:
            _try_lock(lock.fileno())
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _missing(path: Path) -> list[Path]:
    """What a refused job may leave behind and is not there yet, in the order in which it can be removed."""
    places = (*(path / name for name in (*_RUN_FILES, LOCK)), path, *path.parents)
    return [place for place in places if not place.exists()]


def _is_at(stream: IO[str], file: Path) -> bool:
    """Whether a file that is open is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _is_real(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def _lock(handle: int) -> None:
    """The lock dies with the process, however that ends. One that is only being asked about is free in a moment."""
    for _ in range(_LOCK_TRIES):
        with contextlib.suppress(OSError):
            return _try_lock(handle)
        time.sleep(0.02)
    return _try_lock(handle)


def _try_lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
