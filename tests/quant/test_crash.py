"""What a conversion survives: being stopped, killed, a full disk, damaged files. The result is always the same."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jobs import convert, finished, request, weights_hash

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, JobError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import (
    Checkpointed,
    JobFinished,
    LayerMeasured,
    LayerQuantized,
    ModelWritten,
    QualityWarning,
    StageStarted,
    Tuned,
)
from exl2_tui.core.quant import output, workdir
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.requests import ConvertRequest

TUNED_BITS = 3.0
"""At which the tiny model loses enough for norms and scales to be tuned."""


@pytest.mark.parametrize(("recipe", "bits"), [("classic", 4.0), ("refined", TUNED_BITS)])
def test_stopped_after_any_event_the_result_is_the_same(tiny: Path, tmp_path: Path, recipe: str, bits: float) -> None:
    events = convert(request(tiny, tmp_path / "whole", recipe=recipe, bits=(bits,)))
    assert any(isinstance(event, Tuned) and event.kept for event in events) == (recipe == "refined")
    expected = weights_hash(finished(events))
    asked = request(tiny, tmp_path / "cut", recipe=recipe, bits=(bits,))
    generator = random.Random(3)
    for _ in range(60):
        job = ConvertJob.open(asked)
        steps = job.run()
        limit = generator.randrange(1, 25)
        seen = [event for _, event in zip(range(limit), steps, strict=False)]
        steps.close()  # type: ignore[attr-defined]
        job.close()
        if isinstance(seen[-1], JobFinished):
            break
    assert weights_hash(finished(seen)) == expected
    assert finished(convert(asked)) == finished(seen)  # a finished job only tells its result again


@dataclass(frozen=True)
class Run:
    """What a process told before it was killed: layers begun, layers checkpointed, and whether it was done."""

    begun: set[tuple[str, str]]
    kept: set[tuple[str, int]]
    done: bool


def run_and_kill(asked: ConvertRequest, events: int, seconds: float) -> Run:
    """A conversion in a process of its own, killed with SIGKILL some time after it has told so many events.

    By events, not by the clock alone: on a machine that becomes busy it would never get on.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            convert(asked, lambda event: os.write(writer, json.dumps(event.to_json()).encode() + b"\n"))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may escape into the parent's test run
            os._exit(1)
    os.close(writer)
    told = b""
    while told.count(b"\n") < events and (piece := os.read(reader, 1 << 12)):
        told += piece
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while piece := os.read(reader, 1 << 16):
        told += piece
    os.close(reader)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    begun, kept = set(), set()
    for line in told.split(b"\n")[:-1]:  # the last one may be cut
        event = json.loads(line)
        if event["event"] in ("LayerMeasured", "LayerQuantized"):
            begun.add((event["event"], ".".join(event["key"].split(".")[:3])))
        if event["event"] == "Checkpointed":
            kept.add((event["stage"], event["layer"]))
    return Run(begun, kept, not os.WIFSIGNALED(status))


