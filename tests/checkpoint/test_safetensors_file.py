"""Tensors read and mapped, and the writer: files that change or are cut short while in use, bytes that repeat."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from io import FileIO
from pathlib import Path

import pytest
import safetensors.torch
import torch

from exl2_tui.core.checkpoint import TensorSource, open_file, write_file
from exl2_tui.core.checkpoint.reading import Reader
from exl2_tui.core.checkpoint.safetensors import SafetensorsFile
from exl2_tui.core.errors import CheckpointError, MemoryLimitError, UnsupportedError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "half.odd": torch.randn(3, generator=generator).half(),
        "brain": torch.randn(5, 7, generator=generator).bfloat16(),
        "float": torch.randn(2, 3, 4, generator=generator),
        "words": torch.randint(-(2**31), 2**31 - 1, (4, 32), generator=generator, dtype=torch.int32),
        "groups": torch.tensor([4, 0, 3, -1], dtype=torch.int16),
        "scalar": torch.tensor(1.5),
        "nothing": torch.empty(0, 8),
        "strided": torch.arange(12, dtype=torch.int32).reshape(3, 4).t(),
    }


def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = samples()
    digest = write_file(path, tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    theirs = safetensors.torch.load_file(path)
    ours = open_file(path)
    assert ours.tensors.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for found in (theirs[name], ours.tensor(name)):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
        assert ours.tensors[name].offset % tensor.element_size() == 0
    assert ours.header_bytes % 8 == 0


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in samples().items()}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    ours = open_file(path)
    assert all(torch.equal(ours.tensor(name), tensor) for name, tensor in tensors.items())


def test_bytes_repeat_and_keep_the_order(tmp_path: Path) -> None:
    first = write_file(tmp_path / "a", samples(), durable=False)
    assert write_file(tmp_path / "b", samples(), durable=False) == first
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    names = list(open_file(tmp_path / "a").tensors)
    assert [name for name in names if name in ("float", "words", "scalar")] == ["float", "words", "scalar"]
    assert names.index("words") < names.index("half.odd")


def test_sources_are_loaded_one_at_a_time(tmp_path: Path) -> None:
    log: list[str] = []

    def source(name: str) -> TensorSource:
        def load() -> torch.Tensor:
            log.append(name)
            return torch.full((4,), len(log), dtype=torch.float16)

        return TensorSource(torch.float16, (4,), load)

    write_file(tmp_path / "m", {name: source(name) for name in "abc"})
    assert log == ["a", "b", "c"]
    assert open_file(tmp_path / "m").tensor("c").tolist() == [3, 3, 3, 3]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    write_file(path, samples())
    before = path.read_bytes()

    def broken() -> torch.Tensor:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        write_file(path, {"a": torch.zeros(4), "b": TensorSource(torch.float32, (4,), broken)})
    with pytest.raises(CheckpointError, match=r"expected torch.float32 \(4,\), found torch.float32 \(5,\)"):
        write_file(path, {"a": TensorSource(torch.float32, (4,), lambda: torch.zeros(5))})
    with pytest.raises(UnsupportedError, match="float64"):
        write_file(path, {"a": torch.zeros(4, dtype=torch.float64)})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MemoryLimitError, match="disk is full"):
        write_file(path, {"a": torch.zeros(4)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="cannot write"):
        write_file(tmp_path / "absent" / "m", {"a": torch.zeros(4)})


def test_what_was_read_and_views_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_file(path, samples())
    before = path.read_bytes()
    file = open_file(path)
    read, view = file.tensor("words"), file.view("words")
    read.zero_()
    view[0] = 7  # private memory: never the file's
    assert path.read_bytes() == before
    file.close()
    path.unlink()
    assert not read.any() and torch.equal(view[1:], samples()["words"][1:])
    assert file_of(tmp_path, samples()).view("nothing").shape == (0, 8)


def file_of(folder: Path, tensors: dict[str, torch.Tensor]) -> SafetensorsFile:
    write_file(folder / "other.safetensors", tensors)
    return open_file(folder / "other.safetensors")


def test_a_file_cut_short_while_its_tensors_are_in_use_is_an_error_and_no_end(tmp_path: Path) -> None:
    """Mapped, this would end the process: the pages behind the new end of the file are gone."""
    size = 1 << 20
    file = file_of(tmp_path, {name: torch.full((size,), 3, dtype=torch.int16) for name in "ab"})
    first = file.tensor("a")
    os.truncate(file.path, 4096)
    assert int(first.sum()) == 3 * size
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        file.tensor("b")


def test_a_file_written_to_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(tmp_path, {"a": torch.zeros(1 << 16)})
    real = Reader.read

    def meanwhile(self: Reader, stream: FileIO, offset: int, raw: torch.Tensor) -> int:
        os.truncate(file.path, 4096)
        return real(self, stream, offset, raw)

    monkeypatch.setattr(Reader, "read", meanwhile)
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        file.tensor("a")


def test_misaligned_data_is_copied(tmp_path: Path) -> None:
    """Early writers did not pad the header; some kernels need aligned numbers."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - (8 + len(header)) % 2)
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.tensor([1.5, -2.0]).numpy().tobytes())
    assert open_file(path).tensors["a"].offset % 4 != 0
    tensor = open_file(path).tensor("a")
    assert tensor.tolist() == [1.5, -2.0]
    assert tensor.data_ptr() % 4 == 0


def test_other_dtypes_are_an_error_only_when_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(2)}, path)
    file = open_file(path)
    assert file.tensors["a"].dtype == "I64"
    assert file.tensor("b").tolist() == [0, 0]
    with pytest.raises(UnsupportedError, match="found I64") as caught:
        file.tensor("a")
    assert (caught.value.file, caught.value.tensor) == (str(path), "a")
    with pytest.raises(CheckpointError, match="none of its name"):
        file.tensor("c")


@pytest.mark.parametrize("read_before", (False, True))
@pytest.mark.parametrize("change", ("truncate", "append", "rewrite", "replace", "delete"))
def test_a_file_that_changed_is_noticed(tmp_path: Path, change: str, read_before: bool) -> None:
    path = tmp_path / "m.safetensors"
    write_file(path, samples())
    file = open_file(path)
    if read_before:
        file.tensor("words")
    if change == "truncate":
        os.truncate(path, 40)
    elif change == "append":
        path.write_bytes(path.read_bytes() + b"x")
    elif change == "rewrite":
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(1, 1))
    elif change == "replace":
        write_file(path, samples())
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"changed after it was opened|cannot read"):
        file.tensor("words")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        open_file(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_file(tmp_path / "folder.safetensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="link points to nothing"):
        open_file(link)


@linux
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    finished: list[str] = []

    def attempt() -> None:
        with pytest.raises(CheckpointError, match="not a regular file"):
            open_file(tmp_path / "pipe.safetensors")
        finished.append("yes")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert finished


def resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile:", "RssAnon:")))


@linux
def test_views_cost_nothing_untouched_and_what_was_read_is_given_back(tmp_path: Path) -> None:
    mib = 1 << 20
    file = file_of(tmp_path, {name: torch.ones(48 * mib, dtype=torch.int16) for name in "ab"})
    start = resident_kib()
    a, b = file.view("a"), file.view("b")
    assert resident_kib() - start < 8192
    assert int(a.sum()) == 48 * mib and resident_kib() - start > 90_000
    del a, b
    assert resident_kib() - start < 8192
    for name in "ab":
        assert int(file.tensor(name).sum()) == 48 * mib
        assert resident_kib() - start < 8192
