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
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.safetensors import TensorSource, open_file, write_file
from exl2_tui.core.errors import CheckpointError, Exl2Error, JobError

STATE = "job.json"
LOCK = "lock"
VERSION = 1
_OWN_NAMES = ("*.safetensors", "*.partial", "job.json*", "measurement.json*", "report.*", "events.jsonl", "pause")
_LOCK_TRIES = 10


class WorkDir:
    """Exclusive owner of a directory while open. Raises JobError if it cannot be made, written or locked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("a+")
        except OSError as error:
            raise JobError(f"the work directory cannot be written ({error.strerror})", file=path) from None
        try:
            _lock(self._lock.fileno())
        except OSError:
            self._lock.close()
            raise JobError(
                "another process is working in this directory", file=path, hint="Wait for it, or choose another one."
            ) from None

    def __enter__(self) -> WorkDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def read_state(self) -> dict[str, Any] | None:
        """The state, or None in a fresh directory. Raises JobError if it is damaged or from another version."""
        return read_state(self.path)

    def write_state(self, state: dict[str, Any]) -> None:
        """Replaces the state atomically and flushes it to disk."""
        write_durably(self.path / STATE, json.dumps({"version": VERSION, **state}, indent=1).encode())

    def write_tensors(self, name: str, tensors: dict[str, Tensor | TensorSource]) -> str:
        """Writes an artifact and returns its SHA-256."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            return write_file(self.path / name, tensors)
        except (CheckpointError, OSError) as error:
            raise JobError(f"the work directory cannot be written ({error})", file=self.path) from None

    def read_tensors(self, name: str, sha256: str) -> dict[str, Tensor]:
        """An artifact, after its hash was compared. Raises JobError if it differs."""
        self.verify(name, sha256)
        file = open_file(self.path / name)
        return {key: file.tensor(key) for key in file.tensors}

    def view(self, name: str, tensor: str, device: torch.device) -> Tensor:
        """One tensor of an artifact, on the CPU as a view of the mapped file: do not write to it."""
        return open_file(self.path / name).view(tensor).to(device)

    def verify(self, name: str, sha256: str) -> None:
        """Raises JobError unless the artifact has this hash."""
        try:
            found = hash_file(self.path / name)
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
        """Deletes artifacts that the state does not name."""
        for file in self.path.rglob("*.safetensors"):
            name = file.relative_to(self.path).as_posix()
            if name not in names and not (file.parent / "config.json").exists():
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes everything a job leaves here, and nothing else."""
        for pattern in _OWN_NAMES:
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        for folder in self.path.iterdir():
            if folder.is_dir() and folder.name.startswith(("quantized-", "model-", "states")):
                shutil.rmtree(folder, ignore_errors=True)


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


def disk_error(file: Path, error: OSError) -> Exl2Error:
    """What a failed write means for a job."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError("the disk is full", file=file, hint="Free some space, then run the same command to go on.")
    return JobError(f"the file cannot be written ({error.strerror})", file=file)


def hash_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def is_locked(path: Path) -> bool:
    """Whether a process works in this directory; asking holds its lock for a moment."""
    try:
        with (path / LOCK).open("a+") as lock:
            _try_lock(lock.fileno())
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


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
