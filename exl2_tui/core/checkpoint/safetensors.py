"""Safetensors files in both directions: tensors read one by one, views of a mapped file, and a streaming writer.

A model's tensors are read into memory of their own, not mapped: when another program cuts a mapped file short, touching
what is gone ends the process (SIGBUS), while a read that comes back short is an error like any other. It costs nothing,
since whoever reads a weight repacks it and drops what was read. Mapped are only files that nobody but this program
writes and that may be larger than the memory: the states of a conversion.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.header import LENGTH_BYTES, TensorInfo, read_header
from exl2_tui.core.checkpoint.place import TensorPlace, changed
from exl2_tui.core.checkpoint.reading import Buffers, Reader, bytes_of
from exl2_tui.core.errors import CheckpointError, MemoryLimitError, UnsupportedError

READABLE = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I16": torch.int16,
    "I32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in READABLE.items()}
_ALIGNMENT = 8
_PIECE_BYTES = 16 << 20
_SYNC_BYTES = 32 << 20
"""Written at most before the disk is waited for: a process cannot end while it waits, not even by Ctrl-C."""


class SafetensorsFile:
    """One file, its header validated; open from the first read to `close`. Used by one thread at a time.

    Every read notices a file that is no longer the one that was opened.
    """

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], identity: tuple[int, ...]) -> None:
        self.path = path
        self.tensors = tensors
        self.header_bytes = identity[-1] - sum(info.nbytes for info in tensors.values())
        self._identity = identity
        self._stream: FileIO | None = None
        self._buffers, self._reader = Buffers(), Reader()

    def tensor(self, name: str) -> Tensor:
        """The tensor, read into memory of its own.

        Raises CheckpointError if it is missing or the file changed, UnsupportedError for a dtype no weight has.
        """
        info, dtype = self._typed(name)
        raw = self._buffers.room(info.nbytes)
        with self._unchanged() as stream:
            whole = self._reader.read(stream, info.offset, raw) == info.nbytes
            if not whole or _identity(os.fstat(stream.fileno())) != self._identity:  # cut short, or being written
                raise changed(self.path)
        return raw.view(dtype).reshape(info.shape)

    def place(self, name: str) -> TensorPlace:
        """Where the tensor lies, to read parts of it later. Raises as `tensor`."""
        info, dtype = self._typed(name)
        *_, modified, size = self._identity
        with self._unchanged() as stream:
            return TensorPlace(self.path, name, dtype, info.shape, stream.fileno(), info.offset, size, modified)

    def source(self, name: str) -> TensorSource:
        """The tensor, read only when its turn to be written comes. Raises as `tensor`."""
        info, dtype = self._typed(name)
        return TensorSource(dtype, info.shape, partial(self.tensor, name))

    def view(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file, which costs memory only where it is touched; do not write to it.

        Only for files that no other program writes: one that is cut short while the view is in use ends this process.
        It stays valid after `close`. Raises as `tensor`, and CheckpointError for data not aligned to its dtype.
        """
        info, dtype = self._typed(name)
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        if info.offset % dtype.itemsize:
            raise CheckpointError("expected aligned data, found some that is not", file=self.path, tensor=name)
        with self._unchanged() as stream:
            data = _map(stream, self._identity[-1])
        count = info.nbytes // dtype.itemsize
        return torch.frombuffer(data, dtype=dtype, count=count, offset=info.offset).reshape(info.shape)

    def close(self) -> None:
        """Lets go of the file; what was read from it stays."""
        self._reader.close()
        self._buffers.close()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _typed(self, name: str) -> tuple[TensorInfo, torch.dtype]:
        """Where a tensor lies, and its dtype."""
        if name not in self.tensors:
            raise CheckpointError("expected this tensor, found none of its name", file=self.path, tensor=name)
        info = self.tensors[name]
        dtype = READABLE.get(info.dtype)
        if dtype is None:
            raise UnsupportedError(
                f"expected a dtype of {', '.join(READABLE)}, found {info.dtype}", file=self.path, tensor=name
            )
        return info, dtype

    @contextmanager
    def _unchanged(self) -> Iterator[FileIO]:
        """The open file, still the one whose header was read. Raises CheckpointError, also for OSErrors inside."""
        try:
            if self._stream is None:
                self._stream = _open_regular(self.path)
                weakref.finalize(self, self._stream.close)
            if not self._identity == _identity(self.path.stat()) == _identity(os.fstat(self._stream.fileno())):
                raise changed(self.path)
            yield self._stream
        except OSError as error:
            raise _unreadable(self.path, error) from error