def test_killed_at_50_random_moments_the_result_is_the_same(tiny: Path, tmp_path: Path) -> None:
    began = time.perf_counter()
    events = convert(request(tiny, tmp_path / "whole", bits=(TUNED_BITS,)))
    step = (time.perf_counter() - began) / len(events)
    expected = weights_hash(finished(events))
    generator = random.Random(11)
    kills = jobs = 0
    stages: set[str] = set()
    while kills < 50:
        asked = request(tiny, tmp_path / f"job-{jobs}", bits=(TUNED_BITS,))
        jobs += 1
        kept: set[tuple[str, int]] = set()
        begun: set[tuple[str, str]] = set()
        while True:
            run = run_and_kill(asked, generator.randrange(1, len(events) // 2), generator.uniform(0.0, 2 * step))
            assert not run.kept & kept, "a finished layer was computed again"
            assert len(run.begun & begun) <= 1, "more than one layer was computed again"
            kept, begun = kept | run.kept, begun | run.begun
            if run.done:
                break
            kills += 1
            if (tmp_path / f"job-{jobs - 1}" / "job.json").exists():
                stages.add(json.loads((tmp_path / f"job-{jobs - 1}" / "job.json").read_bytes())["stage"])
        model = tmp_path / f"job-{jobs - 1}" / f"tiny-{TUNED_BITS:g}bpw"
        assert weights_hash(model) == expected
        assert not list(model.parent.rglob("*.partial"))
    assert jobs > 1 and {"measure", "quantize"} <= stages  # the others are too short to be hit every time


class Watched(CancelToken):
    """Counts the looks that a job takes at it in every stage, and is set at a given one."""

    def __init__(self, job: ConvertJob, stage: str = "", at: int = 0) -> None:
        super().__init__()
        self.job = job
        self.wanted = stage, at
        self.begun = ""
        self.looks: Counter[str] = Counter()

    def check(self) -> None:
        layers, step = self.job.model.config.num_hidden_layers, self.job.record.step
        late = {layers: "head", layers + 1: "tune"}.get(min(step, layers + 1), "quantize")
        stage = late if self.begun == "quantize" else self.begun
        self.looks[stage] += 1
        if (stage, self.looks[stage]) == self.wanted:
            self.cancel()
        super().check()

    def run(self) -> list[Event]:
        events: list[Event] = []
        try:
            for event in self.job.run(self):
                events.append(event)
                if isinstance(event, StageStarted):
                    self.begun = event.stage
            return events
        finally:
            self.job.close()


def test_cancelled_in_the_middle_of_every_stage_the_result_is_the_same(tiny: Path, tmp_path: Path) -> None:
    whole = Watched(ConvertJob.open(request(tiny, tmp_path / "whole", bits=(TUNED_BITS,))))
    expected = weights_hash(finished(whole.run()))
    asked = request(tiny, tmp_path / "cut", bits=(TUNED_BITS,))
    for stage in ("calibrate", "measure", "allocate", "quantize", "head", "tune", "compile", "evaluate"):
        cut = Watched(ConvertJob.open(asked), stage, (whole.looks[stage] + 1) // 2)
        with pytest.raises(CancelledError):
            cut.run()
        assert cut.begun == {"head": "quantize", "tune": "quantize"}.get(stage, stage)
    assert weights_hash(finished(convert(asked))) == expected


def test_a_full_disk_at_any_file_leaves_a_job_that_resumes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of a job fails once: states, layers, the state file, the shards, the report."""
    asked = request(tiny, tmp_path / "work", recipe="classic", output=str(tmp_path / "out"))
    real = os.fsync
    allowed = failures = 0
    left = 0

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    while True:
        left = allowed = allowed + 1
        try:
            events = convert(asked)
            break
        except JobError as error:
            assert "disk is full" in error.message and error.hint is not None and "same command" in error.hint
            assert error.file is not None and str(tmp_path) in error.file
            failures += 1
    monkeypatch.undo()
    assert failures > 5
    assert weights_hash(finished(events)) == weights_hash(
        finished(convert(request(tiny, tmp_path / "whole", recipe="classic")))
    )


def test_a_directory_that_turns_unwritable_leaves_a_job_that_resumes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, tensors: dict[str, torch.Tensor]) -> str:
        raise OSError(errno.EACCES, "Permission denied")

    asked = request(tiny, tmp_path / "work", output=str(tmp_path / "out"))
    for module in (workdir, output):  # first the work directory, then that of the model
        monkeypatch.setattr(module, "write_file", refused)
        with pytest.raises(JobError, match="Permission denied") as caught:
            convert(asked)
        assert caught.value.hint is not None and "same command" in caught.value.hint
        monkeypatch.undo()
    finished(convert(asked))


def stopped_at(asked: ConvertRequest, kind: type[Event], stage: str) -> None:
    """Runs a job until the first such event of a stage."""
    job = ConvertJob.open(asked)
    for event in job.run():
        if isinstance(event, kind) and getattr(event, "stage", stage) == stage:
            break
    job.close()


def damage(file: Path) -> None:
    """One byte in the middle changes."""
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_damaged_files_are_never_trusted(tiny: Path, tmp_path: Path) -> None:
    expected = weights_hash(finished(convert(request(tiny, tmp_path / "whole"))))

    def resumed(asked: ConvertRequest, damaged: str, again: str) -> list[Event]:
        events = convert(asked)
        told = [event.message for event in events if isinstance(event, QualityWarning)]
        assert any(damaged in message and again in message for message in told)
        assert weights_hash(finished(events)) == expected
        return events

    work = tmp_path / "layer"
    stopped_at(request(tiny, work), Checkpointed, "quantize")
    damage(next((work / "quantized-0").glob("*.safetensors")))
    events = resumed(request(tiny, work), "layer-00000", "quantized again")
    assert not any(isinstance(event, LayerMeasured) for event in events)  # the measurement was kept
    assert sum(isinstance(event, LayerQuantized) for event in events) == 15

    work = tmp_path / "states"
    stopped_at(request(tiny, work), Checkpointed, "quantize")
    next((work / "states").glob("*.safetensors")).unlink()
    resumed(request(tiny, work), "states/", "quantized again")

    work = tmp_path / "measuring"
    stopped_at(request(tiny, work), Checkpointed, "measure")
    damage(next((work / "states").glob("*.safetensors")))
    resumed(request(tiny, work), "states/", "measured again")

    work = tmp_path / "measured"
    stopped_at(request(tiny, work), LayerQuantized, "quantize")
    state = json.loads((work / "job.json").read_bytes())
    state.update(stage="allocate", strategies=[])
    (work / "job.json").write_text(json.dumps(state))
    damage(work / "measurement.json")
    resumed(request(tiny, work), "measurement.json", "measured again")

    work = tmp_path / "rows"
    stopped_at(request(tiny, work), Checkpointed, "measure")
    damage(work / "calibration.safetensors")
    with pytest.raises(JobError, match="damaged") as caught:
        convert(request(tiny, work))
    assert caught.value.file is not None and "calibration.safetensors" in caught.value.file


def test_a_later_bitrate_is_mended_alone(tiny: Path, tmp_path: Path) -> None:
    asked = request(tiny, tmp_path, bits=(5.0, 4.0), recipe="classic")
    stopped_at(asked, ModelWritten, "quantize")
    first = weights_hash(tmp_path / "tiny-5bpw")
    job = ConvertJob.open(asked)
    next(event for event in job.run() if isinstance(event, Checkpointed))
    job.close()
    damage(next((tmp_path / "quantized-1").glob("*.safetensors")))
    events = convert(asked)
    assert sum(isinstance(event, ModelWritten) for event in events) == 1
    assert isinstance(events[-1], JobFinished) and len(events[-1].paths) == 2
    assert weights_hash(tmp_path / "tiny-5bpw") == first
