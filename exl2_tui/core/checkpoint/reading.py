"""Reading a file into memory of its own at the speed of memory: several threads, and buffers that are used again.

Fresh memory costs more than filling it, since the system zeroes it page by page when it is first touched. While a model
is loaded, one weight after another is read, repacked and dropped, so what one leaves serves the next.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from io import FileIO

import torch
from torch import Tensor

_HEAP_BYTES = 64 << 10  # smaller ones come from the heap
_AHEAD_BYTES = 64 << 20  # that the disk is asked for beyond what is read
_KEPT_BYTES = 32 << 20  # of memory that waits for its next use
_PIECE_BYTES = 16 << 20  # read at a time, so that a thread can be interrupted
_SHARE_BYTES = 512 << 10  # the least that another thread is asked to read: telling it takes as long as reading a tenth
_THREADS = min(4, os.cpu_count() or 1) if hasattr(os, "preadv") else 1  # Windows: one, with the file's own position


class Buffers:
    """Memory for tensors that are read; what a tensor had is free again when the tensor is gone."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._closed = False

    def room(self, nbytes: int) -> Tensor:
        """(nbytes,) uint8 with anything in it.

        Its memory does not come from the heap: buffers that are dropped between packed weights that stay would leave
        holes there, a third of the model.
        """
        if nbytes < _HEAP_BYTES or not hasattr(mmap, "MAP_PRIVATE"):  # the latter: Windows
            return torch.empty(nbytes, dtype=torch.uint8)
        pages = self._take(nbytes) or mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        view = memoryview(pages)[:nbytes]  # held by the tensor's storage, and by nothing else
        weakref.finalize(view, self._give, pages).atexit = False
        return torch.frombuffer(view, dtype=torch.uint8)

    def close(self) -> None:
        """What is free goes back to the system now, what is in use when its tensor is gone."""
        self._closed = True
        self._free.clear()

    def _take(self, nbytes: int) -> mmap.mmap | None:
        """The smallest that is free and fits; none that is much too large, since the tensor may stay for long."""
        fitting = [pages for pages in self._free if nbytes <= len(pages) <= nbytes * 5 // 4]
        best = min(fitting, key=len, default=None)
        if best is not None:
            self._free.remove(best)
        return best

    def _give(self, pages: mmap.mmap) -> None:
        if self._closed or len(pages) > _KEPT_BYTES:
            return
        self._free.append(pages)
        while sum(map(len, self._free)) > _KEPT_BYTES:
            self._free.pop(0)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor that is not empty, writable; the tensor must outlive it."""
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


class Reader:
    """Reads parts of open files; its threads live until it is closed."""

    def __init__(self) -> None:
        self._helpers: ThreadPoolExecutor | None = None
        self._asked = 0  # up to where the disk was asked for what comes next

    def read(self, stream: FileIO, offset: int, raw: Tensor) -> int:
        """Fills raw (n,) uint8 from the file; returns the bytes that were there. Raises OSError.

        The interpreter lock is free meanwhile.
        """
        if not raw.nbytes:
            return 0
        room = bytes_of(raw)
        if raw.nbytes >= _SHARE_BYTES:
            self._ask_ahead(stream, offset, offset + raw.nbytes)
        parts = max(1, min(_THREADS, raw.nbytes // _SHARE_BYTES))
        share = -(-raw.nbytes // parts)
        if parts == 1:
            return _fill(stream, offset, room)
        self._helpers = self._helpers or ThreadPoolExecutor(_THREADS - 1, "read")
        others = [
            self._helpers.submit(_fill, stream, offset + begin, room[begin : begin + share])
            for begin in range(share, raw.nbytes, share)
        ]
        try:
            done = _fill(stream, offset, room[:share])
        finally:
            wait(others)  # before the memory may go
        return done + sum(other.result() for other in others)

    def _ask_ahead(self, stream: FileIO, begin: int, end: int) -> None:
        """Has the disk busy with what follows while this is read and repacked. Large tensors mostly lie in the order in
        which they are wanted; the system's own read-ahead keeps less than a tenth of this under way."""
        if not hasattr(os, "posix_fadvise"):
            return
        if not begin <= self._asked <= end + _AHEAD_BYTES:
            self._asked = begin
        if self._asked < end + _AHEAD_BYTES // 2:
            os.posix_fadvise(stream.fileno(), self._asked, end + _AHEAD_BYTES - self._asked, os.POSIX_FADV_WILLNEED)
            self._asked = end + _AHEAD_BYTES

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()
            self._helpers = None


def _fill(stream: FileIO, offset: int, room: memoryview) -> int:
    """Reads until `room` is full or the file ends; returns the bytes read."""
    done = 0
    while done < len(room) and (count := _read_some(stream, offset + done, room[done : done + _PIECE_BYTES])):
        done += count
    return done


def _read_some(stream: FileIO, offset: int, room: memoryview) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(stream.fileno(), [room], offset)
    stream.seek(offset)
    return stream.readinto(room)
