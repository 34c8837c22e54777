"""The embedding stays in its file: rows are right wherever it lies there, and whatever becomes of the file is told."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import write_random_exl2_model, write_random_model
from support.passages import PROMPT, WHOLE, generator_of, what_counts

from exl2_tui.core.checkpoint import Checkpoint, TensorPlace
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CheckpointError
from exl2_tui.core.generation import generator as generator_module
from exl2_tui.core.model.estimate import estimate
from exl2_tui.core.model.layout import EMBEDDING
from exl2_tui.core.model.native import NativeModel
from exl2_tui.core.model.passage import Passage
from exl2_tui.core.ops.native import capabilities
from exl2_tui.core.requests import LoadOptions, SamplerSettings

pytestmark = pytest.mark.skipif(not capabilities().native, reason="the kernels are not built")

GREEDY = SamplerSettings(temperature=0)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "fp16": lambda folder: write_random_model(folder, vocab_size=300),
    "bf16 tied": lambda folder: write_random_model(
        folder, dtype="bfloat16", vocab_size=300, tie_word_embeddings=True, shards=2
    ),
    "fp32": lambda folder: write_random_model(folder, "Qwen3ForCausalLM", dtype="float32", vocab_size=300),
    "fp32 tied": lambda folder: write_random_model(folder, dtype="float32", vocab_size=300, tie_word_embeddings=True),
    "exl2": lambda folder: write_random_exl2_model(folder, vocab_size=300),
}


class Elsewhere:
    """A checkpoint, but for the place of its tensors."""

    def __init__(self, checkpoint: Checkpoint, place: TensorPlace | None) -> None:
        self.checkpoint, self.elsewhere = checkpoint, place

    def place(self, _: str) -> TensorPlace | None:
        return self.elsewhere

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self.checkpoint, name)


class Noting(NativeModel):
    """Notes what it writes by itself."""

    noted: tuple[int, ...] = ()

    def write(self, *args: Any, **options: Any) -> Passage:
        passage = super().write(*args, **options)
        self.noted += tuple(passage.tokens)
        return passage


def load(
    folder: Path,
    place: Callable[[TensorPlace], TensorPlace | None] = lambda found: found,
    kind: type[NativeModel] = NativeModel,
) -> NativeModel:
    with Checkpoint.open(folder) as checkpoint:
        source = Elsewhere(checkpoint, place(checkpoint.place(EMBEDDING)))
        return kind.load(source, ModelConfig.from_dir(folder), LoadOptions(threads=2), chunk=48)


def in_memory(folder: Path) -> NativeModel:
    return load(folder, lambda _: None)


def logits(model: NativeModel) -> torch.Tensor:
    """Of a prompt of two chunks and of single tokens behind it."""
    ids = torch.randint(0, 300, (70,), generator=torch.Generator().manual_seed(3)).tolist()
    cache = model.new_cache(80)
    rows = [model.forward(ids, cache, all_logits=True)]
    rows += [model.forward([token], cache)[None] for token in (0, 299, 7)]
    return torch.cat(rows)


def written(model: NativeModel, count: int = 40) -> list[int]:
    return what_counts([*generator_of(model).stream(PROMPT, GREEDY, max_new_tokens=count)])[1]


def shift(folder: Path) -> None:
    """Makes the header of each file a byte longer, so that everything behind it lies at odd offsets."""
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        file.write_bytes((end - 7).to_bytes(8, "little") + data[8:end] + b" " + data[end:])


@pytest.fixture(params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path / "model")


def stored_in(folder: Path) -> Path:
    with Checkpoint.open(folder) as checkpoint:
        return checkpoint.info(EMBEDDING).file


@pytest.mark.parametrize("odd", [False, True])
def test_rows_are_those_in_memory(odd: bool, folder: Path) -> None:
    if odd:
        shift(folder)
    with Checkpoint.open(folder) as checkpoint:
        info = checkpoint.info(EMBEDDING)
    assert info.offset % 2 == odd
    model, other = load(folder), in_memory(folder)
    assert torch.equal(logits(model), logits(other))
    assert written(model) == written(other)
    assert other.weight_bytes - model.weight_bytes == info.nbytes


@pytest.mark.parametrize("exact", [True, False])
def test_the_estimate_is_what_is_held(exact: bool, nano_chat: Path, nano_chat_exl2: Path) -> None:
    for directory in (nano_chat, nano_chat_exl2):
        with Checkpoint.open(directory) as checkpoint:
            config = ModelConfig.from_dir(directory)
            estimated = estimate(checkpoint, config, available=10**9, exact=exact)
            model = NativeModel.load(checkpoint, config, LoadOptions(exact=exact))
        assert model.weight_bytes == pytest.approx(estimated.weights, rel=0.05)  # packing adds a little


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_a_file_that_loses_its_name_is_read_on(fate: str, folder: Path) -> None:
    model = load(folder)
    before, tokens = logits(model), written(model)
    file = stored_in(folder)
    if fate == "deleted":
        file.unlink()
    else:
        (folder / "new").write_bytes(bytes(file.stat().st_size))
        (folder / "new").replace(file)
    assert torch.equal(logits(model), before) and written(model) == tokens


@pytest.mark.parametrize("fate", ["cut in the embedding", "cut at its end", "emptied", "overwritten"])
def test_a_file_that_is_written_to_is_told(fate: str, folder: Path) -> None:
    model = load(folder)
    cache = model.new_cache(64)
    model.forward(PROMPT, cache)
    generator = generator_of(model)
    run = generator.stream(PROMPT, GREEDY, max_new_tokens=100)
    next(event for event in run if hasattr(event, "token_ids"))  # the first words are written
    with Checkpoint.open(folder) as checkpoint:
        info = checkpoint.info(EMBEDDING)
    size = info.file.stat().st_size
    if fate == "overwritten":
        info.file.write_bytes(bytes(size))  # as `cp` does
    else:
        os.truncate(
            info.file, {"cut in the embedding": info.offset + info.nbytes // 2, "cut at its end": size - 1}.get(fate, 0)
        )
    for attempt in (
        lambda: model.forward([1], cache),
        lambda: model.forward(range(9), cache),  # type: ignore[arg-type]
        lambda: [*run],
        lambda: [*generator.stream(PROMPT, GREEDY, max_new_tokens=9)],
    ):
        with pytest.raises(CheckpointError, match="the file changed after it was opened") as caught:
            attempt()
        assert caught.value.file == str(info.file) and caught.value.tensor == EMBEDDING
        assert caught.value.hint == "Load the model again"
    assert cache.length == len(PROMPT)
    model.close()


def test_passages_end_before_the_row_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written until then is kept, and the error comes with the next passage."""
    monkeypatch.setattr(generator_module, "PASSAGE_SECONDS", WHOLE)
    folder = write_random_model(tmp_path, vocab_size=300)
    tokens = written(in_memory(folder))
    place = next(i for i in range(5, 40) if tokens[i] > max(*tokens[:i], *PROMPT))
    short = tmp_path / "short"

    def cut(found: TensorPlace) -> TensorPlace:
        shutil.copyfile(found.file, short)
        os.truncate(short, found.offset + tokens[place] * found.shape[1] * found.dtype.itemsize + 1)
        status = short.stat()
        return replace(found, descriptor=os.open(short, os.O_RDONLY), size=status.st_size, modified=status.st_mtime_ns)

    model = load(folder, cut, Noting)
    with pytest.raises(CheckpointError, match="changed"):
        written(model)
    assert isinstance(model, Noting) and model.noted == tuple(tokens[1 : place + 1])


def test_a_disk_that_is_gone_is_told(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, vocab_size=300)
    directory = os.open(tmp_path, os.O_RDONLY)  # reading it is an error of the system's
    model = load(folder, lambda found: replace(found, descriptor=directory))
    os.close(directory)
    with pytest.raises(CheckpointError, match="cannot read the file") as caught:
        model.forward([1], model.new_cache(8))
    assert os.strerror(errno.EISDIR) in caught.value.message and caught.value.tensor == EMBEDDING
    assert "disk" in (caught.value.hint or "")
    with pytest.raises(CheckpointError, match=os.strerror(errno.EBADF)):
        load(folder, lambda found: replace(found, descriptor=-1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_is_open_as_long_as_the_model(folder: Path) -> None:
    def descriptors() -> list[int]:
        entries = Path("/proc/self/fd").iterdir()
        return [int(entry.name) for entry in entries if os.path.realpath(entry) == str(stored_in(folder))]

    models = [load(folder) for _ in range(2)]
    assert len(descriptors()) == 2
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors())
    models[0].close()
    assert len(descriptors()) == 1
    models.clear()
    assert descriptors() == []
