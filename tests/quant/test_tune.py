"""Tuning norms and scales: its gradient is the true one, it helps, and what it promises is what the file then does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_job import request
from tiny import LAYERS
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint, write_file
from exl2_tui.core.errors import CancelledError
from exl2_tui.core.job_events import Checkpointed
from exl2_tui.core.quant import tune
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.quant.source import parts_of
from exl2_tui.core.quant.tune import Schedule, Tuner

SCHEDULE = Schedule(steps=12, tokens=1024, passes=12)


@dataclass
class Untuned:
    """A job that is about to tune: its parts, calibration rows and the original's final states."""

    job: ConvertJob
    files: list[Path]
    parts: Checkpoint
    ids: Tensor
    reference: Tensor

    def tuner(self) -> Tuner:
        return Tuner(self.job.model, self.parts, (self.ids.shape[0], self.ids.shape[1]), SCHEDULE)


@pytest.fixture(scope="module")
def untuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Untuned]:
    torch.set_num_threads(1)
    asked = request(tiny, tmp_path_factory.mktemp("untuned"), bits=(3.0,), head_bits=3, rows=16)
    job = ConvertJob.open(asked)
    for event in job.run():
        if isinstance(event, Checkpointed) and event.layer == LAYERS and event.stage == "quantize":
            break
    states = job.record.load_states()
    files = job._parts()
    yield Untuned(job, files, parts_of(job.model, files), job.record.calibration().rows, states["reference"].clone())
    job.close()


def test_the_gradient_is_that_of_the_divergence(untuned: Untuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rounding of scales, which has no derivative."""
    monkeypatch.setattr(tune, "stored_factors", lambda largest, wanted: wanted)
    tuner = untuned.tuner()
    rows = tuner.judging
    logs = 0.01 * torch.randn(tuner.layout.size, generator=torch.Generator().manual_seed(1))
    _, gradient = tuner.gradient(untuned.ids[rows], untuned.reference[rows], logs, None)
    direction = gradient / gradient.norm()
    step = 1e-2
    ahead, behind = (
        tuner.divergence(untuned.ids, untuned.reference, logs + sign * step * direction, None) for sign in (1, -1)
    )
    assert (ahead - behind) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)
    assert all(bool(piece.abs().sum() > 0) for piece in tuner.layout.split(gradient).values())


def test_tuning_lowers_the_divergence_of_its_rows_and_the_file_holds_it(untuned: Untuned, tmp_path: Path) -> None:
    tuner = untuned.tuner()
    fitted = sorted({row for batch in tuner.batches for row in batch})
    tuner.judging = fitted
    state = tuner.start()
    before = tuner.divergence(untuned.ids, untuned.reference, state["logs"], None)
    for number in range(len(tuner.batches)):
        state = tuner.step(number, untuned.ids, untuned.reference, state, None)
    after = tuner.divergence(untuned.ids, untuned.reference, state["logs"], None)
    assert after < 0.99 * before  # by little: random weights hide no systematic error

    tuned = tuner.tuned(state["logs"])
    assert all(tensor.dtype == torch.float16 and bool(torch.isfinite(tensor).all()) for tensor in tuned.values())
    write_file(tmp_path / "tuned.safetensors", tuned)
    stored = parts_of(untuned.job.model, [*untuned.files, tmp_path / "tuned.safetensors"])
    again = dataclasses.replace(untuned, parts=stored).tuner()
    again.judging = fitted
    found = again.divergence(untuned.ids, untuned.reference, torch.zeros_like(state["logs"]), None)
    assert found == pytest.approx(after, rel=0.002)


def test_blocks_read_again_for_every_step_give_the_same(untuned: Untuned, monkeypatch: pytest.MonkeyPatch) -> None:
    held = untuned.tuner()
    monkeypatch.setattr(tune, "LARGEST_MODEL", 0)
    streamed = untuned.tuner()
    ours, theirs = held.start(), streamed.start()
    for number in range(2):
        ours = held.step(number, untuned.ids, untuned.reference, ours, None)
        theirs = streamed.step(number, untuned.ids, untuned.reference, theirs, None)
        assert torch.equal(ours["logs"], theirs["logs"])
    assert not streamed._held and held._held


def test_cancelling_ends_a_step(untuned: Untuned) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        untuned.tuner().step(0, untuned.ids, untuned.reference, untuned.tuner().start(), token)


@pytest.mark.parametrize(("count", "length"), [(1, 64), (4, 64), (9, 300), (100, 2048), (32, 512)])
def test_the_schedule_uses_rows_evenly_and_never_those_that_judge(count: int, length: int) -> None:
    schedule = Schedule()
    batches, judging = schedule.batches(count, length), schedule.judging(count)
    uses = [sum(batch.count(row) for batch in batches) for row in range(count) if row not in judging or count < 8]
    assert max(uses) - min(uses) <= 1 and 0 < max(uses) <= schedule.passes
    assert len({len(batch) for batch in batches}) == 1 and len(batches) <= schedule.steps
    if count >= 8:
        assert not {row for batch in batches for row in batch} & set(judging)
    assert batches == schedule.batches(count, length)
