"""What a conversion refuses before it starts, and what it never touches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from jobs import convert, finished, request, weights_hash
from tiny import make_tiny

from exl2_tui.core.checkpoint import open_file, write_file
from exl2_tui.core.errors import Exl2Error, JobError, MemoryLimitError, QuantizationError, UnsupportedError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import Checkpointed, JobEstimate
from exl2_tui.core.quant import preflight, registry
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest


def refused(asked: ConvertRequest, *, fresh: bool = False) -> Exl2Error:
    """The error of a job that must not even open."""
    with pytest.raises(Exl2Error) as caught:
        ConvertJob.open(asked, fresh=fresh).close()
    assert caught.value.hint
    return caught.value


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a directory."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def begin(asked: ConvertRequest) -> None:
    """Runs a job until something is computed."""
    job = ConvertJob.open(asked)
    next(event for event in job.run() if isinstance(event, Checkpointed))
    job.close()


def test_places_that_cannot_be_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    work = tmp_path / "work"
    for changes in ({"output": str(file / "below")}, {"measure_to": str(file / "m.json")}):
        error = refused(request(tiny, work, **changes))
        assert error.file == str(file) and "directory is needed" in error.message
    assert refused(request(tiny, file / "below")).file == str(file)

    def no_file(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(preflight.tempfile, "NamedTemporaryFile", no_file)
    error = refused(request(tiny, work, output=str(tmp_path / "out")))
    assert "Read-only" in error.message and error.file == str(tmp_path)
    assert not work.exists()


def test_a_head_that_is_only_rounded_cannot_choose_its_bits(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ROUNDED_HEAD", 1000)
    error = refused(request(tiny, tmp_path / "work", head_bits=None))
    assert error.tensor == "lm_head.weight" and "-hb 6" in str(error.hint)
    ConvertJob.open(request(tiny, tmp_path / "fixed", head_bits=4)).close()


def test_other_models_are_never_overwritten(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny, out)
    before = files(out)
    assert "already holds a model" in refused(request(tiny, tmp_path / "work", output=str(out))).message
    assert "already holds a model" in refused(request(tiny, tmp_path / "work", output=str(out)), fresh=True).message
    assert "already holds something else" in refused(request(tiny, out)).message
    assert "write into the model it reads" in refused(request(tiny, tiny)).message
    assert "write into the model it reads" in refused(request(tiny, tmp_path / "w", output=str(tiny / "x"))).message
    assert files(out) == before and not (tmp_path / "work").exists()


def test_a_model_that_appears_later_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    asked = request(tiny, tmp_path / "work", recipe="classic", output=str(tmp_path / "out"))
    begin(asked)
    shutil.copytree(tiny, tmp_path / "out")
    assert "already holds a model" in refused(asked).message
    shutil.rmtree(tmp_path / "out")
    first = finished(convert(asked))
    # What this job made it may make again.
    expected = weights_hash(first)
    (first / "output.safetensors").write_bytes(b"damaged by somebody")
    job = ConvertJob.open(asked, fresh=True)
    list(job.run())
    job.close()
    assert weights_hash(first) == expected


def test_only_a_jobs_own_files_are_deleted(tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "mine").mkdir(parents=True)
    write_file(work / "mine" / "adapter.safetensors", {"a": torch.ones(3)})
    (work / "notes.partial").write_text("mine")
    (work / "tiny-3bpw").mkdir()
    (work / "tiny-3bpw" / "a.txt").write_text("mine")
    (work / "quantized-old").mkdir()
    (work / "quantized-old" / "a.safetensors").write_text("mine")
    finished(convert(request(tiny, work, recipe="classic")))
    summary = registry.summarize(work)
    assert summary is not None
    registry.delete(tmp_path / "home", summary)
    left = ["mine/adapter.safetensors", "notes.partial", "quantized-old/a.safetensors", "tiny-3bpw/a.txt"]
    assert sorted(files(work)) == left


def test_one_directory_belongs_to_one_job(tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    job = ConvertJob.open(request(tiny, work))
    assert "another process" in refused(request(tiny, work)).message
    summary = registry.summarize(work)
    assert summary is None  # nothing was computed yet
    steps = job.run()
    next(event for event in steps if isinstance(event, Checkpointed))
    summary = registry.summarize(work)
    assert summary is not None and summary.running
    with pytest.raises(JobError, match="another process"):
        registry.delete(tmp_path / "home", summary)
    steps.close()  # type: ignore[attr-defined]
    job.close()
    error = refused(request(tiny, work, head_bits=8))
    assert "head_bits 6, not 8" in error.message and error.hint is not None and "-nr" in error.hint
    ConvertJob.open(request(tiny, work, head_bits=8), fresh=True).close()
    for content in ("{", "[]", '{"version": 1}', "[" * 10_000):
        (work / "job.json").write_text(content)
        assert refused(request(tiny, work)).file == str(work / "job.json")


def test_options_may_change_while_nothing_is_computed(tiny: Path, tmp_path: Path) -> None:
    job = ConvertJob.open(request(tiny, tmp_path))
    for event in job.run():
        if not isinstance(event, JobEstimate):
            break
    job.close()
    finished(convert(request(tiny, tmp_path, head_bits=8, recipe="classic")))


def test_a_source_that_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "WHOLE_FILE", 4096)  # larger files are sampled
    monkeypatch.setattr(preflight, "SAMPLE_BYTES", 1024)
    source = make_tiny(tmp_path / "model")
    asked = request(source, tmp_path / "work")
    begin(asked)
    weights = source / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-100] + bytes(100))
    error = refused(asked)
    assert error.file == str(weights) and "has changed" in error.message
    weights.write_bytes(original)  # the same content under another time is the same model
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace("256", "128"))
    assert refused(asked).file == str(source / "config.json")
    (source / "config.json").write_text(config)
    (source / "added_tokens.json").write_text("{}")
    assert "is new" in refused(asked).message
    (source / "added_tokens.json").unlink()
    finished(convert(asked))


def test_impossible_results_are_refused_at_once(tiny: Path, tmp_path: Path, nano_chat_exl2: Path) -> None:
    with pytest.raises(UnsupportedError, match="already quantized"):
        ConvertJob.open(request(nano_chat_exl2, tmp_path / "a"))
    for recipe in ("classic", "refined"):
        with pytest.raises(QuantizationError, match="fewer than this model can have") as caught:
            ConvertJob.open(request(tiny, tmp_path / "b", bits=(8.0, 2.0), recipe=recipe))
        assert caught.value.hint is not None and "smallest size is" in caught.value.hint
    with pytest.raises(QuantizationError, match="another model"):
        reference = nano_chat_exl2 / "measurement-reference.json"
        ConvertJob.open(request(tiny, tmp_path / "c", measurement=str(reference)))
    with pytest.raises(JobError, match="calibration file cannot be read"):
        ConvertJob.open(request(tiny, tmp_path / "d" / "e", calibration=str(tmp_path / "nothing.txt")))
    for device in ("tpu", "cuda:99"):
        with pytest.raises(Exl2Error, match=f'"{device}"|no GPU can be used'):
            ConvertJob.open(request(tiny, tmp_path / "f", device=device))
    assert not list(tmp_path.iterdir())  # what was refused leaves nothing
    (tmp_path / "events.jsonl").write_text("mine")
    assert "fewer" in refused(request(tiny, tmp_path, bits=(2.0,))).message
    assert files(tmp_path) == {"events.jsonl": b"mine"}


def test_starting_anew_deletes_nothing_before_the_new_job_can_begin(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(request(tiny, tmp_path))
    before = files(tmp_path)
    assert "fewer than" in refused(request(tiny, tmp_path, bits=(2.0,)), fresh=True).message
    measured = str(tmp_path / "measurement.json")
    (tmp_path / "measurement.json").write_text("{}")
    assert refused(request(tiny, tmp_path, measurement=measured), fresh=True).file == measured
    (tmp_path / "measurement.json").unlink()
    monkeypatch.setattr("exl2_tui.core.quant.forecast.available_memory", lambda: 100 << 20)
    assert "memory" in refused(request(tiny, tmp_path, head_bits=8), fresh=True).message
    assert files(tmp_path) == before


def test_too_little_room_is_told_with_numbers(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exl2_tui.core.quant.forecast.available_memory", lambda: 100 << 20)
    with pytest.raises(MemoryLimitError, match=r"needs about \d\d\d MB of memory, 105 MB are free") as caught:
        convert(request(tiny, tmp_path / "a"))
    assert caught.value.hint is not None and "-r" in caught.value.hint
    monkeypatch.undo()

    class Little:
        free = 1000

    monkeypatch.setattr("exl2_tui.core.quant.forecast.shutil.disk_usage", lambda _: Little)
    with pytest.raises(MemoryLimitError, match=r"of disk here, 1 kB are free") as caught:
        convert(request(tiny, tmp_path / "b"))
    assert caught.value.file is not None
    assert not list(tmp_path.iterdir())


def test_the_state_names_every_file_it_needs(tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"

    def check(event: Event) -> None:
        if isinstance(event, Checkpointed):
            state = json.loads((work / "job.json").read_bytes())
            for name in (*(entry["file"] for entry in state["states"].values()), *(p["name"] for p in state["parts"])):
                open_file(work / name)

    convert(request(tiny, work), check)
    left = {file.name for file in work.iterdir()}
    assert left == {"job.json", "lock", "measurement.json", "calibration.safetensors", "tiny-4bpw"}
