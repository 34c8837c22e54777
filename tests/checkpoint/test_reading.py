"""Reading into memory that is used again: never while somebody has it, and whole whoever reads which part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exl2_tui.core.checkpoint import reading
from exl2_tui.core.checkpoint.reading import Buffers, Reader


def test_memory_of_a_tensor_that_is_gone_serves_the_next() -> None:
    buffers = Buffers()
    first = buffers.room(1 << 20)
    place = first.data_ptr()
    del first
    assert buffers.room(1 << 20).data_ptr() == place


def test_memory_in_use_is_never_given_out() -> None:
    buffers = Buffers()
    first = buffers.room(1 << 20).fill_(1)
    view = first.view(torch.int32)[7:]  # keeps the memory, though the tensor it was made of goes
    del first
    second = buffers.room(1 << 20).fill_(2)
    assert int(view.sum()) == len(view) * 0x01010101
    assert int(second.sum(dtype=torch.int64)) == 2 << 20


def test_a_small_tensor_takes_no_large_memory() -> None:
    buffers = Buffers()
    place = buffers.room(8 << 20).data_ptr()  # free at once
    small = buffers.room(1 << 20)
    assert small.data_ptr() != place
    assert buffers.room(7 << 20).data_ptr() == place


def test_closed_buffers_keep_nothing_but_what_is_in_use() -> None:
    buffers = Buffers()
    kept, dropped = buffers.room(1 << 20).fill_(3), buffers.room(2 << 20)
    del dropped
    buffers.close()
    assert not buffers._free
    assert int(kept.sum(dtype=torch.int64)) == 3 << 20
    del kept
    assert not buffers._free


@pytest.mark.parametrize("offset", [0, 3])
def test_several_threads_read_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    monkeypatch.setattr(reading, "_THREADS", 3)
    monkeypatch.setattr(reading, "_PIECE_BYTES", 100_000)
    content = torch.randint(256, (2_000_003,), dtype=torch.uint8)
    path = tmp_path / "file"
    path.write_bytes(content.numpy().tobytes())
    reader = Reader()
    with path.open("rb", buffering=0) as stream:
        found = torch.zeros(len(content) - offset, dtype=torch.uint8)
        assert reader.read(stream, offset, found) == len(found)
        assert torch.equal(found, content[offset:])
        assert reader.read(stream, offset + 1, found) == len(found) - 1  # ends before the room does
    with pytest.raises((OSError, ValueError)):
        reader.read(stream, 0, found)
    reader.close()