def open_file(path: Path) -> SafetensorsFile:
    """Reads and validates the header only. Raises CheckpointError, naming what is wrong."""
    try:
        with _open_regular(path) as stream:
            identity = _identity(os.fstat(stream.fileno()))
            return SafetensorsFile(path, read_header(stream, identity[-1], path), identity)
    except OSError as error:
        raise _unreadable(path, error) from error


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced or written: device, number, time and (last) size."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _open_regular(path: Path) -> FileIO:
    """The file, opened without a buffer; raises OSError. A pipe or device is refused before it can block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb", buffering=0)


def _map(stream: FileIO, size: int) -> mmap.mmap:
    """The whole file as writable private memory that is not counted as used until it is written: a stray write
    changes our copy and never the file."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY)
    # Without NORESERVE (a constant only since Python 3.11) Linux refuses files larger than the memory.
    flags = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
    return mmap.mmap(stream.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    missing = isinstance(error, FileNotFoundError)
    hint = "The link points to nothing; download the model again" if missing and path.is_symlink() else None
    return CheckpointError(f"cannot read the file: {error.strerror or error}", file=path, hint=hint)


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is made only when its turn to be written comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSource:
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_file(path: Path, tensors: Mapping[str, Tensor | TensorSource], *, durable: bool = True) -> str:
    """Writes the tensors and returns the SHA-256 of the file, in hexadecimal.

    The same tensors in the same order give the same bytes: those with large elements first, so that each is aligned,
    otherwise in the order given. The file appears under its name only when it is whole; `durable` waits until the disk
    has it. Raises CheckpointError or, for a full disk, MemoryLimitError; then nothing is left behind.
    """
    sources = {
        name: item if isinstance(item, TensorSource) else TensorSource.of(item) for name, item in tensors.items()
    }
    ordered = sorted(sources.items(), key=lambda item: -item[1].dtype.itemsize)
    header = _header_bytes(ordered, path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as stream:
                digest = _write_all(stream, header, ordered, path, durable=durable)
            partial.replace(path)
            if durable:
                _sync_directory(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MemoryLimitError("the disk is full", file=path, hint="Free some space and try again") from error
        raise CheckpointError(f"cannot write the file: {error.strerror or error}", file=path) from error
    return digest


def _header_bytes(ordered: list[tuple[str, TensorSource]], path: Path) -> bytes:
    entries: dict[str, object] = {}
    offset = 0
    for name, source in ordered:
        if source.dtype not in _NAMES:
            raise UnsupportedError(f"expected a dtype of {', '.join(READABLE)}, found {source.dtype}", tensor=name)
        end = offset + math.prod(source.shape) * source.dtype.itemsize
        entries[name] = {"dtype": _NAMES[source.dtype], "shape": list(source.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _write_all(
    stream: BinaryIO, header: bytes, ordered: Iterable[tuple[str, TensorSource]], path: Path, *, durable: bool
) -> str:
    digest = hashlib.sha256(header)
    waiting = stream.write(header)
    for name, source in ordered:
        tensor = source.load().detach().cpu().contiguous()
        if tensor.dtype != source.dtype or tuple(tensor.shape) != source.shape:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise CheckpointError(f"expected {source.dtype} {source.shape}, found {found}", file=path, tensor=name)
        if tensor.nbytes == 0:
            continue
        data = bytes_of(tensor)
        for start in range(0, tensor.nbytes, _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            waiting += stream.write(piece)
            digest.update(piece)
            if durable and waiting >= _SYNC_BYTES:
                _sync(stream)
                waiting = 0
    if durable:
        _sync(stream)
    return digest.hexdigest()


def _sync(stream: BinaryIO) -> None:
    """Waits until the disk has everything that was written."""
    stream.flush()
    os.fsync(stream.fileno())


def _sync_directory(directory: Path) -> None:
    """Makes a rename in the directory survive a power failure, where the system has that notion."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
