"""Safetensors files in both directions: tensors as views of a mapped file, and a streaming writer.

No copy is made while reading: a tensor is a window into the mapped file and costs memory only once it is touched.
release() gives that memory back after a tensor was repacked.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from exl2_tui.core.checkpoint.header import LENGTH_BYTES, TensorInfo, read_header
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
_WRITE_BYTES = 16 << 20


class SafetensorsFile:
    """One file, its header validated; the data is mapped at the first read.

    A file that another program truncates in place while its tensors are in use ends this process (SIGBUS); replacing
    it by renaming, as downloaders do, is harmless. Changes between two reads are noticed.
    """

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], identity: tuple[int, ...]) -> None:
        self.path = path
        self.tensors = tensors
        self.header_bytes = identity[-1] - sum(info.nbytes for info in tensors.values())
        self._identity = identity
        self._map: mmap.mmap | None = None

    def tensor(self, name: str) -> Tensor:
        """The tensor as a view of the file; do not write to it. Only one that lies misaligned in the file is copied.

        Raises CheckpointError if it is missing or the file changed, UnsupportedError for a dtype no weight has.
        """
        info = self._info(name)
        dtype = READABLE.get(info.dtype)
        if dtype is None:
            raise UnsupportedError(
                f"expected a dtype of {', '.join(READABLE)}, found {info.dtype}", file=self.path, tensor=name
            )
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        data = self._mapped()
        if info.offset % dtype.itemsize:  # early writers did not pad the header
            raw = torch.frombuffer(data, dtype=torch.uint8, count=info.nbytes, offset=info.offset)
            return raw.clone().view(dtype).reshape(info.shape)
        count = info.nbytes // dtype.itemsize
        return torch.frombuffer(data, dtype=dtype, count=count, offset=info.offset).reshape(info.shape)

    def release(self, name: str) -> None:
        """Gives back the memory that reading this tensor took. Views stay valid and read from the file again."""
        info = self._info(name)
        if self._map is None or info.nbytes == 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def close(self) -> None:
        """Lets go of the file. It stays mapped until the last tensor read from it is gone."""
        self._map = None

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError("expected this tensor, found none of its name", file=self.path, tensor=name)
        return self.tensors[name]

    def _mapped(self) -> mmap.mmap:
        """The file's bytes, private to this process: a stray write changes our copy and never the file."""
        try:
            if self._map is None:
                with _open_regular(self.path) as (stream, identity):
                    self._check_unchanged(identity)
                    self._map = _map(stream, identity[-1])
            else:
                self._check_unchanged(_identity(self.path.stat()))
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return self._map

    def _check_unchanged(self, identity: tuple[int, ...]) -> None:
        if identity != self._identity:
            raise CheckpointError("the file changed after it was opened", file=self.path, hint="Load the model again")


def open_file(path: Path) -> SafetensorsFile:
    """Reads and validates the header only. Raises CheckpointError, naming what is wrong."""
    try:
        with _open_regular(path) as (stream, identity):
            return SafetensorsFile(path, read_header(stream, identity[-1], path), identity)
    except OSError as error:
        raise _unreadable(path, error) from error


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is replaced or written: device, number, time and (last) size."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _open_regular(path: Path) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """An open file and its identity; raises OSError. A pipe or device is refused before it can block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as stream:
        yield stream, _identity(os.fstat(stream.fileno()))


def _map(stream: BinaryIO, size: int) -> mmap.mmap:
    """The whole file as writable private memory that is not counted as used until it is written."""
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
                digest = _write_all(stream, header, ordered, path)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
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


def _write_all(stream: BinaryIO, header: bytes, ordered: Iterable[tuple[str, TensorSource]], path: Path) -> str:
    digest = hashlib.sha256(header)
    stream.write(header)
    for name, source in ordered:
        tensor = source.load().detach().cpu().contiguous()
        if tensor.dtype != source.dtype or tuple(tensor.shape) != source.shape:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise CheckpointError(f"expected {source.dtype} {source.shape}, found {found}", file=path, tensor=name)
        if tensor.nbytes == 0:
            continue
        data = memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
        for start in range(0, tensor.nbytes, _WRITE_BYTES):
            piece = data[start : start + _WRITE_BYTES]
            stream.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    """Makes a rename in the directory survive a power failure, where the system has that notion."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
